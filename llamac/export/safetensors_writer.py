"""Writes safetensors files in shards, streaming: sizes and places are known first, bytes come block by block.

The same tensors give the same bytes on every machine. In a file larger elements come first, so that every tensor
begins at a multiple of its element's size; `model.safetensors.index.json` names the shard of each.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Block = tuple[NDArray[Any], ...]
"""The next elements of each tensor of a job, in order, each C-contiguous or made so."""

ITEM_BYTES = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
"""The format's names of element types -> bytes of an element."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: its name in the file, its element type (a key of `ITEM_BYTES`) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Job:
    """Tensors that are made together, and their blocks; a matrix's integers and scales come of one reading of it."""

    tensors: tuple[PlannedTensor, ...]
    blocks: Callable[[], Iterator[Block]]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def write_safetensors(
    folder: Path, jobs: Sequence[Job], shard_bytes: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Path]:
    """Write `model.safetensors`, or shards of about `shard_bytes` (a job is never divided) and their index.

    progress: called with bytes written and bytes in all. Returns the files of weights.
    """
    shards = _shards(jobs, shard_bytes)
    total, done = sum(job.nbytes for job in jobs), 0
    files: list[Path] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        for written in _write_shard(folder / name, shard):
            done += written
            progress(done, total)
        files.append(folder / name)
        weight_map |= {tensor.name: name for job in shard for tensor in job.tensors}
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return files


def _shards(jobs: Iterable[Job], shard_bytes: int) -> list[list[Job]]:
    """Jobs in order, in runs that are not larger than `shard_bytes` where a single job is not."""
    shards: list[list[Job]] = [[]]
    size = 0
    for job in jobs:
        if shards[-1] and size + job.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(job)
        size += job.nbytes
    return shards


def _write_shard(path: Path, jobs: Sequence[Job]) -> Iterator[int]:
    """Writes one file; yields the bytes of each block when they are written."""
    tensors = [tensor for job in jobs for tensor in job.tensors]
    assert len({tensor.name for tensor in tensors}) == len(tensors), "two tensors have one name"
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda t: -ITEM_BYTES[t.dtype]):
        starts[tensor.name] = end
        offsets = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for job in jobs:
            places = [8 + len(text) + starts[tensor.name] for tensor in job.tensors]
            ends = [place + tensor.nbytes for place, tensor in zip(places, job.tensors, strict=True)]
            for block in job.blocks():
                for number, values in enumerate(block):
                    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
                    file.seek(places[number])
                    file.write(data)
                    places[number] += len(data)
                yield sum(values.nbytes for values in block)
            assert places == ends, f"{job.tensors[0].name} is not whole"
