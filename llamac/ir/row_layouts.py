"""Packed weight formats of the layout `gpu-rows16`: each row is a run of 16-byte units, what one thread loads at once.

A matrix of N rows and K columns is up to three sections, each at a multiple of 256 bytes: quants | scales | minima.
K is padded with zeros to KP; N is not padded.

* dense (`f32 f16 bf16`): rows of KP elements, KP a multiple of a unit's 4 or 8. `e4m3fn`: rows of KP bytes, KP a
  multiple of 16, then N f32 scales. Negative zero is stored as zero, so that the same bytes are e4m3fnuz of half the
  value.
* 4-bit quants: a unit is four little-endian words of 32 columns; nibble j of word i is column 4 j + i, so that for each
  j a thread multiplies four consecutive activations. 8-bit quants: byte j of word i is column 4 j + i of 16. Signed
  quants are stored with 8 or 128 added; KP is a multiple of the group and of 32. Scales and minima: [N][KP / group], in
  the types that the format names.

Formats are those of `llamac.ir.layouts`, names and values alike; only where the bytes lie differs. While a matrix is
evaluated block by block, a row is one *record*: its quants, its scales, its minima; the sections are made of those
columns of all records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dtypes import BF16, E4M3FN, F16, F32, DType, widen
from .layouts import WeightFormat

LAYOUT = "gpu-rows16"
UNIT = 16
SECTION = 256
_NEGATIVE_ZERO = 0x80


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class RowLayout:
    """Where the parts of a matrix of `rows` x `columns` in `format` lie."""

    format: WeightFormat
    rows: int
    columns: int

    @property
    def padded_columns(self) -> int:
        """KP: columns as stored."""
        if not self.format.is_dense:
            return _padded(self.columns, max(self.format.group, 32))
        return _padded(self.columns, UNIT * 8 // self.format.quants.bits)

    @property
    def scale_columns(self) -> int:
        """Scales of one row; 0 for formats without."""
        if self.format.is_dense:
            return 1 if self.format.quants is E4M3FN else 0
        return self.padded_columns // self.format.group

    @property
    def scale(self) -> DType | None:
        """The type of the scales, if there are any."""
        return F32 if self.format.quants is E4M3FN else self.format.scale

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of quants."""
        return self.padded_columns * self.format.quants.bits // 8

    @property
    def scales_at(self) -> int:
        """The offset of the scales."""
        return _padded(self.rows * self.row_bytes, SECTION)

    @property
    def minima_at(self) -> int:
        """The offset of the minima."""
        return _padded(self.scales_at + self._section_bytes(self.scale), SECTION)

    @property
    def bytes(self) -> int:
        """Bytes of the whole matrix."""
        end = self.minima_at + self._section_bytes(self.format.minimum)
        return _padded(end, SECTION)

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales of one row."""
        return self._each_bytes(self.scale)

    @property
    def minimum_bytes(self) -> int:
        """Bytes of the minima of one row."""
        return self._each_bytes(self.format.minimum)

    @property
    def record_bytes(self) -> int:
        """Bytes of a row's record."""
        return self.row_bytes + self.scale_bytes + self.minimum_bytes

    @property
    def sections(self) -> tuple[tuple[int, int], ...]:
        """(offset in the matrix, bytes of each record) of the sections that there are."""
        parts = (0, self.row_bytes), (self.scales_at, self.scale_bytes), (self.minima_at, self.minimum_bytes)
        return tuple(part for part in parts if part[1])

    def _each_bytes(self, dtype: DType | None) -> int:
        return self.scale_columns * dtype.bits // 8 if dtype is not None else 0

    def _section_bytes(self, dtype: DType | None) -> int:
        return self.rows * self._each_bytes(dtype)


def pack_records(
    layout: RowLayout, values: np.ndarray, scale: np.ndarray | None = None, minimum: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [N, record_bytes]: any N rows of `values` [N, K] in the storage type of the quants, scales and minima."""
    fmt, rows = layout.format, len(values)
    stored = np.zeros((rows, layout.padded_columns), fmt.quants.storage)
    stored[:, : layout.columns] = values
    body = stored.view(np.uint8)
    if not fmt.is_dense:
        body = _words(body + np.uint8(fmt.offset), fmt.quants.bits).view(np.uint8)
    elif fmt.quants is E4M3FN:
        body = np.where(body == _NEGATIVE_ZERO, np.uint8(0), body)
    parts = [body]
    for dtype, section in ((layout.scale, scale), (fmt.minimum, minimum)):
        if dtype is not None and section is not None:
            filled = np.zeros((rows, layout.scale_columns), dtype.storage)
            filled[:, : section.shape[1]] = section
            parts.append(filled.view(np.uint8))
    return np.concatenate(parts, axis=1)


def unpack_records(layout: RowLayout, records: np.ndarray) -> np.ndarray:
    """The f32 values [N, K] that N records stand for: the inverse of `pack_records`."""
    fmt, rows = layout.format, len(records)
    body = np.ascontiguousarray(records[:, : layout.row_bytes])
    if fmt.is_dense:
        values = widen(body.view(fmt.quants.storage))
    else:
        values = _quants(body, fmt.quants.bits).astype(np.float32) - np.float32(fmt.offset)
    group = fmt.group or layout.padded_columns
    start = layout.row_bytes
    for dtype, nbytes in ((layout.scale, layout.scale_bytes), (fmt.minimum, layout.minimum_bytes)):
        if dtype is not None and nbytes:
            section = np.ascontiguousarray(records[:, start : start + nbytes]).view(dtype.storage)
            spread = np.repeat(widen(section).reshape(rows, -1), group, axis=1)
            values = values * spread if start == layout.row_bytes else values + spread
            start += nbytes
    return np.asarray(values[:, : layout.columns])


def pack_rows(
    layout: RowLayout, values: np.ndarray, scale: np.ndarray | None = None, minimum: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [layout.bytes]: a whole matrix in its sections."""
    out, start = np.zeros(layout.bytes, np.uint8), 0
    records = pack_records(layout, values, scale, minimum)
    for offset, nbytes in layout.sections:
        out[offset : offset + layout.rows * nbytes] = records[:, start : start + nbytes].reshape(-1)
        start += nbytes
    return out


def unpack_rows(layout: RowLayout, packed: np.ndarray) -> np.ndarray:
    """The f32 values [N, K] of a matrix in its sections: the inverse of `pack_rows`."""
    parts = [packed[at : at + layout.rows * n].reshape(layout.rows, n) for at, n in layout.sections]
    return unpack_records(layout, np.concatenate(parts, axis=1))


def _words(quants: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned quants [N, KP], one a byte, as words [N, KP * bits / 32]: quant j of word i is column 4 j + i."""
    steps = 32 // bits
    units = quants.reshape(len(quants), -1, steps, 4).astype(np.uint32)
    shifted = units << (np.arange(steps, dtype=np.uint32) * np.uint32(bits))[:, None]
    return np.asarray(np.bitwise_or.reduce(shifted, axis=2).reshape(len(quants), -1).astype("<u4"))


def _quants(body: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `_words`: uint8 [N, KP]."""
    steps = 32 // bits
    words = np.ascontiguousarray(body).view("<u4").reshape(len(body), -1, 1, 4)
    shifts = (np.arange(steps, dtype=np.uint32) * np.uint32(bits))[:, None]
    return np.asarray(((words >> shifts) & np.uint32((1 << bits) - 1)).astype(np.uint8).reshape(len(body), -1))


def between_type(fmt: WeightFormat) -> DType:
    """The type of activations that one kernel of a layer hands to the next: that of the weights, or bf16."""
    return fmt.quants if fmt.quants in (F16, F32) else BF16
