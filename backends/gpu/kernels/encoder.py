"""Products and attention of image encoders: all rows at once, over fixed sizes, with matrix units."""

from __future__ import annotations

import triton
import triton.language as tl

from .linear import store_columns, tile_order
from .products import many_rows, multiply, wait

HIDDEN = tl.constexpr(float("-inf"))
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def image_linear(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    y_ptr: tl.tensor,
    tokens: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BAND: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    GELU: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y [tokens, N] = [residual +] [gelu](x [tokens, K] W^T [+ bias]); grid (tiles of W times tiles of x,)."""
    tile, x_tile = tile_order(tokens, N, BN, BM, BAND)
    rows, m = tile * BN + tl.arange(0, BN), x_tile * BM + tl.arange(0, BM)
    known = tl.minimum(rows, N - 1).to(tl.int64)
    x_rows = tl.minimum(m, tokens - 1).to(tl.int64)
    wait(PDL)
    y, _ = many_rows(
        x_ptr, None, w_ptr, scale_ptr, min_ptr, x_rows, known, known,
        K, KP, K, 0.0, BK, WEIGHT, GROUP, ZERO, DOT, False,
    )  # fmt: skip
    if bias_ptr is not None:
        y += tl.load(bias_ptr + known).to(tl.float32)[:, None]
    if GELU:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    store_columns(y_ptr, residual_ptr, y, rows, m, tokens, N)


@triton.jit
def _is_padding(slots_ptr: tl.tensor, rows: tl.tensor, TOKENS: tl.constexpr, PADDED: tl.constexpr) -> tl.tensor:
    """Whether rows are of a tile without slot, or behind the TOKENS of theirs."""
    return (tl.load(slots_ptr + rows // PADDED) < 0) | (rows % PADDED >= TOKENS)


@triton.jit
def attend_all(
    qkv_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    out_ptr: tl.tensor,
    SCALE: tl.constexpr,
    COUNT: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    TOKENS: tl.constexpr,
    PADDED: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """out [COUNT, HEADS HEAD] of joined rows of q, k and v: every row sees every row, but padding sees no padding.

    slots i32 [tiles]: negative for a tile that is padding as a whole; without it nothing is padding. WIDE: the power of
    two that holds a head. grid (tiles of ROWS rows, HEADS).
    """
    first, head = tl.program_id(0) * ROWS, tl.program_id(1)
    d = tl.arange(0, WIDE)
    STRIDE: tl.constexpr = 3 * HEADS * HEAD
    rows = tl.minimum(first + tl.arange(0, ROWS), COUNT - 1)
    used = (d < HEAD)[None, :]
    wait(PDL)
    q_places = rows.to(tl.int64)[:, None] * STRIDE + (head * HEAD + d)[None, :]
    q = tl.load(qkv_ptr + q_places, mask=used, other=0.0)
    late = rows < 0
    if slots_ptr is not None:
        late = _is_padding(slots_ptr, rows, TOKENS, PADDED)
    out = tl.zeros((ROWS, WIDE), tl.float32)
    peak, total = tl.full((ROWS,), HIDDEN, tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, COUNT, KEYS):
        at = start + tl.arange(0, KEYS)
        known = tl.minimum(at, COUNT - 1)
        places = qkv_ptr + known.to(tl.int64)[:, None] * STRIDE + ((HEADS + head) * HEAD + d)[None, :]
        keys = tl.load(places, mask=used, other=0.0)
        scores = multiply(q, tl.trans(keys), tl.zeros((ROWS, KEYS), tl.float32)) * (SCALE * LOG2_E)
        if COUNT % KEYS != 0:
            scores = tl.where((at < COUNT)[None, :], scores, HIDDEN)
        if slots_ptr is not None:
            both = late[:, None] & _is_padding(slots_ptr, known, TOKENS, PADDED)[None, :]
            scores = tl.where(both, HIDDEN, scores)
        values = tl.load(places + HEADS * HEAD, mask=used, other=0.0)
        higher = tl.maximum(peak, tl.max(scores, 1))
        # Rows that have seen nothing yet: minus infinity minus itself would be NaN.
        safe = tl.where(higher == HIDDEN, 0.0, higher)
        weights, fade = tl.exp2(scores - safe[:, None]), tl.exp2(peak - safe)
        total = total * fade + tl.sum(weights, 1)
        out = multiply(weights.to(q.dtype), values, out * fade[:, None])
        peak = higher
    inside = (first + tl.arange(0, ROWS) < COUNT)[:, None] & used
    to = rows.to(tl.int64)[:, None] * (HEADS * HEAD) + (head * HEAD + d)[None, :]
    tl.store(out_ptr + to, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
