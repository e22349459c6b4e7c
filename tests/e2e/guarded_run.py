"""Runs one artifact with another build of its code, in memory that a wrong access cannot leave unnoticed.

    python guarded_run.py job.json

Every memory that the code is given is of the exact size, between inaccessible pages, at the end of its pages or at
their start; pages that are unused by plan are inaccessible too. With `heap` the memory comes from malloc instead, whose
surroundings an address sanitizer watches. The results go to a file; the test compares their bits.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from exercises import exercise

import llamac
from llamac.runtime import device_cpu, loader

Bytes = NDArray[np.uint8]
PAGE = mmap.PAGESIZE
C = ctypes.CDLL(None, use_errno=True)
C.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
C.aligned_alloc.argtypes, C.aligned_alloc.restype = [ctypes.c_size_t, ctypes.c_size_t], ctypes.c_void_p
KEPT: list[Any] = []
"""Memory that lives as long as the process."""


def forbid(address: int, size: int) -> None:
    """Make whole pages inaccessible."""
    if C.mprotect(address, size, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


class Memory:
    """Where the code's memory comes from."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job

    def take(self, size: int, alignment: int = 64) -> Bytes:
        """`size` zeroed bytes."""
        if self.job["heap"]:
            address = C.aligned_alloc(alignment, -(-size // alignment) * alignment)
            ctypes.memset(address, 0, size)
            return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        room = -(-size // PAGE) * PAGE
        pages = mmap.mmap(-1, room + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = np.frombuffer(pages, np.uint8)
        forbid(whole.ctypes.data, PAGE)
        forbid(whole.ctypes.data + PAGE + room, PAGE)
        start = PAGE + (room - size if self.job["at_end"] else 0)
        KEPT.append(pages)
        return whole[start : start + size]

    def forbid_gaps(self, memory: Bytes, gaps: Sequence[int]) -> None:
        """Make the pages at the offsets `gaps` inaccessible."""
        for gap in gaps:
            if not self.job["heap"] and gap + PAGE <= memory.size:
                forbid(memory.ctypes.data + gap, PAGE)

    def anonymous(self, size: int, purpose: str) -> Bytes:
        """In place of `anonymous_memory`."""
        found = self.take(size, PAGE if purpose == "arena" else 64)
        if purpose == "arena":
            self.forbid_gaps(found, self.job["arena_gaps"])
        return found

    def weights(self, stored: Bytes) -> Bytes:
        """A copy of the weight member, whose end need not be that of a page."""
        found = self.take(-(-stored.size // PAGE) * PAGE, PAGE)
        found[: stored.size] = stored
        self.forbid_gaps(found, self.job["weight_gaps"])
        return found[: stored.size]


class Inputs:
    """Puts the arrays of a step between inaccessible pages too, and brings the results back."""

    def __init__(self, memory: Memory, function: Any, sizes: Any) -> None:
        self.memory, self.function, self.sizes = memory, function, sizes

    def __call__(self, model: int, given: Any, *rest: Any) -> int:
        row = given._obj
        moved: list[tuple[str, int, Bytes]] = []
        for name, size in self.sizes(row).items():
            address = getattr(row, name)
            if address is None or not size:
                continue
            copy = self.memory.take(size, 4)
            ctypes.memmove(copy.ctypes.data, address, size)
            setattr(row, name, copy.ctypes.data)
            moved.append((name, address, copy))
        status = int(self.function(model, given, *rest))
        for name, address, copy in moved:
            setattr(row, name, address)
            if name in ("logits", "embeddings"):
                ctypes.memmove(address, copy.ctypes.data, copy.size)
        return status


def step_sizes(caches: int, vocab: int, width: int) -> Any:
    """Field of a step's input -> bytes behind it."""

    def sizes(row: Any) -> dict[str, int]:
        rows = dict.fromkeys(("token_ids", "positions", "sequence_of_token", "image_rows"), 4 * row.tokens)
        rows |= dict.fromkeys(("vision_start", "vision_stop"), 4 * row.tokens)
        tables = 4 * caches * row.sequences * row.pages_per_sequence
        logits = {"logit_rows": 4 * row.logit_count, "logits": 4 * row.logit_count * vocab}
        return {**rows, **logits, "page_tables": tables, "image_embeddings": 4 * width * row.image_count}

    return sizes


def picture_sizes(image: Any) -> Any:
    """The same for the image encoder."""

    def sizes(row: Any) -> dict[str, int]:
        tiles = image.pixels[0] if image.is_joint else row.tiles
        pixels = 4 * tiles * int(np.prod(image.pixels[1:]))
        return {
            "pixels": pixels,
            "embeddings": 4 * row.tiles * int(np.prod(image.embeddings)),
            "pages": 4 * row.page_count,
        }

    return sizes


def main() -> None:
    """Run the job and write its results."""
    faulthandler.enable()
    job = json.loads(Path(sys.argv[1]).read_text())
    memory = Memory(job)
    load_library, mapped = loader.load_library, loader.Artifact.map
    device_cpu.anonymous_memory = memory.anonymous
    loader.load_library = lambda code, where: load_library(Path(job["library"]).read_bytes(), where)
    loader.Artifact.map = lambda artifact, name: memory.weights(mapped(artifact, name))  # type: ignore[method-assign]
    options = {"threads": job["threads"], "context": 512, "sequences": 3, "images": 3, "target": job["target"]}
    with llamac.load(job["artifact"], **options) as model:
        device: Any = model._device
        library, image = device._library, model.plan.image
        if not job["heap"]:
            width = 0 if image is None else image.embeddings[1]
            sizes = step_sizes(len(device.page_counts), model.vocab_size, width)
            library.step = Inputs(memory, library.step, sizes)
            if library.step_top is not None:
                library.step_top = Inputs(memory, library.step_top, sizes)
            if image is not None:
                library.encode_image = Inputs(memory, library.encode_image, picture_sizes(image))
        np.savez(job["results"], **exercise(model, image is not None))


if __name__ == "__main__":
    main()
