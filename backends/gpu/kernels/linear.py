"""Linear kernels: y = x W^T for few rows (decoding) and many (prefill), alone, onto a residual, or gate and up at once.

Activations are row-major; every kernel takes them and gives its results in the types of its pointers and computes in
f32. `tokens` is the number of rows; grids are made for the next size in a list, so rows behind it are clamped on
loading and never stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .packed import exponent_of_one, narrowed
from .products import few_rows, many_rows, sums_of_squares, wait
from .splits import arrive, split_range, store_part, sum_parts


@triton.jit
def activation_rows(row_ptr: tl.tensor, tokens: tl.tensor, M: tl.constexpr) -> tl.tensor:
    """The rows [M] of x to multiply: those that row_ptr lists, or the first ones."""
    rows = tl.minimum(tl.arange(0, M), tokens - 1)
    if row_ptr is not None:
        return tl.load(row_ptr + rows)
    return rows


@triton.jit
def inverse_rms(
    squares: tl.tensor,
    x_ptr: tl.tensor,
    x_rows: tl.tensor,
    K: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EPS: tl.constexpr,
    WHOLE: tl.constexpr,
) -> tl.tensor:
    """1 / root mean square [M, 1] of activation rows; `squares` are their sums of squares where those are WHOLE."""
    if WHOLE:
        return tl.rsqrt(squares / K + EPS)
    return tl.rsqrt(sums_of_squares(x_ptr, x_rows, K, X_STRIDE, 1024) / K + EPS)


@triton.jit
def _store_rows(
    y_ptr: tl.tensor, residual_ptr: tl.tensor, y: tl.tensor, rows: tl.tensor, tokens: tl.tensor, N: tl.constexpr
) -> None:
    """y [M, BN], onto the residual where there is one, to columns `rows` of the first rows of the result."""
    m = tl.arange(0, y.shape[0])
    inside = (m < tokens)[:, None] & (rows < N)[None, :]
    places = m[:, None] * N + rows[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def decode_linear(
    x_ptr: tl.tensor,
    row_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    y_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    counter_ptr: tl.tensor,
    tokens: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLITS: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y [tokens, N] = [residual +] [rms_norm](x [.., K]) W^T; grid (tiles of BN rows of W, SPLITS)."""
    tile, split = tl.program_id(0), tl.program_id(1)
    rows = tile * BN + tl.arange(0, BN)
    known = tl.minimum(rows, N - 1).to(tl.int64)
    x_rows = activation_rows(row_ptr, tokens, M)
    start, stop = split_range(split, KP, BK, SPLITS)
    y, _, squares = few_rows(
        x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_rows, known, known, start, stop, exponent_of_one(tokens),
        K, KP, X_STRIDE, BK, WEIGHT, GROUP, ZERO, False, PDL,
    )  # fmt: skip
    if norm_ptr is not None:
        y *= inverse_rms(squares, x_ptr, x_rows, K, X_STRIDE, EPS, SPLITS == 1)
    if SPLITS == 1:
        _store_rows(y_ptr, residual_ptr, y, rows, tokens, N)
    else:
        store_part(partial_ptr, y, split, rows, N)
        if arrive(counter_ptr, tile, SPLITS):
            _store_rows(y_ptr, residual_ptr, sum_parts(partial_ptr, rows, M, N, SPLITS), rows, tokens, N)


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    """x / (1 + exp(-x)), f32."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def decode_gate_up(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    y_ptr: tl.tensor,
    tokens: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y [tokens, N] = silu(n G^T) * (n U^T) of n = [rms_norm](x); W [2 N, K]: gate, then up; grid (tiles of BN,)."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    known = tl.minimum(rows, N - 1).to(tl.int64)
    x_rows = activation_rows(None, tokens, M)
    gate, up, squares = few_rows(
        x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_rows, known, known + N, 0, KP, exponent_of_one(tokens),
        K, KP, X_STRIDE, BK, WEIGHT, GROUP, ZERO, True, PDL,
    )  # fmt: skip
    if norm_ptr is not None:
        factor = inverse_rms(squares, x_ptr, x_rows, K, X_STRIDE, EPS, True)
        gate *= factor
        up *= factor
    _store_rows(y_ptr, None, silu(gate) * up, rows, tokens, N)


@triton.jit
def tile_order(
    tokens: tl.tensor, N: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BAND: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The tiles (of W, of x) of this program: BAND tiles of W at a time against all of x, for the cache."""
    TILES: tl.constexpr = (N + BN - 1) // BN
    program, x_tiles = tl.program_id(0), tl.cdiv(tokens, BM)
    band = program // (BAND * x_tiles)
    height = tl.minimum(TILES - band * BAND, BAND)
    inside = program % (BAND * x_tiles)
    return band * BAND + inside % height, inside // height


@triton.jit
def prefill_linear(
    x_ptr: tl.tensor,
    row_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    y_ptr: tl.tensor,
    tokens: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EPS: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BAND: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y [tokens, N] = [residual +] [rms_norm](x [.., K]) W^T [* x_scale]; grid (tiles of W times tiles of x,)."""
    tile, x_tile = tile_order(tokens, N, BN, BM, BAND)
    rows, m = tile * BN + tl.arange(0, BN), x_tile * BM + tl.arange(0, BM)
    known = tl.minimum(rows, N - 1).to(tl.int64)
    x_rows = tl.minimum(m, tokens - 1).to(tl.int64)
    if row_ptr is not None:
        x_rows = tl.load(row_ptr + x_rows).to(tl.int64)
    wait(PDL)
    y, _ = many_rows(
        x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_rows, known, known,
        K, KP, X_STRIDE, EPS, BK, WEIGHT, GROUP, ZERO, DOT, False,
    )  # fmt: skip
    if x_scale_ptr is not None:
        y *= tl.load(x_scale_ptr + x_rows)[None, :]
    store_columns(y_ptr, residual_ptr, y, rows, m, tokens, N)


@triton.jit
def store_columns(
    y_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    y: tl.tensor,
    rows: tl.tensor,
    m: tl.tensor,
    tokens: tl.tensor,
    N: tl.constexpr,
) -> None:
    """y [BN, BM], onto the residual where there is one, to columns `rows` of result rows m."""
    inside = (rows < N)[:, None] & (m < tokens)[None, :]
    places = m.to(tl.int64)[None, :] * N + rows[:, None]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def prefill_gate_up(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    y_ptr: tl.tensor,
    tokens: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EPS: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BAND: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y [tokens, N] = silu(n G^T) * (n U^T) of n = [rms_norm](x); W and grid as in its siblings."""
    tile, x_tile = tile_order(tokens, N, BN, BM, BAND)
    rows, m = tile * BN + tl.arange(0, BN), x_tile * BM + tl.arange(0, BM)
    known = tl.minimum(rows, N - 1).to(tl.int64)
    x_rows = tl.minimum(m, tokens - 1).to(tl.int64)
    wait(PDL)
    gate, up = many_rows(
        x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_rows, known, known + N,
        K, KP, X_STRIDE, EPS, BK, WEIGHT, GROUP, ZERO, DOT, True,
    )  # fmt: skip
    if x_scale_ptr is not None:
        scale = tl.load(x_scale_ptr + x_rows)[None, :]
        gate *= scale
        up *= scale
    store_columns(y_ptr, None, silu(gate) * up, rows, m, tokens, N)


@triton.jit
def norm_rows(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    y_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    K: tl.constexpr,
    EPS: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y [T, K] = [rms_norm](x), as it is or, with scale [T], divided by scale = max|row| / LARGEST; grid (T,).

    The scale is for whoever multiplies with y: bytes are decoded to a 256th, see `decode_e4m3`.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    if norm_ptr is not None:
        weight = tl.load(norm_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    wait(PDL)
    x = tl.load(x_ptr + row.to(tl.int64) * K + columns, mask=inside, other=0.0).to(tl.float32)
    if norm_ptr is not None:
        x = x * tl.rsqrt(tl.sum(x * x, 0) / K + EPS) * weight
    if scale_ptr is not None:
        scale = tl.max(tl.abs(x), 0) / LARGEST
        FACTOR: tl.constexpr = 256.0 if y_ptr.dtype.element_ty == tl.uint8 else 1.0
        tl.store(scale_ptr + row, scale * FACTOR)
        x = x / tl.where(scale > 0, scale, 1.0)
    tl.store(y_ptr + row.to(tl.int64) * K + columns, narrowed(x, y_ptr), mask=inside)
