"""Memory of the CPU device: anonymous pages, advice to the system about them, and weights in a copy of their own."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamac.errors import LlamacError

Bytes = npt.NDArray[np.uint8]

_MAP_NORESERVE = 0x4000
"""Linux: do not count the mapping against memory until its pages are touched (a context is rarely filled)."""

_HUGE_PAGE = 2 << 20
_DONTNEED = 4


def anonymous_memory(size: int, purpose: str) -> Bytes:
    """Zeroed, page-aligned memory of `size` bytes (at least one page) that costs nothing until touched; LLC0807."""
    return np.frombuffer(_map(max(size, mmap.PAGESIZE), purpose), dtype=np.uint8)


def huge_memory(size: int, purpose: str) -> Bytes:
    """The same for `size` bytes that are all going to be used: in huge pages, where the system has them."""
    memory = _map(size + _HUGE_PAGE, purpose)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    start = -whole.ctypes.data % _HUGE_PAGE
    return whole[start : start + size]


def _map(length: int, purpose: str) -> mmap.mmap:
    try:
        if sys.platform == "linux":
            return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        return mmap.mmap(-1, length)
    except (OSError, OverflowError, ValueError) as error:
        reason = f"{length} bytes for the {purpose} cannot be reserved: {error}"
        raise LlamacError("LLC0807", "memory", reason, "ask for a smaller context, or free memory") from error


def forget_pages(mapped: Bytes) -> None:
    """Tell the system that these pages of a mapped file are not needed now; they come back when they are read."""
    if sys.platform != "linux" or not mapped.nbytes:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise(mapped.ctypes.data, mapped.nbytes, _DONTNEED)


def ranges_of(offsets: Iterable[int], size: int) -> list[tuple[int, int]]:
    """`size` bytes cut at each tensor's offset: (start, stop) of the pieces."""
    starts = sorted({0, *offsets})
    return [(start, stop) for start, stop in zip(starts, [*starts[1:], size], strict=True) if stop > start]


def memory_nodes(folder: Path = Path("/sys/devices/system/node")) -> int:
    """How many memory nodes this machine has; 1 where that cannot be known."""
    return max(1, sum(1 for path in folder.glob("node[0-9]*") if path.is_dir()))
