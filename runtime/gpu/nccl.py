"""Sums and joins among GPUs through NCCL, or RCCL on AMD, by ctypes: one process a GPU, all on one stream each.

Only the calls that a step needs; they can be recorded in a graph like launches. LLC0869 where the library is missing or
refuses a call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

from llamac.errors import LlamacError

from .driver import Kind

LIBRARIES: dict[Kind, tuple[str, ...]] = {
    "cuda": ("libnccl.so.2", "libnccl.so"),
    "hip": ("librccl.so.1", "librccl.so", "/opt/rocm/lib/librccl.so"),
}
ID_BYTES = 128
"""ncclUniqueId."""

_FLOAT32, _SUM = 7, 0
_INT, _SIZE, _POINTER = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p


class UniqueId(ctypes.Structure):
    """`ncclUniqueId`: what the ranks of one group agree on; passed by value."""

    _fields_ = (("internal", ctypes.c_byte * ID_BYTES),)


_SIGNATURES: dict[str, Sequence[Any]] = {
    "ncclGetUniqueId": (ctypes.POINTER(UniqueId),),
    "ncclCommInitRank": (ctypes.POINTER(_POINTER), _INT, UniqueId, _INT),
    "ncclCommDestroy": (_POINTER,),
    "ncclAllReduce": (_POINTER, _POINTER, _SIZE, _INT, _INT, _POINTER, _POINTER),
    "ncclAllGather": (_POINTER, _POINTER, _SIZE, _INT, _POINTER, _POINTER),
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
}


class GpuCollectives(Protocol):
    """One GPU among `ranks`; all of them put the same calls on their streams, in the same order."""

    rank: int
    ranks: int

    def all_reduce(self, values: int, count: int, stream: int) -> None:
        """Replace f32 values at an address by their sums over ranks, when the stream comes to it."""

    def all_gather(self, source: int, to: int, rows: int, columns: int, stream: int) -> None:
        """Rows of f32 values of every rank side by side, rank by rank, when the stream comes to it."""

    def close(self) -> None:
        """Leave the group."""


class Nccl:
    """A group of GPUs. `unique_id` makes the bytes that all of its ranks are made with."""

    def __init__(self, kind: Kind, rank: int, ranks: int, identity: bytes) -> None:
        """Wait for the other ranks; the GPU of this one is current on this thread."""
        self.rank = rank
        self.ranks = ranks
        self._kind = kind
        self._library = _load(kind)
        self._group = _POINTER()
        given = UniqueId.from_buffer_copy(identity)
        self._call("ncclCommInitRank", ctypes.byref(self._group), ranks, given, rank)

    def all_reduce(self, values: int, count: int, stream: int) -> None:
        """As `GpuCollectives` says."""
        self._call("ncclAllReduce", values, values, count, _FLOAT32, _SUM, self._group, stream)

    def all_gather(self, source: int, to: int, rows: int, columns: int, stream: int) -> None:
        """As `GpuCollectives` says: a call a row, all of them one group of calls."""
        self._call("ncclGroupStart")
        for row in range(rows):
            given, into = source + 4 * row * columns, to + 4 * row * columns * self.ranks
            self._call("ncclAllGather", given, into, columns, _FLOAT32, self._group, stream)
        self._call("ncclGroupEnd")

    def close(self) -> None:
        """As `GpuCollectives` says."""
        group, self._group = self._group, _POINTER()
        if group.value:
            self._call("ncclCommDestroy", group)

    def _call(self, name: str, *given: Any) -> None:
        _check(self._library, self._kind, name, getattr(self._library, name)(*given))


def unique_id(kind: Kind) -> bytes:
    """What the ranks of a new group agree on."""
    library, found = _load(kind), UniqueId()
    _check(library, kind, "ncclGetUniqueId", library.ncclGetUniqueId(ctypes.byref(found)))
    return bytes(found)


def _load(kind: Kind) -> ctypes.CDLL:
    for name in LIBRARIES[kind]:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for function, arguments in _SIGNATURES.items():
            getattr(library, function).argtypes = arguments
            getattr(library, function).restype = _INT
        library.ncclGetErrorString.argtypes = (_INT,)
        library.ncclGetErrorString.restype = ctypes.c_char_p
        return library
    names, package = " or ".join(LIBRARIES[kind]), "nvidia-nccl-cu13" if kind == "cuda" else "rccl"
    raise LlamacError("LLC0869", kind, f"{names} is not there", f"install {package}: GPUs that share a model need it")


def _check(library: ctypes.CDLL, kind: Kind, call: str, status: int) -> None:
    if status != 0:
        text = library.ncclGetErrorString(status)
        reason = f"{call} failed: {text.decode() if text else status}"
        raise LlamacError("LLC0869", kind, reason, "NCCL_DEBUG=INFO makes the library say more")
