"""Packed weight formats of the layout `cpu-panel16`: how an N x K matrix lies in memory for the CPU kernels.

A panel holds 16 output rows over the whole K, so that one vector lane is one output and a thread reads one linear
stream. Panels follow each other; N is padded to 16 with zeros. Inside a panel:

* dense (`f32 f16 bf16`): [k][16] elements. `e4m3fn`: [k][16] bytes, then 16 f32 row scales.
* in pairs (`bf16x2 e4m3fnx2`): [k / 2][16][2] elements, K padded to even; e4m3fn then 16 f32 row scales. Inputs are
  rounded to bf16 and multiplied two at a time.
* grouped (`i4g32s16m16`: quants, group, scale bits, min bits): sections quants | scales | mins, each at a multiple of
  64 bytes. 4-bit quants: 64-byte vector j covers k = 8j..8j+7; lane n, byte b holds k = 8j+b low and 8j+4+b high.
  8-bit quants: vector j covers k = 4j..4j+3. Signed quants are stored with 8 or 128 added. Scales, mins: [group][16].
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .definition import OpError
from .dtypes import BF16, E4M3FN, F16, F32, I4, I8, U4, U8, DType, widen

LAYOUT = "cpu-panel16"
PANEL = 16
_SECTION = 64
_DENSE = {t.name: t for t in (F32, F16, BF16, E4M3FN)}
_PAIRS = {f"{t.name}x2": t for t in (BF16, E4M3FN)}
IN_PAIRS = {t.name: name for name, t in _PAIRS.items()}
"""Dense format -> the one that holds the same weights in pairs, for inputs in bf16."""
_QUANTS = {t.name: t for t in (I4, U4, I8, U8)}
_FLOATS = {16: F16, 32: F32}


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class WeightFormat:
    """One packed format. `group` is 0 for the dense ones; `minimum` is None for symmetric quants.

    `in_pairs`: dense, multiplied with inputs rounded to bf16.
    """

    name: str
    quants: DType
    group: int = 0
    scale: DType | None = None
    minimum: DType | None = None
    in_pairs: bool = False

    @property
    def is_dense(self) -> bool:
        return self.group == 0

    @property
    def block(self) -> int:
        """Columns per int8 activation block that this format is multiplied with."""
        return min(self.group, 32)

    @property
    def offset(self) -> int:
        """What is added to signed quants so that they are stored unsigned."""
        return {"i4": 8, "i8": 128}.get(self.quants.name, 0)

    def padded_columns(self, columns: int) -> int:
        """K as stored: a whole number of groups and of 32-wide blocks; of 4 for e4m3fn; of 2 in pairs."""
        if self.in_pairs:
            return _padded(columns, 2)
        if self.is_dense:
            return _padded(columns, 4) if self.quants is E4M3FN else columns
        return _padded(columns, max(self.group, 32))

    def sections(self, columns: int) -> tuple[int, int, int, int]:
        """Byte offsets in a panel of quants, scales and mins, and the panel's size."""
        k = self.padded_columns(columns)
        scales = _padded(k * PANEL * self.quants.bits // 8, _SECTION)
        if self.is_dense:
            return 0, scales, scales, scales + (PANEL * 4 if self.quants is E4M3FN else 0)
        groups = k // self.group
        assert self.scale is not None
        mins = _padded(scales + groups * PANEL * self.scale.bits // 8, _SECTION)
        end = mins + (groups * PANEL * self.minimum.bits // 8 if self.minimum else 0)
        return 0, scales, mins, _padded(end, _SECTION)

    def panel_bytes(self, columns: int) -> int:
        return self.sections(columns)[3]

    def panels(self, rows: int) -> int:
        return _padded(rows, PANEL) // PANEL

    def packed_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a whole rows x columns matrix."""
        return self.panels(rows) * self.panel_bytes(columns)


def format_of(name: str) -> WeightFormat:
    """The format called `name` (OpError for a malformed name)."""
    if name in _DENSE:
        return WeightFormat(name, _DENSE[name])
    if name in _PAIRS:
        return WeightFormat(name, _PAIRS[name], in_pairs=True)
    found = re.fullmatch(r"(i4|u4|i8|u8)g(16|32|64|128)s(16|32)(?:m(16|32))?", name)
    if not found:
        raise OpError(f"'{name}' is not a weight format such as bf16, e4m3fn or i4g32s16")
    quants, group, scale, minimum = found.groups()
    return WeightFormat(
        name, _QUANTS[quants], int(group), _FLOATS[int(scale)], _FLOATS[int(minimum)] if minimum else None
    )


def grouped_name(quants: DType, group: int, scale: DType, minimum: DType | None) -> str:
    """The name of a grouped format."""
    return f"{quants.name}g{group}s{scale.bits}" + (f"m{minimum.bits}" if minimum else "")


def pack(fmt: WeightFormat, values: np.ndarray, scale: np.ndarray | None, minimum: np.ndarray | None) -> np.ndarray:
    """Pack rows of quants (and per-group scales and mins) into uint8 [panels, panel_bytes]."""
    rows, columns = values.shape
    panels, k = fmt.panels(rows), fmt.padded_columns(columns)
    out = np.zeros((panels, fmt.panel_bytes(columns)), np.uint8)
    if values.shape == (panels * PANEL, k):
        stored = np.ascontiguousarray(values, fmt.quants.storage)
    else:
        stored = np.zeros((panels * PANEL, k), fmt.quants.storage)
        stored[:rows, :columns] = values
    _, scales_at, mins_at, _ = fmt.sections(columns)
    lanes = stored.reshape(panels, PANEL, k)
    if fmt.in_pairs:
        pairs = lanes.reshape(panels, PANEL, k // 2, 2).transpose(0, 2, 1, 3)
        body = np.ascontiguousarray(pairs).view(np.uint8).reshape(panels, -1)
    elif fmt.is_dense:
        body = np.ascontiguousarray(lanes.transpose(0, 2, 1)).view(np.uint8).reshape(panels, -1)
    else:
        body = _pack_quants(lanes, fmt)
    out[:, : body.shape[1]] = body
    if scale is not None:
        _put_rows(out, scales_at, scale, rows, F32 if fmt.is_dense else fmt.scale)
    if minimum is not None:
        _put_rows(out, mins_at, minimum, rows, fmt.minimum)
    return out


def _pack_quants(lanes: np.ndarray, fmt: WeightFormat) -> np.ndarray:
    panels = lanes.shape[0]
    unsigned = lanes.view(np.uint8)
    if fmt.offset:
        unsigned = unsigned + np.uint8(fmt.offset)  # modulo 256, so two's complement needs no wider type
    if fmt.quants.bits == 8:
        words = unsigned.view("<u4")
    else:
        # Eight bytes 0..15 to four: the upper four, shifted to the high nibbles, over the lower four.
        eight = unsigned.view("<u8")
        words = (eight | eight >> np.uint64(28)).astype("<u4")
    return np.ascontiguousarray(words.transpose(0, 2, 1)).view(np.uint8).reshape(panels, -1)


def _put_rows(out: np.ndarray, start: int, values: np.ndarray, rows: int, dtype: DType | None) -> None:
    assert dtype is not None
    panels, groups = out.shape[0], values.shape[1]
    padded = np.zeros((panels * PANEL, groups), dtype.storage)
    padded[:rows] = values
    body = np.ascontiguousarray(padded.reshape(panels, PANEL, groups).transpose(0, 2, 1)).view(np.uint8)
    out[:, start : start + groups * PANEL * dtype.bits // 8] = body.reshape(panels, -1)


def unpack(fmt: WeightFormat, packed: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The f32 values [rows, columns] that a packed matrix stands for."""
    panels, k = packed.shape[0], fmt.padded_columns(columns)
    _, scales_at, mins_at, _ = fmt.sections(columns)
    if fmt.is_dense:
        body = np.ascontiguousarray(packed[:, : k * PANEL * fmt.quants.bits // 8]).view(fmt.quants.storage)
        width = 2 if fmt.in_pairs else 1
        lanes = widen(body).reshape(panels, k // width, PANEL, width).transpose(0, 2, 1, 3)
        values = lanes.reshape(panels * PANEL, k)
        if fmt.quants is E4M3FN:
            values = values * _take_rows(packed, scales_at, 1, F32)
        return np.asarray(values[:rows, :columns])
    groups = k // fmt.group
    quants = _unpack_quants(packed[:, : k * PANEL * fmt.quants.bits // 8], k, fmt).reshape(-1, groups, fmt.group)
    assert fmt.scale is not None
    values = quants * _take_rows(packed, scales_at, groups, fmt.scale)[:, :, None]
    if fmt.minimum:
        values = values + _take_rows(packed, mins_at, groups, fmt.minimum)[:, :, None]
    return np.asarray(values.reshape(-1, k)[:rows, :columns])


def _unpack_quants(body: np.ndarray, k: int, fmt: WeightFormat) -> np.ndarray:
    panels = body.shape[0]
    if fmt.quants.bits == 8:
        lanes = body.reshape(panels, k // 4, PANEL, 4).transpose(0, 2, 1, 3)
    else:
        both = body.reshape(panels, k // 8, 1, PANEL, 4)
        lanes = np.concatenate([both & 15, both >> 4], axis=2).transpose(0, 3, 1, 2, 4)
    return np.asarray(lanes.reshape(panels * PANEL, k).astype(np.float32) - np.float32(fmt.offset))


def _take_rows(packed: np.ndarray, start: int, groups: int, dtype: DType) -> np.ndarray:
    body = np.ascontiguousarray(packed[:, start : start + groups * PANEL * dtype.bits // 8]).view(dtype.storage)
    return widen(body).reshape(-1, groups, PANEL).transpose(0, 2, 1).reshape(-1, groups)
