"""Matrices of integers with scales, however an exporter stores them: `scale * (quants - zeros) + minima`.

MatMulNBits, GatherBlockQuantized and DequantizeLinear differ in how integers lie (4 bits in pairs along rows or
columns, 8 bits), in what shares a scale (a group, a row, everything) and in where zero is (the middle of the range, a
point of each group, a fraction). All become integers one a byte, scales and minima, which a reader makes of the rows
asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.ir.dtypes import DTYPES, widen

from ..checkpoint import StoredTensor
from ..packed_encoding import KERNEL_GROUPS, PackedEncoding, packed_tensor, part_bytes
from .elements import rows_of
from .proto import FLOAT, FLOAT8, INT4, INT8, NIBBLES, UINT4, UINT8
from .stored import DAMAGED, ENCODINGS, Stored

INTEGERS = (INT4, UINT4, INT8, UINT8)
SIGNED = (INT4, INT8)
MOST_ZEROS = 1 << 24
"""Zero points that are compared to find that they are all one."""

Read = Callable[[int, int], NDArray[Any]]
"""Rows [lo, hi) of a part, in the storage of its encoding."""


@dataclass(frozen=True)
class Packed:
    """A matrix seen as `shape`; its parts are seen with one row for each of its rows.

    quants: may have more columns than the matrix. scales, zeros, minima: [rows, groups], or one number everywhere.
    group: the columns that share a scale, 0 for all of a row. factor: minima have `factor * scale` besides.
    """

    quants: Stored
    scales: Stored | float
    shape: tuple[int, int]
    group: int = 0
    zeros: Stored | float = 0.0
    minima: Stored | None = None
    factor: float = 0.0

    @property
    def name(self) -> str:
        return self.quants.name

    @property
    def bits(self) -> int:
        """Of an integer as it is kept: of signed bytes that are said to be 0..15 less 8, four."""
        return 4 if self.quants.type in NIBBLES or (self.quants.type == INT8 and self.factor == 8) else 8

    def turned(self) -> Packed:
        """The same matrix, seen with its axes exchanged."""
        parts = (self.scales, self.zeros, self.minima)
        scales, zeros, minima = (part.turned() if isinstance(part, Stored) else part for part in parts)
        assert scales is not None and zeros is not None and not isinstance(minima, float)
        shape = (self.shape[1], self.shape[0])
        return replace(self, quants=self.quants.turned(), scales=scales, zeros=zeros, minima=minima, shape=shape)

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.shape[1] // self.group) if self.group else 1

    def misfit(self) -> str:
        """Why it cannot be multiplied with, its rows being outputs; "" when it can."""
        rows, columns = self.quants.seen
        if rows != self.shape[0] or columns < self.shape[1]:
            return f"integers of shape {list(self.quants.seen)} for {self.shape[0]} x {self.shape[1]}"
        if self.group and self.group not in KERNEL_GROUPS and self.group % KERNEL_GROUPS[-1]:
            return f"groups of {self.group}, and kernels have those of {', '.join(map(str, KERNEL_GROUPS))}"
        wanted = (self.shape[0], self.groups)
        padded = (wanted[0], wanted[1] + 1)  # of zero points, two of which are a byte
        for part, fits in ((self.scales, [wanted]), (self.zeros, [wanted, padded]), (self.minima, [wanted])):
            if isinstance(part, Stored) and part.seen not in fits:
                what = f"{rows} rows of {self.groups} groups"
                return f"scales, zero points or minima of shape {list(part.seen)} for {what}"
        if isinstance(self.scales, Stored) and self.scales.type not in ENCODINGS:
            return "scales that are no floats"
        if self.quants.type == FLOAT8 and self._offset != 0:
            return "zero points of floats"
        return ""

    @property
    def _offset(self) -> float | None:
        """What is added to the stored integers and is the same for all; None where minima say it."""
        return self.factor - self.zeros if isinstance(self.zeros, float) else None

    @property
    def _shift(self) -> int | None:
        """What turns the stored integers into kept ones with no minimum but a stored one; None where that is not so."""
        middle, is_signed = 1 << (self.bits - 1), self.quants.type in SIGNED
        return int(self._offset) if self._offset in (0, middle if is_signed else -middle) else None

    @property
    def layout(self) -> str:
        """The layout of `PackedEncoding` that it is kept in."""
        if self.quants.type == FLOAT8:
            return "fp8"
        is_signed = (self.quants.type in SIGNED) == (not self._shift)
        return f"{'i' if is_signed else 'u'}{self.bits}"

    @property
    def has_minima(self) -> bool:
        return self.minima is not None or self._shift is None

    @property
    def packed_encoding(self) -> PackedEncoding:
        scale = "f32" if isinstance(self.scales, float) or self.scales.held is not None else self.scales.encoding
        return PackedEncoding(self.layout, self.group, not self.has_minima, scale)

    @property
    def encoding(self) -> str:
        return str(self.packed_encoding)

    def rows(self, name: str, lo: int, hi: int) -> tuple[StoredTensor, dict[str, Read]]:
        """Rows [lo, hi) of it as the weight `name`, and what reads its parts, by their names."""
        encoding, shape = self.packed_encoding, (hi - lo, self.shape[1])
        readers: dict[str, Callable[[int, int], NDArray[Any]]] = {
            "scale": self._scale, "quants": self._quants, "mins": self._minima
        }  # fmt: skip
        parts, reads, nbytes = {}, {}, 0
        for part, (size, stored_as) in encoding.parts(*shape).items():
            called, read = f"{name}.{part}", readers[part]
            held = part_bytes(size, stored_as)
            place = (self.quants.file, self.quants.offset, held)
            parts[part] = StoredTensor(called, self.name, size, stored_as, *place)
            reads[called] = _from_row(read, lo)
            nbytes += held // 2 if part == "quants" and self.bits == 4 else held
        return replace(packed_tensor(name, shape, encoding, parts), nbytes=nbytes), reads

    def _quants(self, lo: int, hi: int) -> NDArray[Any]:
        found = rows_of(self.quants, lo, hi)[:, : self.shape[1]]
        if self.quants.type == FLOAT8 or not self._shift:
            return found
        moved = found.astype(np.int16) + np.int16(self._shift)
        if self.bits == 4 and ((moved < (0 if self.layout == "u4" else -8)) | (moved > 15)).any():
            raise LlamacError("LLC0936", self.name, "an integer that does not fit 4 bits", DAMAGED)
        return moved.astype(np.uint8 if self.layout.startswith("u") else np.int8)

    def _scale(self, lo: int, hi: int) -> NDArray[Any]:
        return self._spread(self.scales, lo, hi).astype(DTYPES[self.packed_encoding.scale].storage, copy=False)

    def _minima(self, lo: int, hi: int) -> NDArray[Any]:
        stored = np.float32(0) if self.minima is None else widen(self._spread(self.minima, lo, hi))
        if self._shift is not None:
            return np.asarray(stored)
        zeros = widen(self._spread(self.zeros, lo, hi))
        lifted = widen(self._spread(self.scales, lo, hi)) * (np.float32(self.factor) - zeros)
        return np.asarray(stored + lifted, np.float32)

    def _spread(self, part: Stored | float, lo: int, hi: int) -> NDArray[Any]:
        """One number for each group of rows [lo, hi)."""
        if isinstance(part, float):
            return np.full((hi - lo, self.groups), part, np.float32)
        return rows_of(part, lo, hi)[:, : self.groups]


def _from_row(read: Read, start: int) -> Read:
    return lambda lo, hi: read(start + lo, start + hi)


def one_number(part: Stored, groups: int) -> Stored | float:
    """Zero points of so many groups that are all one number, as that; those of MOST_ZEROS at most are compared."""
    if part.count > MOST_ZEROS or part.count == 0:
        return part
    found = part.read(MOST_ZEROS)
    found = found if part.transposed else found[:, :groups]
    first = float(found.reshape(-1)[0])
    return first if (found == first).all() else part


def as_integers(stored: Stored, bits: int, shape: tuple[int, int]) -> Stored:
    """Bytes that hold integers row by row, as what they hold; LLC0936 where they are not as many."""
    if stored.type in NIBBLES or (bits == 8 and stored.type in (INT8, UINT8)):
        kind = stored.type
    else:
        kind = UINT4 if bits == 4 else UINT8
    if (
        stored.transposed
        or stored.type not in INTEGERS
        or stored.count * (1 if kind == stored.type else 2) != (shape[0] * shape[1])
    ):
        reason = f"{stored.count} stored integers for {shape[0]} x {shape[1]}"
        raise LlamacError("LLC0936", stored.name, reason, DAMAGED)
    return replace(stored, type=kind, shape=shape)


def group_of(block: int, columns: int) -> int:
    """The group of blocks along so many columns: 0 where one block of an odd size is all there is."""
    return 0 if block >= columns and block not in KERNEL_GROUPS else block


def is_float(stored: Stored) -> bool:
    """Whether it holds floats, as they are or widened."""
    return stored.type in ENCODINGS and stored.cast_to in (0, stored.type, FLOAT)
