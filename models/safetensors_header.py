"""The safetensors container: a bounds-checked reading of the header of one file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

from llamac.errors import LlamacError

from .input_files import check_not_lfs_pointer, parse_json_object

HEADER_LIMIT = 100_000_000
"""Largest accepted header in bytes: the limit of the reference implementation."""

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
REPAIR = "download the file again"


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor of a safetensors file; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> list[HeaderTensor]:
    """Every tensor of the file, in file order.

    Raises LLC0202 (git-lfs pointer), LLC0203 (truncated) or LLC0204 (anything else that no writer produces).
    """
    try:
        check_not_lfs_pointer(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if len(prefix) == 8 and not 2 <= length <= HEADER_LIMIT:
                _malformed(path, f"a header of {length} bytes")
            header = file.read(length)
    except OSError as error:
        raise LlamacError("LLC0201", path.name, f"cannot be read: {error.strerror}", "check its permissions") from None
    if len(prefix) < 8 or len(header) < length:
        raise LlamacError("LLC0203", path.name, f"the file ends in its header, after {size} bytes", REPAIR)
    entries = _parse(path, header)
    tensors = [_tensor(path, name, value, 8 + length) for name, value in entries.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.offset + tensor.nbytes))
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def _parse(path: Path, header: bytes) -> dict[str, object]:
    try:
        return parse_json_object(header, path.name)
    except LlamacError as error:
        raise LlamacError("LLC0204", path.name, f"the header is {error.reason}", REPAIR) from None


def _tensor(path: Path, name: str, value: object, data_start: int) -> HeaderTensor:
    """One entry of the header; its byte count must follow from dtype and shape."""
    if not isinstance(value, dict):
        _malformed(path, f"tensor {name[:120]!r} is not described by an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        _malformed(path, f"tensor {name[:120]!r} lacks a valid dtype, shape or data_offsets")
    begin, end = offsets
    if dtype not in DTYPE_BITS:
        _malformed(path, f"tensor {name[:120]!r} has the unknown dtype {dtype[:40]!r}")
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
    if begin > end or bits != 8 * (end - begin):
        _malformed(path, f"tensor {name[:120]!r}: {dtype} {shape[:8]} does not fill bytes {begin}..{end}")
    return HeaderTensor(name, dtype, tuple(shape), data_start + begin, end - begin)


def _sizes(value: object) -> TypeGuard[list[int]]:
    """True for a short list of whole numbers that fit a file offset."""
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 62 for size in value)
    )


def _check_layout(path: Path, tensors: list[HeaderTensor], data_start: int, size: int) -> None:
    """The tensors must tile the rest of the file: no overlap, no hole, nothing after the last."""
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlaps the one before it" if tensor.offset < position else "leaves unused bytes before it"
            _malformed(path, f"tensor {tensor.name[:120]!r} {what}")
        position += tensor.nbytes
    if position > size:
        cut = next(tensor for tensor in tensors if tensor.offset + tensor.nbytes > size)
        reason = f"the file has {size} bytes of {position}; {cut.name[:120]} and what follows are cut off"
        raise LlamacError("LLC0203", path.name, reason, REPAIR)
    if position < size:
        _malformed(path, f"{size - position} bytes after the last tensor")


def _malformed(path: Path, reason: str) -> NoReturn:
    raise LlamacError("LLC0204", path.name, f"not a valid safetensors file: {reason}", REPAIR)
