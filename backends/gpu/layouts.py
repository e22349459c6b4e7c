"""The weight layout `gpu-rows16`: each row of a matrix is a run of 16-byte units, what one thread loads at once.

A matrix of N rows and K columns is up to three sections, each at a multiple of 256 bytes: quants | scales | minima.
K is padded with zeros to KP; N is not padded.

* dense (`f32 f16 bf16`): rows of KP elements, KP a multiple of a unit's 4 or 8. `e4m3fn`: rows of KP bytes, KP a
  multiple of 16, then N f32 scales. Negative zero is stored as zero, so that the same bytes are e4m3fnuz of half the
  value.
* 4-bit quants: a unit is four little-endian words of 32 columns; nibble j of word i is column 4 j + i, so that for each
  j a thread multiplies four consecutive activations. 8-bit quants: byte j of word i is column 4 j + i of 16. Signed
  quants are stored with 8 or 128 added; KP is a multiple of the group and of 32. Scales and minima: [N][KP / group], in
  the types that the format names.

Formats are those of `llamac.ir.layouts`, names and values alike; only where the bytes lie differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llamac.ir.dtypes import E4M3FN, F32, DType, widen
from llamac.ir.layouts import WeightFormat

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

    def _section_bytes(self, dtype: DType | None) -> int:
        return self.rows * self.scale_columns * dtype.bits // 8 if dtype is not None else 0


def pack_rows(
    layout: RowLayout, values: np.ndarray, scale: np.ndarray | None = None, minimum: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [layout.bytes]: `values` [N, K] in the storage type of the quants, scales and minima [N, groups]."""
    out = np.zeros(layout.bytes, np.uint8)
    fmt = layout.format
    stored = np.zeros((layout.rows, layout.padded_columns), fmt.quants.storage)
    stored[:, : layout.columns] = values
    body = stored.view(np.uint8)
    if not fmt.is_dense:
        body = _words(body + np.uint8(fmt.offset), fmt.quants.bits)
    elif fmt.quants is E4M3FN:
        body = np.where(body == _NEGATIVE_ZERO, np.uint8(0), body)
    _put(out, 0, body)
    for start, dtype, section in ((layout.scales_at, layout.scale, scale), (layout.minima_at, fmt.minimum, minimum)):
        if dtype is not None and section is not None:
            filled = np.zeros((layout.rows, layout.scale_columns), dtype.storage)
            filled[:, : section.shape[1]] = section
            _put(out, start, filled)
    return out


def unpack_rows(layout: RowLayout, packed: np.ndarray) -> np.ndarray:
    """The f32 values [N, K] that packed bytes stand for: the inverse of `pack_rows`."""
    fmt, rows = layout.format, layout.rows
    body = packed[: rows * layout.row_bytes].reshape(rows, -1)
    if fmt.is_dense:
        values = widen(np.ascontiguousarray(body).view(fmt.quants.storage))
    else:
        values = _quants(body, fmt.quants.bits).astype(np.float32) - np.float32(fmt.offset)
    group = fmt.group or layout.padded_columns
    for start, dtype, scaled in ((layout.scales_at, layout.scale, True), (layout.minima_at, fmt.minimum, False)):
        if dtype is not None:
            section = packed[start : start + rows * layout.scale_columns * dtype.bits // 8].view(dtype.storage)
            spread = np.repeat(widen(section).reshape(rows, -1), group, axis=1)
            values = values * spread if scaled else values + spread
    return np.asarray(values[:, : layout.columns])


def _put(out: np.ndarray, start: int, section: np.ndarray) -> None:
    flat = np.ascontiguousarray(section).reshape(-1).view(np.uint8)
    out[start : start + flat.size] = flat


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
