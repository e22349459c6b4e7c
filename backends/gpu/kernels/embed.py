"""Embedding: rows of a packed table as activations."""

from __future__ import annotations

import triton
import triton.language as tl

from .packed import load_tile
from .products import row_scaled


@triton.jit
def embed_rows(
    ids_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    y_ptr: tl.tensor,
    K: tl.constexpr,
    KP: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
) -> None:
    """y [T, K] = rows ids[t] of the table; grid (T, blocks of BK columns)."""
    token, k = tl.program_id(0), tl.program_id(1) * BK
    rows = tl.load(ids_ptr + token + tl.arange(0, 1)).to(tl.int64)
    tile = load_tile(w_ptr, scale_ptr, min_ptr, rows, k, KP, BK, WEIGHT, GROUP, ZERO, "f32")
    values = tl.reshape(row_scaled(tl.trans(tile), scale_ptr, w_ptr, rows, WEIGHT, GROUP), (BK,))
    columns = k + tl.arange(0, BK)
    tl.store(y_ptr + token.to(tl.int64) * K + columns, values.to(y_ptr.dtype.element_ty), mask=columns < K)
