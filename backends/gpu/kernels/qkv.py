"""Norm, q/k/v projection, rotation and cache append in one kernel: rotation pairs (i, i + h/2) meet in one program.

W [(H + 2 KV) h, K] holds the q heads, then the k heads, then the v heads. A program takes the rows i and i + h/2 of one
head for a tile of i, so no pair is torn; with a norm of q and k the last program of a head finishes all of it. q goes
to memory, k and v go to the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cache import head_offset, page_start, to_cache
from .linear import activation_rows, inverse_rms
from .packed import exponent_of_one
from .products import few_rows, many_rows, wait
from .splits import arrive, split_range, store_part, sum_parts


@triton.jit
def rope_angles(
    positions_ptr: tl.tensor,
    frequency_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """cos and sin f32 [T, HALF] of positions[t] * frequencies[i], once a step; grid (T,)."""
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < HALF
    angle = tl.load(positions_ptr + row).to(tl.float32) * tl.load(frequency_ptr + i, mask=inside, other=0.0)
    tl.store(cos_ptr + row.to(tl.int64) * HALF + i, tl.cos(angle), mask=inside)
    tl.store(sin_ptr + row.to(tl.int64) * HALF + i, tl.sin(angle), mask=inside)


@triton.jit
def _turned(
    first: tl.tensor,
    second: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    i: tl.tensor,
    m: tl.tensor,
    HALF: tl.constexpr,
    QK_EPS: tl.constexpr,
    ROPE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """q or k halves [P, M] after their norm (QK_EPS >= 0: over the head's root mean square) and rotation."""
    if QK_EPS >= 0:
        squares = tl.sum(first * first + second * second, 0) / (2 * HALF)
        factor = tl.rsqrt(squares + QK_EPS)[None, :]
        first *= factor
        second *= factor
    if ROPE:
        places = m.to(tl.int64)[None, :] * HALF + i[:, None]
        cos, sin = tl.load(cos_ptr + places), tl.load(sin_ptr + places)
        first, second = first * cos - second * sin, second * cos + first * sin
    return first, second


@triton.jit
def finish_head(
    first: tl.tensor,
    second: tl.tensor,
    head: tl.tensor,
    i: tl.tensor,
    m: tl.tensor,
    q_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    kv_scale_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    sequences_ptr: tl.tensor,
    table_ptr: tl.tensor,
    table_width: tl.tensor,
    tokens: tl.tensor,
    layer: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    ROPE: tl.constexpr,
    QK_EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    TEMPERATURE: tl.constexpr,
) -> None:
    """Rotate elements i and i + HEAD / 2 of one head, [P, M] each, of tokens m; store q, and k and v in the cache.

    FLOOR > 0: q is multiplied with 1 + TEMPERATURE * ln(1 + floor((position + 1) / FLOOR)).
    """
    HALF: tl.constexpr = HEAD // 2
    inside = (m < tokens)[None, :]
    known = tl.minimum(m, tokens - 1)
    position = tl.load(positions_ptr + known)
    if head < HEADS + KV_HEADS:
        first, second = _turned(first, second, cos_ptr, sin_ptr, i, known, HALF, QK_EPS, ROPE)
    if head < HEADS:
        if FLOOR > 0:
            steps = ((position + 1) // FLOOR).to(tl.float32)
            factor = (1.0 + TEMPERATURE * tl.log(1.0 + steps))[None, :]
            first *= factor
            second *= factor
        places = q_ptr + (m.to(tl.int64) * HEADS + head)[None, :] * HEAD + i[:, None]
        tl.store(places, first.to(q_ptr.dtype.element_ty), mask=inside)
        tl.store(places + HALF, second.to(q_ptr.dtype.element_ty), mask=inside)
    else:
        kv = head - HEADS  # k heads, then v heads
        sequence = tl.load(sequences_ptr + known).to(tl.int64)
        page = tl.load(table_ptr + sequence * table_width + position // PAGE)
        _append(first, second, kv, i, page, position % PAGE, inside, cache_ptr, kv_scale_ptr, layer,
                LAYERS, KV_HEADS, PAGE, HEAD)  # fmt: skip


@triton.jit
def _append(
    first: tl.tensor,
    second: tl.tensor,
    kv: tl.tensor,
    i: tl.tensor,
    page: tl.tensor,
    slot: tl.tensor,
    inside: tl.tensor,
    cache_ptr: tl.tensor,
    kv_scale_ptr: tl.tensor,
    layer: tl.tensor,
    LAYERS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD: tl.constexpr,
) -> None:
    """Write halves [P, M] of k head `kv`, or of v head `kv - KV_HEADS`, to slots [M] of pages [M]."""
    # The values follow the keys head by head, so one head number addresses both.
    inner, _ = head_offset(layer, kv, LAYERS, KV_HEADS, PAGE, HEAD)
    row = page_start(page, LAYERS, KV_HEADS, PAGE, HEAD) + inner + slot * HEAD
    places = cache_ptr + row[None, :] + i[:, None]
    scale = 1.0
    if kv_scale_ptr is not None:
        scale = tl.load(kv_scale_ptr + kv)
    tl.store(places, to_cache(first, scale, cache_ptr, kv_scale_ptr is not None), mask=inside)
    tl.store(places + HEAD // 2, to_cache(second, scale, cache_ptr, kv_scale_ptr is not None), mask=inside)


@triton.jit
def decode_qkv(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    q_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    kv_scale_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    sequences_ptr: tl.tensor,
    table_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    counter_ptr: tl.tensor,
    table_width: tl.tensor,
    tokens: tl.tensor,
    layer: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    ROPE: tl.constexpr,
    QK_EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    BP: tl.constexpr,
    BK: tl.constexpr,
    SPLITS: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """x [tokens, K] -> q [tokens, HEADS * HEAD], k and v cached; grid (tiles of BP pairs of all heads, SPLITS)."""
    HALF: tl.constexpr = HEAD // 2
    N: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD
    # What is finished together, a tile or with a norm a whole head, and the programs that make it.
    WHOLE: tl.constexpr = HALF if QK_EPS >= 0 else BP
    PROGRAMS: tl.constexpr = WHOLE // BP * SPLITS
    tl.static_assert(HALF % BP == 0, "a tile must not leave its head")
    tile, split = tl.program_id(0), tl.program_id(1)
    head, i = tile // (HALF // BP), tile % (HALF // BP) * BP + tl.arange(0, BP)
    rows = head * HEAD + i
    x_rows = activation_rows(None, tokens, M)
    start, stop = split_range(split, KP, BK, SPLITS)
    first, second, squares = few_rows(
        x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_rows, rows.to(tl.int64), rows.to(tl.int64) + HALF,
        start, stop, exponent_of_one(tokens), K, KP, K, BK, WEIGHT, GROUP, ZERO, True, PDL,
    )  # fmt: skip
    last = True
    if PROGRAMS > 1:
        store_part(partial_ptr, first, split, rows, N)
        store_part(partial_ptr, second, split, rows + HALF, N)
        last = arrive(counter_ptr, tile // (WHOLE // BP), PROGRAMS)
    if last:
        if PROGRAMS > 1:
            pairs = tile // (WHOLE // BP) * WHOLE % HALF + tl.arange(0, WHOLE)
            whole = sum_parts(partial_ptr, head * HEAD + pairs, M, N, SPLITS)
            whole2 = sum_parts(partial_ptr, head * HEAD + pairs + HALF, M, N, SPLITS)
        else:
            pairs, whole, whole2 = i, first, second
        if norm_ptr is not None:
            factor = inverse_rms(squares, x_ptr, x_rows, K, K, EPS, SPLITS == 1)
            whole *= factor
            whole2 *= factor
        finish_head(
            tl.trans(whole), tl.trans(whole2), head, pairs, tl.arange(0, M), q_ptr, cache_ptr, kv_scale_ptr, cos_ptr,
            sin_ptr, positions_ptr, sequences_ptr, table_ptr, table_width, tokens, layer,
            HEADS, KV_HEADS, HEAD, LAYERS, PAGE, ROPE, QK_EPS, FLOOR, TEMPERATURE,
        )  # fmt: skip


@triton.jit
def prefill_qkv(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    q_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    kv_scale_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    sequences_ptr: tl.tensor,
    table_ptr: tl.tensor,
    table_width: tl.tensor,
    tokens: tl.tensor,
    layer: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    ROPE: tl.constexpr,
    QK_EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    EPS: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """As `decode_qkv`, for many tokens; grid (tiles of BM tokens, tiles of BP pairs of all heads)."""
    HALF: tl.constexpr = HEAD // 2
    tl.static_assert(
        HALF % BP == 0 and (QK_EPS < 0 or BP == HALF), "a tile must not leave its head; a norm needs all of it"
    )
    tile = tl.program_id(1)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    head, i = tile // (HALF // BP), tile % (HALF // BP) * BP + tl.arange(0, BP)
    rows = (head * HEAD + i).to(tl.int64)
    x_rows = tl.minimum(m, tokens - 1).to(tl.int64)
    wait(PDL)
    first, second = many_rows(
        x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_rows, rows, rows + HALF,
        K, KP, K, EPS, BK, WEIGHT, GROUP, ZERO, DOT, True,
    )  # fmt: skip
    if x_scale_ptr is not None:
        scale = tl.load(x_scale_ptr + x_rows)[None, :]
        first *= scale
        second *= scale
    finish_head(
        first, second, head, i, m, q_ptr, cache_ptr, kv_scale_ptr, cos_ptr, sin_ptr,
        positions_ptr, sequences_ptr, table_ptr, table_width, tokens, layer,
        HEADS, KV_HEADS, HEAD, LAYERS, PAGE, ROPE, QK_EPS, FLOOR, TEMPERATURE,
    )  # fmt: skip
