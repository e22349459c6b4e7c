"""Attention of text to the cached vision tokens of its pictures: each row sees a range of them, some rows see nothing.

The norm of q before it and the gate behind it are made here. Splits, tiles and the cache are as in `attention`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention import HIDDEN, attend_keys, merge_splits, product_type
from .cache import head_offset
from .pictures import tanh
from .products import wait
from .splits import arrive


@triton.jit
def _normed(q: tl.tensor, norm_ptr: tl.tensor, HEAD: tl.constexpr, EPS: tl.constexpr) -> tl.tensor:
    """Rows of heads [R, HEAD] over their root mean square, times the norm's weights."""
    norm = tl.load(norm_ptr + tl.arange(0, HEAD)).to(tl.float32)
    return q * tl.rsqrt(tl.sum(q * q, 1) / HEAD + EPS)[:, None] * norm[None, :]


@triton.jit
def _attend_range(
    q: tl.tensor,
    cache_ptr: tl.tensor,
    inner: tl.tensor,
    to_values: tl.tensor,
    pages_ptr: tl.tensor,
    low: tl.tensor,
    seen: tl.tensor,
    whole: tl.tensor,
    high: tl.tensor,
    starts: tl.tensor,
    stops: tl.tensor,
    SCALE: tl.constexpr,
    LAYERS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Attention of q [R, HEAD] over keys [low, high), those of [seen, whole) unmasked; low and seen: multiples of KEYS.

    A row sees keys [starts, stops). Out is not divided by the total yet.
    """
    scale = SCALE * 1.4426950408889634
    out = tl.zeros((q.shape[0], HEAD), tl.float32)
    peak, total = tl.full((q.shape[0],), HIDDEN, tl.float32), tl.zeros((q.shape[0],), tl.float32)
    seen = tl.minimum(seen, high)
    whole = tl.maximum(whole, seen)
    out, peak, total = attend_keys(
        q, cache_ptr, inner, to_values, pages_ptr, low, seen, stops - 1, starts, scale, out, peak, total,
        LAYERS, KV_HEADS, PAGE, HEAD, KEYS, True,
    )  # fmt: skip
    out, peak, total = attend_keys(
        q, cache_ptr, inner, to_values, pages_ptr, seen, whole, stops - 1, starts, scale, out, peak, total,
        LAYERS, KV_HEADS, PAGE, HEAD, KEYS, False,
    )  # fmt: skip
    out, peak, total = attend_keys(
        q, cache_ptr, inner, to_values, pages_ptr, whole, high, stops - 1, starts, scale, out, peak, total,
        LAYERS, KV_HEADS, PAGE, HEAD, KEYS, True,
    )  # fmt: skip
    return out, peak, total


@triton.jit
def decode_vision(
    q_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    start_ptr: tl.tensor,
    stop_ptr: tl.tensor,
    sequences_ptr: tl.tensor,
    table_ptr: tl.tensor,
    out_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    counter_ptr: tl.tensor,
    table_width: tl.tensor,
    layer: tl.tensor,
    SCALE: tl.constexpr,
    EPS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """out [T, HEADS HEAD] = tanh(gate) times the attention of normed q to keys [start, stop); zeros where none is.

    grid (T, KV_HEADS, SPLITS); scratch as in `decode_attention`.
    """
    SHARED: tl.constexpr = HEADS // KV_HEADS
    tl.static_assert(PAGE % KEYS == 0 and SHARED <= ROWS)
    token, kv, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    gate = tanh(tl.load(gate_ptr).to(tl.float32))
    wait(PDL)
    start, stop = tl.load(start_ptr + token), tl.load(stop_ptr + token)
    stop = tl.maximum(start, stop)
    pages_ptr = table_ptr + tl.load(sequences_ptr + token).to(tl.int64) * table_width
    first = start // KEYS * KEYS
    part = tl.cdiv(tl.cdiv(stop - first, KEYS), SPLITS) * KEYS
    low = first + split * part
    high = tl.minimum(low + part, stop)
    if start == stop:
        high = low
    r, d = tl.arange(0, ROWS), tl.arange(0, HEAD)
    heads = (token.to(tl.int64) * HEADS + kv * SHARED + r)[:, None] * HEAD + d[None, :]
    used = (r < SHARED)[:, None]
    KIND: tl.constexpr = product_type(q_ptr.dtype.element_ty, cache_ptr.dtype.element_ty)
    q = _normed(tl.load(q_ptr + heads, mask=used, other=0.0), norm_ptr, HEAD, EPS).to(KIND)
    inner, to_values = head_offset(layer, kv, LAYERS, KV_HEADS, PAGE, HEAD)
    seen = low + tl.where(low < start, KEYS, 0)
    out, peak, total = _attend_range(
        q, cache_ptr, inner, to_values, pages_ptr, low, seen, high // KEYS * KEYS, high, r * 0 + start, r * 0 + stop,
        SCALE, LAYERS, KV_HEADS, PAGE, HEAD, KEYS,
    )  # fmt: skip
    out = out / tl.where(total > 0, total, 1.0)[:, None]
    if SPLITS == 1:
        tl.store(out_ptr + heads, (gate * out).to(out_ptr.dtype.element_ty), mask=used)
    else:
        tile = token * KV_HEADS + kv
        first_row = tile.to(tl.int64) * ROWS
        rows = (first_row + r) * SPLITS + split
        tl.store(weight_ptr + rows, tl.where(total > 0, peak + tl.log2(total), HIDDEN))
        tl.store(partial_ptr + rows[:, None] * HEAD + d[None, :], out, mask=(total > 0)[:, None])
        if arrive(counter_ptr, tile, SPLITS):
            merged = merge_splits(partial_ptr, weight_ptr, first_row, HEAD, ROWS, SPLITS)
            # Where no split saw a key the merge has divided nothing by nothing.
            merged = tl.where(start < stop, gate * merged, 0.0)
            tl.store(out_ptr + heads, merged.to(out_ptr.dtype.element_ty), mask=used)


@triton.jit
def prefill_vision(
    q_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    start_ptr: tl.tensor,
    stop_ptr: tl.tensor,
    sequences_ptr: tl.tensor,
    table_ptr: tl.tensor,
    tiles_ptr: tl.tensor,
    out_ptr: tl.tensor,
    table_width: tl.tensor,
    layer: tl.tensor,
    SCALE: tl.constexpr,
    EPS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """As `decode_vision`, in tiles of rows of one sequence; grid (tiles, KV_HEADS), tiles as in `prefill_attention`.

    A key is read if any row of the tile sees it; what all rows that see something see is not masked.
    """
    SHARED: tl.constexpr = HEADS // KV_HEADS
    tl.static_assert(PAGE % KEYS == 0 and SHARED <= ROWS)
    tile, kv = tl.program_id(0), tl.program_id(1)
    gate = tanh(tl.load(gate_ptr).to(tl.float32))
    wait(PDL)
    token0, count = tl.load(tiles_ptr + 2 * tile), tl.load(tiles_ptr + 2 * tile + 1)
    if count > 0:
        r, d = tl.arange(0, ROWS), tl.arange(0, HEAD)
        own = r // SHARED
        used = (own < count)[:, None]
        token = token0 + tl.minimum(own, count - 1)
        starts, stops = tl.load(start_ptr + token), tl.load(stop_ptr + token)
        sees = starts < stops
        LAST: tl.constexpr = 0x7FFFFFFF
        stop = tl.max(tl.where(sees, stops, 0), 0)
        start = tl.minimum(tl.min(tl.where(sees, starts, LAST), 0), stop)
        all_start = tl.max(tl.where(sees, starts, 0), 0)
        all_stop = tl.minimum(tl.min(tl.where(sees, stops, LAST), 0), stop)
        pages_ptr = table_ptr + tl.load(sequences_ptr + token0).to(tl.int64) * table_width
        heads = (token.to(tl.int64) * HEADS + kv * SHARED + r % SHARED)[:, None] * HEAD + d[None, :]
        KIND: tl.constexpr = product_type(q_ptr.dtype.element_ty, cache_ptr.dtype.element_ty)
        q = _normed(tl.load(q_ptr + heads, mask=used, other=0.0), norm_ptr, HEAD, EPS).to(KIND)
        inner, to_values = head_offset(layer, kv, LAYERS, KV_HEADS, PAGE, HEAD)
        out, _, total = _attend_range(
            q, cache_ptr, inner, to_values, pages_ptr, start // KEYS * KEYS, tl.cdiv(all_start, KEYS) * KEYS,
            all_stop // KEYS * KEYS, stop, starts, stops, SCALE, LAYERS, KV_HEADS, PAGE, HEAD, KEYS,
        )  # fmt: skip
        out = gate * out / tl.where(total > 0, total, 1.0)[:, None]
        out = tl.where(sees[:, None], out, 0.0)
        tl.store(out_ptr + heads, out.to(out_ptr.dtype.element_ty), mask=used)
