"""Takes packed matrices apart again, without arithmetic: the very quants, scales and minima that were packed.

`layouts.unpack` and `row_layouts.unpack_rows` give values; here are the parts, so that a matrix can be packed in the
other layout with no number changed.
"""

from __future__ import annotations

import numpy as np

from .dtypes import E4M3FN, F32, DType
from .layouts import PANEL, WeightFormat
from .row_layouts import RowLayout

Parts = list[np.ndarray]
"""Quants or values [N, K] in their storage type, then scales [N, groups] and minima where a format has them."""


def panel_parts(fmt: WeightFormat, packed: np.ndarray, columns: int) -> Parts:
    """The parts of panels, uint8 [P, panel_bytes]: 16 P rows of `columns`, the rows of padding at the end included."""
    panels, k = len(packed), fmt.padded_columns(columns)
    _, scales_at, mins_at, _ = fmt.sections(columns)
    body = np.ascontiguousarray(packed[:, : k * PANEL * fmt.quants.bits // 8])
    if fmt.is_dense:
        width = 2 if fmt.in_pairs else 1
        lanes = body.view(fmt.quants.storage).reshape(panels, k // width, PANEL, width).transpose(0, 2, 1, 3)
    else:
        lanes = _panel_quants(body, k, fmt)
    parts = [np.ascontiguousarray(lanes.reshape(panels * PANEL, k)[:, :columns])]
    groups = 1 if fmt.is_dense else -(-columns // fmt.group)
    stored = 1 if fmt.is_dense else k // fmt.group
    scale = F32 if fmt.quants is E4M3FN else fmt.scale
    for dtype, start in ((scale, scales_at), (fmt.minimum, mins_at)):
        if dtype is not None:
            parts.append(_panel_section(packed, start, stored, dtype)[:, :groups])
    return parts


def _panel_quants(body: np.ndarray, k: int, fmt: WeightFormat) -> np.ndarray:
    if fmt.quants.bits == 8:
        lanes = body.reshape(len(body), k // 4, PANEL, 4).transpose(0, 2, 1, 3)
    else:
        both = body.reshape(len(body), k // 8, 1, PANEL, 4)
        lanes = np.concatenate([both & 15, both >> 4], axis=2).transpose(0, 3, 1, 2, 4)
    return _signed(lanes, fmt)


def _panel_section(packed: np.ndarray, start: int, groups: int, dtype: DType) -> np.ndarray:
    body = np.ascontiguousarray(packed[:, start : start + groups * PANEL * dtype.bits // 8]).view(dtype.storage)
    return np.ascontiguousarray(body.reshape(-1, groups, PANEL).transpose(0, 2, 1).reshape(-1, groups))


def row_parts(layout: RowLayout, sections: list[np.ndarray]) -> Parts:
    """The parts of rows, given as uint8 [N, bytes of a row] for each section that the layout has."""
    fmt = layout.format
    body = np.ascontiguousarray(sections[0])
    if fmt.is_dense:
        quants = body.view(fmt.quants.storage)
    else:
        steps = 32 // fmt.quants.bits
        words = body.view("<u4").reshape(len(body), -1, 1, 4)
        shifts = (np.arange(steps, dtype=np.uint32) * np.uint32(fmt.quants.bits))[:, None]
        unsigned = ((words >> shifts) & np.uint32((1 << fmt.quants.bits) - 1)).astype(np.uint8)
        quants = _signed(unsigned.reshape(len(body), -1), fmt)
    groups = 1 if fmt.is_dense else -(-layout.columns // fmt.group)
    dtypes = [dtype for dtype in (layout.scale, fmt.minimum) if dtype is not None]
    rest = [
        np.ascontiguousarray(section).view(dtype.storage)[:, :groups]
        for section, dtype in zip(sections[1:], dtypes, strict=True)
    ]
    return [np.ascontiguousarray(quants[:, : layout.columns]), *rest]


def _signed(unsigned: np.ndarray, fmt: WeightFormat) -> np.ndarray:
    """What was stored with 8 or 128 added, modulo 256, in the storage type of the quants."""
    return (unsigned - np.uint8(fmt.offset)).astype(np.uint8).view(fmt.quants.storage)
