"""Writes the container of torch.save without torch: a ZIP of stored members, with a pickle that names the tensors.

The pickle has the few opcodes that torch.load(weights_only=True) allows. Data begins at multiples of 64 bytes, as
torch's own writer has it, and the same tensors give the same bytes.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .safetensors_writer import ITEM_BYTES

STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
"""safetensors' names of element types -> torch's storages of them."""
_ALIGNMENT = 64
_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20
_PADDING = b"FB"
"""The extra field in which torch pads a header."""


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to write: element type (a key of `STORAGES`), shape, and its elements in order, block by block."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[NDArray[Any]]]

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.count * ITEM_BYTES[self.dtype]


def write_torch_file(
    path: Path, tensors: Sequence[StreamedTensor], progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write a dict of tensors as `torch.save` would; progress: bytes written, bytes in all."""
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    folder = path.stem
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        small = {"data.pkl": described(tensors), ".format_version": b"1", "byteorder": b"little"}
        for name, data in small.items():
            archive.writestr(_member(archive, f"{folder}/{name}", zip64=False), data)
        for number, tensor in enumerate(tensors):
            member, written = _member(archive, f"{folder}/data/{number}", zip64=True), 0
            with archive.open(member, "w", force_zip64=True) as stream:
                for block in tensor.blocks():
                    written += stream.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
                    progress(done + written, total)
            assert written == tensor.nbytes, f"{tensor.name} is not whole"
            done += written
        archive.writestr(_member(archive, f"{folder}/version", zip64=False), b"3\n")


def _member(archive: zipfile.ZipFile, name: str, zip64: bool) -> zipfile.ZipInfo:
    """A member whose data is aligned: its header is filled up in an extra field."""
    member = zipfile.ZipInfo(name)
    member.create_system = 0
    member.external_attr = 0
    assert archive.fp is not None
    start = archive.fp.tell() + _LOCAL_HEADER + len(name) + len(_PADDING) + 2 + (_ZIP64_EXTRA if zip64 else 0)
    fill = -start % _ALIGNMENT
    member.extra = _PADDING + struct.pack("<H", fill) + b"Z" * fill
    return member


def described(tensors: Sequence[StreamedTensor]) -> bytes:
    """The pickle of {name: tensor}, each tensor the whole of the storage called by its number."""
    out = [b"\x80\x02}("]
    for number, tensor in enumerate(tensors):
        strides: list[int] = []
        step = 1
        for size in reversed(tensor.shape):
            strides.insert(0, step)
            step *= size
        storage = b"(" + _text("storage") + _global("torch", STORAGES[tensor.dtype])
        storage += _text(str(number)) + _text("cpu") + _number(tensor.count) + b"tQ"
        out += [_text(tensor.name), _global("torch._utils", "_rebuild_tensor_v2"), b"(", storage, _number(0)]
        out += [_numbers(tensor.shape), _numbers(strides), b"\x89", _global("collections", "OrderedDict"), b")RtR"]
    return b"".join([*out, b"u."])


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode("ascii")


def _number(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(data)]) + data


def _numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"
