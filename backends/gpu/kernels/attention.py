"""Attention over the paged cache: split among programs for single rows (decoding), in tiles of rows for prefill.

All query heads that share a kv head are rows of one tile, so keys and values are read once for them all. Softmax is
kept online, in powers of two. Keys are visible from the first position of the row's chunk (CHUNK 0: from the first of
all) to the row's own position.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cache import from_cache, head_offset, page_start
from .products import multiply, wait
from .splits import arrive

HIDDEN = tl.constexpr(float("-inf"))


@triton.constexpr_function
def product_type(query: tl.dtype, cache: tl.dtype) -> tl.dtype:
    """The type that q, keys, probabilities and values are multiplied in."""
    if cache == tl.uint8:
        return tl.float16
    if cache.primitive_bitwidth == 8:
        return tl.bfloat16
    return cache


@triton.jit
def scale_of(kv_scale_ptr: tl.tensor, cache_ptr: tl.tensor, kv: tl.tensor) -> tl.tensor:
    """What stored keys or values of head `kv` (values: + KV_HEADS) are multiplied with."""
    scale = 1.0
    if kv_scale_ptr is not None:
        scale = tl.load(kv_scale_ptr + kv)
    if cache_ptr.dtype.element_ty == tl.uint8:
        scale = scale * 256.0
    return scale


@triton.jit
def attend_keys(
    q: tl.tensor,
    cache_ptr: tl.tensor,
    inner: tl.tensor,
    to_values: tl.tensor,
    pages_ptr: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    positions: tl.tensor,
    firsts: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    LAYERS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Online softmax of rows q [R, HEAD] over keys [low, high), low a multiple of KEYS: out [R, HEAD], peak, total [R].

    MASKED: keys after positions [R], before firsts [R] or from `high` on are hidden. Those may hold anything, NaN too.
    """
    slots, d = tl.arange(0, KEYS), tl.arange(0, HEAD)
    for start in range(low, high, KEYS):
        page = tl.load(pages_ptr + start // PAGE)
        base = cache_ptr + page_start(page, LAYERS, KV_HEADS, PAGE, HEAD) + inner + start % PAGE * HEAD
        places = base + slots[:, None] * HEAD + d[None, :]
        keys = from_cache(tl.load(places), q.dtype)
        scores = multiply(q, tl.trans(keys), tl.zeros((q.shape[0], KEYS), tl.float32)) * scale
        if MASKED:
            at = start + slots
            seen = (at[None, :] <= positions[:, None]) & (at[None, :] >= firsts[:, None])
            scores = tl.where(seen, scores, HIDDEN)
            values = from_cache(tl.load(places + to_values, mask=(at < high)[:, None]), q.dtype)
            values = tl.where((at < high)[:, None], values, 0.0).to(q.dtype)
        else:
            values = from_cache(tl.load(places + to_values), q.dtype)
        higher = tl.maximum(peak, tl.max(scores, 1))
        # Rows that have seen nothing yet: minus infinity minus itself would be NaN.
        safe = tl.where(higher == HIDDEN, 0.0, higher)
        weights = tl.exp2(scores - safe[:, None])
        fade = tl.exp2(peak - safe)
        total = total * fade + tl.sum(weights, 1)
        out = multiply(weights.to(q.dtype), values, out * fade[:, None])
        peak = higher
    return out, peak, total


@triton.jit
def merge_splits(
    partial_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    first_row: tl.tensor,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
) -> tl.tensor:
    """f32 [ROWS, HEAD]: partial results [row, split, HEAD], averaged by two to the power of weights [row, split]."""
    r, d, s = tl.arange(0, ROWS), tl.arange(0, HEAD), tl.arange(0, SPLITS)
    row = first_row + r.to(tl.int64)
    weights = tl.load(weight_ptr + row[:, None] * SPLITS + s[None, :], cache_modifier=".cg")
    peak = tl.max(weights, 1)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, HEAD), tl.float32)
    for split in range(SPLITS):
        weight = tl.load(weight_ptr + row * SPLITS + split, cache_modifier=".cg")
        share = tl.exp2(weight - peak)
        total += share
        places = partial_ptr + (row * SPLITS + split)[:, None] * HEAD + d[None, :]
        # Nothing was stored by a split that saw no key.
        part = tl.load(places, mask=(weight > HIDDEN)[:, None], other=0.0, cache_modifier=".cg")
        out += share[:, None] * part
    return out / total[:, None]


@triton.jit
def decode_attention(
    q_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    kv_scale_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    sequences_ptr: tl.tensor,
    table_ptr: tl.tensor,
    out_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    counter_ptr: tl.tensor,
    table_width: tl.tensor,
    layer: tl.tensor,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """out [T, HEADS * HEAD] of q [T, HEADS * HEAD]; grid (T, KV_HEADS, SPLITS).

    Each split takes an equal part of the row's keys in blocks of KEYS; the last one to finish merges: partial is f32
    [T * KV_HEADS * ROWS, SPLITS, HEAD], weight f32 [.., SPLITS], counter i32 [T * KV_HEADS], zero at first.
    """
    SHARED: tl.constexpr = HEADS // KV_HEADS
    tl.static_assert(PAGE % KEYS == 0 and SHARED <= ROWS and (CHUNK == 0 or CHUNK % KEYS == 0))
    token, kv, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    wait(PDL)
    position = tl.load(positions_ptr + token)
    pages_ptr = table_ptr + tl.load(sequences_ptr + token).to(tl.int64) * table_width
    first = position * 0
    if CHUNK > 0:
        first = position // CHUNK * CHUNK
    blocks = tl.cdiv(position + 1 - first, KEYS)
    low = first + split * tl.cdiv(blocks, SPLITS) * KEYS
    high = tl.minimum(low + tl.cdiv(blocks, SPLITS) * KEYS, position + 1)
    r, d = tl.arange(0, ROWS), tl.arange(0, HEAD)
    heads = (token.to(tl.int64) * HEADS + kv * SHARED + r)[:, None] * HEAD + d[None, :]
    KIND: tl.constexpr = product_type(q_ptr.dtype.element_ty, cache_ptr.dtype.element_ty)
    q = tl.load(q_ptr + heads, mask=(r < SHARED)[:, None], other=0.0).to(KIND)
    inner, to_values = head_offset(layer, kv, LAYERS, KV_HEADS, PAGE, HEAD)
    scale = SCALE * 1.4426950408889634 * scale_of(kv_scale_ptr, cache_ptr, kv)
    out = tl.zeros((ROWS, HEAD), tl.float32)
    peak, total = tl.full((ROWS,), HIDDEN, tl.float32), tl.zeros((ROWS,), tl.float32)
    whole = tl.maximum(high // KEYS * KEYS, low)
    out, peak, total = attend_keys(
        q, cache_ptr, inner, to_values, pages_ptr, low, whole, r, r, scale, out, peak, total,
        LAYERS, KV_HEADS, PAGE, HEAD, KEYS, False,
    )  # fmt: skip
    out, peak, total = attend_keys(
        q, cache_ptr, inner, to_values, pages_ptr, whole, high, r * 0 + position, r * 0 + first, scale, out, peak,
        total, LAYERS, KV_HEADS, PAGE, HEAD, KEYS, True,
    )  # fmt: skip
    out = out / tl.where(total > 0, total, 1.0)[:, None] * scale_of(kv_scale_ptr, cache_ptr, kv + KV_HEADS)
    if SPLITS == 1:
        tl.store(out_ptr + heads, out.to(out_ptr.dtype.element_ty), mask=(r < SHARED)[:, None])
    else:
        tile = token * KV_HEADS + kv
        first_row = tile.to(tl.int64) * ROWS
        rows = (first_row + r) * SPLITS + split
        tl.store(weight_ptr + rows, peak + tl.log2(total))
        tl.store(partial_ptr + rows[:, None] * HEAD + d[None, :], out, mask=(total > 0)[:, None])
        if arrive(counter_ptr, tile, SPLITS):
            merged = merge_splits(partial_ptr, weight_ptr, first_row, HEAD, ROWS, SPLITS)
            tl.store(out_ptr + heads, merged.to(out_ptr.dtype.element_ty), mask=(r < SHARED)[:, None])


@triton.jit
def prefill_attention(
    q_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    kv_scale_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    sequences_ptr: tl.tensor,
    table_ptr: tl.tensor,
    tiles_ptr: tl.tensor,
    out_ptr: tl.tensor,
    table_width: tl.tensor,
    layer: tl.tensor,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """out [T, HEADS * HEAD] of q [T, HEADS * HEAD]; grid (tiles, KV_HEADS).

    tiles i32 [tiles, 2]: the first token and the number of tokens, at most ROWS // (HEADS // KV_HEADS), of a tile; its
    tokens are of one sequence, in rising position order. A tile of no tokens does nothing.
    """
    SHARED: tl.constexpr = HEADS // KV_HEADS
    tl.static_assert(PAGE % KEYS == 0 and SHARED <= ROWS and (CHUNK == 0 or CHUNK % KEYS == 0))
    # Later tiles have more keys: they start first.
    tile, kv = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    wait(PDL)
    token0, count = tl.load(tiles_ptr + 2 * tile), tl.load(tiles_ptr + 2 * tile + 1)
    if count > 0:
        r, d = tl.arange(0, ROWS), tl.arange(0, HEAD)
        own = r // SHARED
        inside = own < count
        token = token0 + tl.minimum(own, count - 1)
        position = tl.load(positions_ptr + token)
        pages_ptr = table_ptr + tl.load(sequences_ptr + token0).to(tl.int64) * table_width
        heads = (token.to(tl.int64) * HEADS + kv * SHARED + r % SHARED)[:, None] * HEAD + d[None, :]
        KIND: tl.constexpr = product_type(q_ptr.dtype.element_ty, cache_ptr.dtype.element_ty)
        q = tl.load(q_ptr + heads, mask=inside[:, None], other=0.0).to(KIND)
        inner, to_values = head_offset(layer, kv, LAYERS, KV_HEADS, PAGE, HEAD)
        scale = SCALE * 1.4426950408889634 * scale_of(kv_scale_ptr, cache_ptr, kv)
        out = tl.zeros((ROWS, HEAD), tl.float32)
        peak, total = tl.full((ROWS,), HIDDEN, tl.float32), tl.zeros((ROWS,), tl.float32)
        lowest, highest = tl.load(positions_ptr + token0), tl.load(positions_ptr + token0 + count - 1)
        firsts, start, seen_by_all = position * 0, lowest * 0, lowest * 0
        if CHUNK > 0:
            firsts = position // CHUNK * CHUNK
            start, seen_by_all = lowest // CHUNK * CHUNK, highest // CHUNK * CHUNK
            # Rows on both sides of a chunk's border.
            out, peak, total = attend_keys(
                q, cache_ptr, inner, to_values, pages_ptr, start, seen_by_all, position, firsts,
                scale, out, peak, total, LAYERS, KV_HEADS, PAGE, HEAD, KEYS, True,
            )  # fmt: skip
        whole = tl.maximum((lowest + 1) // KEYS * KEYS, seen_by_all)
        out, peak, total = attend_keys(
            q, cache_ptr, inner, to_values, pages_ptr, seen_by_all, whole, position, firsts,
            scale, out, peak, total, LAYERS, KV_HEADS, PAGE, HEAD, KEYS, False,
        )  # fmt: skip
        out, peak, total = attend_keys(
            q, cache_ptr, inner, to_values, pages_ptr, whole, highest + 1, position, firsts,
            scale, out, peak, total, LAYERS, KV_HEADS, PAGE, HEAD, KEYS, True,
        )  # fmt: skip
        out = out / total[:, None] * scale_of(kv_scale_ptr, cache_ptr, kv + KV_HEADS)
        tl.store(out_ptr + heads, out.to(out_ptr.dtype.element_ty), mask=inside[:, None])
