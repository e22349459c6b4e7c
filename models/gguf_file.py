"""The GGUF container (versions 2 and 3, little-endian): a bounds-checked parser of metadata and tensor table.

Written against the format description of ggml; every count and length is checked against what is left of the file
before anything is allocated.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from llamac.errors import LlamacError

from .checkpoint import BLOCKS, ONLY_IN_PARTS, bytes_of
from .input_files import check_not_lfs_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: dict[int, str] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    BOOL: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
"""Value type -> struct format."""

TYPE_NAMES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""Tensor type number -> its name in ggml; `BLOCKS` holds those that are read, in lower case."""

NESTING_LIMIT = 4
ARRAY_LIMIT = 1 << 24
TEXT_LIMIT = 1 << 26
"""Most elements of a metadata array and most bytes of a string: beyond any vocabulary and any chat template."""

REPAIR = "download the file again"


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table. `shape` is row-major (reversed from the file); `offset`: from the file's start.

    `encoding` is None for a type that is not read; its size is then unknown and `nbytes` is 0.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    encoding: str | None
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """Metadata (numbers, booleans, strings and lists of them) and tensor table of one file."""

    path: Path
    version: int
    metadata: dict[str, object]
    tensors: list[GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Parse a GGUF file; no tensor data is touched.

    Raises LLC0202 (git-lfs pointer), LLC0203 (truncated), LLC0211 (magic, version, byte order),
    LLC0212 (metadata) or LLC0213 (tensor table).
    """
    try:
        check_not_lfs_pointer(path)
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise LlamacError("LLC0203", path.name, "the file is empty", REPAIR)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, _Cursor(data, path.name))
    except OSError as error:
        raise LlamacError("LLC0201", path.name, f"cannot be read: {error.strerror}", "check its permissions") from None


def _parse(path: Path, cursor: _Cursor) -> GgufFile:
    version = _version(cursor)
    tensor_count, pair_count = cursor.number("<Q"), cursor.number("<Q")
    # A table row takes at least 8 + 4 + 8 + 4 + 8 bytes, a pair 8 + 1 + 4 + 1: a count beyond that cannot be true.
    cursor.require(tensor_count, 32, "tensors")
    cursor.require(pair_count, 14, "metadata pairs")
    metadata: dict[str, object] = {}
    for _ in range(pair_count):
        key = cursor.text(65535, "a metadata key")
        if key in metadata:
            raise LlamacError("LLC0212", path.name, f"the key {key[:80]!r} appears twice", REPAIR)
        metadata[key] = cursor.value(int(cursor.number("<I")), key, 0)
    rows = [cursor.tensor_row() for _ in range(tensor_count)]
    start = _aligned(cursor.position, _alignment(path, metadata))
    return GgufFile(path, version, metadata, _tensors(path, rows, start, len(cursor.data), _alignment(path, metadata)))


def _version(cursor: _Cursor) -> int:
    magic = cursor.take(4)
    if magic != MAGIC:
        raise LlamacError("LLC0211", cursor.where, f"starts with {magic!r}, expected {MAGIC!r}", "pass a GGUF file")
    version = int(cursor.number("<I"))
    if version not in VERSIONS:
        reason = f"GGUF version {version} is not read"
        if version and version & 0xFFFF == 0:
            reason = "this is a big-endian GGUF file, which is not read"
        raise LlamacError("LLC0211", cursor.where, reason, "convert the checkpoint with a current llama.cpp")
    return version


def _alignment(path: Path, metadata: dict[str, object]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value & (value - 1) or value > 1 << 30:
        reason = f"general.alignment is {str(value)[:40]}, expected a power of two"
        raise LlamacError("LLC0212", path.name, reason, REPAIR)
    return value


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


TableRow = tuple[str, tuple[int, ...], int, int]
"""Name, row-major shape, type number, offset within the data section."""


def _tensors(path: Path, rows: list[TableRow], start: int, size: int, alignment: int) -> list[GgufTensor]:
    """Check every row of the table against the file and against the other rows."""
    tensors: list[GgufTensor] = []
    names: set[str] = set()
    for name, shape, number, offset in rows:
        if name in names:
            _bad_table(path, f"the tensor {name[:80]!r} appears twice")
        names.add(name)
        if offset % alignment:
            _bad_table(path, f"{name[:80]}: offset {offset} is no multiple of {alignment}")
        type_name = TYPE_NAMES.get(number, f"type {number}")
        encoding = type_name.lower() if type_name.lower() in BLOCKS.keys() - ONLY_IN_PARTS else None
        nbytes = bytes_of(encoding, shape) if encoding else 0
        if nbytes is None:
            _bad_table(path, f"{name[:80]}: a row of {shape[-1]} values is no whole number of {type_name} blocks")
        if start + offset + nbytes > size:
            reason = f"the file ends at byte {size}; {name[:80]} goes on to byte {start + offset + nbytes}"
            raise LlamacError("LLC0203", path.name, reason, REPAIR)
        tensors.append(GgufTensor(name, shape, type_name, encoding, start + offset, nbytes))
    _check_overlap(path, tensors)
    return tensors


def _check_overlap(path: Path, tensors: list[GgufTensor]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset < end:
            _bad_table(path, f"{tensor.name[:80]} overlaps {before[:80]}")
        end, before = tensor.offset + tensor.nbytes, tensor.name


def _bad_table(path: Path, reason: str) -> NoReturn:
    raise LlamacError("LLC0213", path.name, reason, REPAIR)


class _Cursor:
    """Reads forward through the file; every read is checked against its end."""

    def __init__(self, data: mmap.mmap, where: str) -> None:
        self.data = data
        self.where = where
        self.position = 0

    def require(self, count: int, least: int, what: str) -> None:
        """The file must still have room for `count` things of at least `least` bytes each."""
        left = len(self.data) - self.position
        if count * least > left:
            reason = f"the file ends after {len(self.data)} bytes, before its {count} {what}"
            raise LlamacError("LLC0203", self.where, reason, REPAIR)

    def take(self, count: int) -> bytes:
        self.require(count, 1, "bytes of header")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def text(self, limit: int, what: str) -> str:
        length = self.number("<Q")
        if length > limit:
            raise LlamacError("LLC0212", self.where, f"{what} of {length} bytes", REPAIR)
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise LlamacError("LLC0212", self.where, f"{what} is not UTF-8", REPAIR) from None

    def value(self, kind: int, key: str, depth: int) -> object:
        """One metadata value of type `kind`; arrays become lists."""
        if kind == STRING:
            return self.text(TEXT_LIMIT, key[:80])
        if kind in SCALARS:
            return self.take(1) != b"\0" if kind == BOOL else self.number(SCALARS[kind])
        if kind != ARRAY or depth == NESTING_LIMIT:
            raise LlamacError("LLC0212", self.where, f"{key[:80]} has the unknown value type {kind}", REPAIR)
        return self._array(key, depth)

    def _array(self, key: str, depth: int) -> list[object]:
        kind, count = self.number("<I"), self.number("<Q")
        if count > ARRAY_LIMIT:
            raise LlamacError("LLC0212", self.where, f"{key[:80]} holds {count} values", REPAIR)
        if kind in SCALARS:
            layout = SCALARS[kind]
            self.require(count, struct.calcsize(layout), f"values of {key[:80]}")
            raw = self.take(count * struct.calcsize(layout))
            return list(struct.unpack(f"<{count}{layout[1]}", raw))
        # A string takes at least its 8-byte length, an array its type and count.
        self.require(count, 8, f"values of {key[:80]}")
        return [self.value(kind, key, depth + 1) for _ in range(count)]

    def tensor_row(self) -> TableRow:
        name = self.text(65535, "a tensor name")
        dimensions = self.number("<I")
        if not 1 <= dimensions <= 4:
            raise LlamacError("LLC0213", self.where, f"{name[:80]} has {dimensions} dimensions", REPAIR)
        sizes = [self.number("<Q") for _ in range(dimensions)]
        elements = 1
        for size in sizes:
            elements *= size
        if not 0 < elements < 1 << 48:
            raise LlamacError("LLC0213", self.where, f"{name[:80]} has the shape {sizes[::-1]}", REPAIR)
        return name, tuple(reversed(sizes)), self.number("<I"), self.number("<Q")
