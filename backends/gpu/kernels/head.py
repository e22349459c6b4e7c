"""The head: final norm, logits of the wanted rows, and the best token of each without the logits leaving the GPU.

Logits alone are `linear.decode_linear` and `linear.prefill_linear` with a list of rows. Of equal logits the lowest
token id wins, as in numpy.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .linear import activation_rows, inverse_rms
from .packed import exponent_of_one
from .products import few_rows, wait

_NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def decode_best(
    x_ptr: tl.tensor,
    row_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    best_ptr: tl.tensor,
    index_ptr: tl.tensor,
    tokens: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """The largest logit of each row among BN tokens, and which: f32 and i32 [rows, tiles]; grid (tiles,)."""
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    rows = tile * BN + tl.arange(0, BN)
    known = tl.minimum(rows, N - 1).to(tl.int64)
    x_rows = activation_rows(row_ptr, tokens, M)
    logits, _, squares = few_rows(
        x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_rows, known, known, 0, KP, exponent_of_one(tokens),
        K, KP, K, BK, WEIGHT, GROUP, ZERO, False, PDL,
    )  # fmt: skip
    logits *= inverse_rms(squares, x_ptr, x_rows, K, K, EPS, True)
    best, index = tl.max(tl.where((rows < N)[None, :], logits, _NOTHING), 1, return_indices=True)
    m = tl.arange(0, M)
    tl.store(best_ptr + m * tiles + tile, best, mask=m < tokens)
    tl.store(index_ptr + m * tiles + tile, tile * BN + index, mask=m < tokens)


@triton.jit
def best_of_tiles(
    best_ptr: tl.tensor,
    index_ptr: tl.tensor,
    id_ptr: tl.tensor,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """The token id of each row from what `decode_best` found in TILES tiles; grid (rows,)."""
    row = tl.program_id(0)
    wait(PDL)
    tile = tl.arange(0, BLOCK)
    best, index = tl.full((BLOCK,), _NOTHING, tl.float32), tl.zeros((BLOCK,), tl.int32)
    for start in range(0, TILES, BLOCK):
        inside = start + tile < TILES
        found = tl.load(best_ptr + row * TILES + start + tile, mask=inside, other=_NOTHING)
        where = tl.load(index_ptr + row * TILES + start + tile, mask=inside, other=0)
        index = tl.where(found > best, where, index)
        best = tl.maximum(found, best)
    _store_lowest(id_ptr, row, best, index)


@triton.jit
def best_of_logits(logits_ptr: tl.tensor, id_ptr: tl.tensor, N: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """The token id of the largest of N logits of each row; grid (rows,)."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    best, index = tl.full((BLOCK,), _NOTHING, tl.float32), tl.zeros((BLOCK,), tl.int32)
    for start in range(0, N, BLOCK):
        inside = start + column < N
        found = tl.load(logits_ptr + row.to(tl.int64) * N + start + column, mask=inside, other=_NOTHING).to(tl.float32)
        index = tl.where(found > best, start + column, index)
        best = tl.maximum(found, best)
    _store_lowest(id_ptr, row, best, index)


@triton.jit
def _store_lowest(id_ptr: tl.tensor, row: tl.tensor, best: tl.tensor, index: tl.tensor) -> None:
    """The lowest index among those of the largest value; each place holds the lowest of its own."""
    largest = tl.max(best, 0)
    tl.store(id_ptr + row, tl.min(tl.where(best == largest, index, 2147483647), 0))
