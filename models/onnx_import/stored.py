"""Tensors of an ONNX model where they lie: in the model's own file, or in a file beside it (external data)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from ..matrix_view import MatrixView, row_major
from .proto import (
    BFLOAT16,
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT8,
    FLOAT16,
    INT4,
    INT8,
    INT32,
    INT64,
    ITEM_BYTES,
    NIBBLES,
    TYPE_NAMES,
    UINT4,
    UINT8,
    TensorProto,
    bytes_of,
)

DAMAGED = "export the model again, or download the file again"
_NUMPY: dict[int, str] = {
    FLOAT: "<f4", UINT8: "u1", INT8: "i1", INT32: "<i4", INT64: "<i8", BOOL: "?", FLOAT16: "<f2", BFLOAT16: "<u2",
    FLOAT8: "u1", DOUBLE: "<f8",
}  # fmt: skip
_LISTED = {FLOAT16: "<u2", BFLOAT16: "<u2", FLOAT8: "u1", UINT4: "u1", INT4: "u1"}
"""What a number of a list has the bits of, where that is not its own type."""
ENCODINGS = {FLOAT: "f32", FLOAT16: "f16", BFLOAT16: "bf16"}
"""Element types of weights as encodings of a checkpoint."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, row-major; `transposed` means that its matrix is seen with its axes exchanged.

    cast_to: the element type that the graph converts it to before any use, 0 for none. held: the bytes of a small
    tensor that the file stores as a list of numbers.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    file: Path
    offset: int
    transposed: bool = False
    cast_to: int = 0
    held: bytes | None = None

    @property
    def used_type(self) -> int:
        """The element type in which it is used."""
        return self.cast_to or self.type

    @property
    def seen(self) -> tuple[int, ...]:
        """Its shape as it is seen."""
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def encoding(self) -> str:
        """Of a weight: LLC0209 for a type that no weight has."""
        if self.type not in ENCODINGS:
            found = TYPE_NAMES.get(self.type, f"type {self.type}")
            hint = f"supported: {', '.join(TYPE_NAMES[kind] for kind in ENCODINGS)}"
            raise LlamacError("LLC0209", self.name, f"stored as {found}", hint)
        return ENCODINGS[self.type]

    def turned(self) -> Stored:
        """The same matrix, seen with its axes exchanged."""
        return replace(self, transposed=not self.transposed)

    def view(self) -> MatrixView:
        """The matrix as it is seen; a vector is one row."""
        if self.held is not None:
            raise LlamacError("LLC0936", self.name, "a weight that is stored as a list of numbers", DAMAGED)
        item = ITEM_BYTES[self.type]
        shape = self.shape if len(self.shape) == 2 else (1, self.count)
        rows, columns = row_major(shape)
        view = MatrixView(self.file, self.offset, *shape, rows * item, columns * item)
        return view.transposed if self.transposed else view

    def raw(self, start: int, count: int) -> bytes:
        """Bytes [start, start + count) of it; LLC0203 when the file ends early."""
        if self.held is not None:
            return self.held[start : start + count]
        with self.file.open("rb") as file:
            file.seek(self.offset + start)
            data = file.read(count)
        if len(data) < count:
            raise LlamacError("LLC0203", self.name, f"{self.file.name} ended early", "download it again")
        return data

    def read(self, limit: int) -> NDArray[Any]:
        """All of it as an array, floats as float32; LLC0936 when it has more than `limit` elements."""
        if self.count > limit:
            raise LlamacError("LLC0936", self.name, f"a constant of {self.count} elements", DAMAGED)
        if self.type in NIBBLES:
            found = nibbles(self.raw(0, bytes_of(self.type, self.count)), self.type)[: self.count].reshape(self.shape)
            return found.T if self.transposed else found
        data = self.raw(0, self.count * ITEM_BYTES[self.type])
        found = np.frombuffer(data, np.dtype(_NUMPY[self.type])).reshape(self.shape)
        if self.type == BFLOAT16:
            found = (found.astype("<u4") << 16).view("<f4")
        found = found.astype(np.float32) if self.type in (FLOAT16, DOUBLE) else found
        return found.T if self.transposed else found


def nibbles(data: bytes, kind: int) -> NDArray[Any]:
    """4-bit integers, two a byte, one a byte: uint8, or int8 where they are signed."""
    packed = np.frombuffer(data, np.uint8)
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)
    return pairs if kind == UINT4 else (pairs ^ 8).view(np.int8) - np.int8(8)


def locate(tensor: TensorProto, file: Path) -> Stored:
    """Where a tensor of the model in `file` lies; its place and length are checked, and that it is in the folder.

    Raises LLC0936 for what does not fit, LLC0205 for a file that is missing, LLC0209 for an unknown type.
    """
    if tensor.type not in TYPE_NAMES:
        hint = f"supported: {', '.join(TYPE_NAMES.values())}"
        raise LlamacError("LLC0209", tensor.name, f"stored as ONNX type {tensor.type}", hint)
    wanted = bytes_of(tensor.type, tensor.count)
    if tensor.is_external:
        path, offset = _external(tensor, file, wanted)
        return Stored(tensor.name, tensor.shape, tensor.type, path, offset)
    if tensor.place is None and tensor.values:
        return _listed(tensor, file)
    if tensor.place is None or tensor.place[1] != wanted:
        found = 0 if tensor.place is None else tensor.place[1]
        reason = f"{found} bytes are stored, its shape {list(tensor.shape)[:8]} needs {wanted}"
        raise LlamacError("LLC0936", tensor.name or file.name, reason, DAMAGED)
    return Stored(tensor.name, tensor.shape, tensor.type, file, tensor.place[0])


def _external(tensor: TensorProto, model: Path, wanted: int) -> tuple[Path, int]:
    location = tensor.external.get("location", "")
    path = _inside(tensor.name, location, model)
    if not path.is_file():
        raise LlamacError("LLC0205", location[:200], f"missing; it holds {tensor.name[:120]}", DAMAGED)
    offset = _number(tensor, "offset", 0)
    length = _number(tensor, "length", wanted)
    size = path.stat().st_size
    if length != wanted or offset + wanted > size:
        reason = f"bytes {offset} to {offset + length} of {location[:80]} ({size} bytes), its shape needs {wanted}"
        raise LlamacError("LLC0936", tensor.name, reason, DAMAGED)
    return path, offset


def _inside(name: str, location: str, model: Path) -> Path:
    """The file beside the model that a tensor names; it may not lead out of the folder, not even by a link."""
    folder = model.parent.resolve()
    parts = location.replace("\\", "/").split("/")
    is_plain = bool(location) and not location.startswith(("/", "\\")) and not set(location) & set("\0:")
    found = folder.joinpath(*parts) if is_plain else folder
    if not is_plain or ".." in parts or not found.resolve().is_relative_to(folder) or found == folder:
        reason = f"its data is said to be in {location[:80]!r}, which is not in the model's folder"
        raise LlamacError("LLC0936", name, reason, "export the model with its data beside it")
    return found


def _number(tensor: TensorProto, key: str, default: int) -> int:
    text = tensor.external.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise LlamacError("LLC0936", tensor.name, f"its {key} is {text[:40]!r}", DAMAGED)
    return int(text)


def small_values(tensor: TensorProto, file: Path, limit: int) -> NDArray[Any]:
    """A small tensor as an array: what a constant holds (LLC0936 when it is larger than `limit`)."""
    return locate(tensor, file).read(limit)


def _listed(tensor: TensorProto, file: Path) -> Stored:
    """A tensor that is stored as a list of numbers: floats of 16 and 8 bits by their bits, 4-bit integers in pairs."""
    where, dtype = tensor.name or file.name, _LISTED.get(tensor.type) or _NUMPY.get(tensor.type)
    wanted = bytes_of(tensor.type, tensor.count) if tensor.type in NIBBLES else tensor.count
    if dtype is None or wanted != len(tensor.values):
        reason = f"{len(tensor.values)} values are stored, its shape is {list(tensor.shape)[:8]}"
        raise LlamacError("LLC0936", where, reason, DAMAGED)
    given = np.array(tensor.values)
    with np.errstate(over="ignore", invalid="ignore"):
        held = given.astype(dtype)
    if given.dtype.kind in "iu" and (held != given).any():
        raise LlamacError("LLC0936", where, "a value outside its type", DAMAGED)
    return Stored(tensor.name, tensor.shape, tensor.type, file, 0, held=held.tobytes())
