"""Drawing a token from logits on the GPU: temperature, top-k, top-p, min-p, as `runtime/sampler.py` defines them.

`tile_bests` keeps the LISTED best logits of each tile and the tile's mass; `draw` merges them and draws. A filter keeps
a prefix of the vocabulary in the order of value, lower ids first. Where that prefix ends within the list of the best,
the list decides. Else `draw` finds its end in the logits themselves, by bisection, so that every draw is exact.

A key is a logit and its id as one integer: the larger the logit, and the lower the id among equals, the larger the key.
A row of options is eight words: the number to draw by (21 low and 32 high bits of 53), temperature (0: the best token),
top-k (0: off), top-p (1: off), log of min-p (-inf: off), two unused.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .products import wait

_NOTHING = tl.constexpr(float("-inf"))
_LEAST = tl.constexpr(-(1 << 62))
"""Below every key."""


@triton.jit
def _keys(values: tl.tensor, ids: tl.tensor, known: tl.tensor, ID_BITS: tl.constexpr) -> tl.tensor:
    """i64: integers that order as the values do, then by falling ids; NaN counts as inf, unknown places are least."""
    values = tl.where(values != values, float("inf"), values)
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)  # -0 is 0
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return tl.where(known, (order << ID_BITS) | ((1 << ID_BITS) - 1 - ids).to(tl.int64), _LEAST)


@triton.jit
def _ids_of(keys: tl.tensor, ID_BITS: tl.constexpr) -> tl.tensor:
    LAST: tl.constexpr = (1 << ID_BITS) - 1
    return LAST - (keys & LAST).to(tl.int32)


@triton.jit
def _values_of(keys: tl.tensor, ID_BITS: tl.constexpr) -> tl.tensor:
    order = (keys >> ID_BITS).to(tl.int32)
    values = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.where(keys == _LEAST, _NOTHING, values)


@triton.jit
def tile_bests(
    logits_ptr: tl.tensor,
    sampling_ptr: tl.tensor,
    key_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    N: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    LISTED: tl.constexpr,
    WORDS: tl.constexpr,
    ID_BITS: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """The best keys of a tile, largest first, and its mass, alone and over the temperature; grid (tiles, rows).

    keys: i64 [rows, tiles, LISTED]; mass: f32 [rows, 2, tiles], relative to the tile's largest logit.
    """
    tile, row = tl.program_id(0), tl.program_id(1)
    ids = tile * TILE + tl.arange(0, TILE)
    wait(PDL)
    values = tl.load(logits_ptr + row.to(tl.int64) * N + ids, mask=ids < N, other=_NOTHING).to(tl.float32)
    temperature = tl.load(sampling_ptr + row * WORDS + 2).to(tl.float32, bitcast=True)
    temperature = tl.where(temperature > 0, temperature, 1.0)
    keys = tl.topk(_keys(values, ids, ids < N, ID_BITS), LISTED)
    peak = tl.max(values, 0)
    below = values - tl.where(peak == _NOTHING, 0.0, peak)
    tl.store(key_ptr + (row * TILES + tile) * LISTED + tl.arange(0, LISTED), keys)
    tl.store(mass_ptr + row * 2 * TILES + tile, tl.sum(tl.exp(below), 0))
    tl.store(mass_ptr + (row * 2 + 1) * TILES + tile, tl.sum(tl.exp(below / temperature), 0))


@triton.jit
def _row_mass(
    mass_ptr: tl.tensor, peaks: tl.tensor, peak: tl.tensor, temperature: tl.tensor, TILES: tl.constexpr
) -> tl.tensor:
    """f64: the sum over the tiles of a row, relative to its largest logit."""
    tile = tl.arange(0, peaks.shape[0])
    mass = tl.load(mass_ptr + tile, mask=tile < TILES, other=0.0)
    return tl.sum(mass.to(tl.float64) * tl.exp((peaks - peak) / temperature).to(tl.float64), 0)


@triton.jit
def _block(
    logits_ptr: tl.tensor, start: tl.tensor, peak: tl.tensor, temperature: tl.tensor, N: tl.constexpr,
    BLOCK: tl.constexpr, ID_BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The keys of a block of a row, and how far its logits lie below the largest, over the temperature."""
    ids = start + tl.arange(0, BLOCK)
    values = tl.load(logits_ptr + ids, mask=ids < N, other=_NOTHING).to(tl.float32)
    return _keys(values, ids, ids < N, ID_BITS), (values - peak) / temperature


@triton.jit
def _kth(logits_ptr: tl.tensor, k: tl.tensor, N: tl.constexpr, BLOCK: tl.constexpr, ID_BITS: tl.constexpr) -> tl.tensor:
    """The least key that belongs to the k-th largest logit: the largest bound that k logits reach."""
    low, high = tl.full((), -(1 << 31), tl.int64), tl.full((), (1 << 31) - 1, tl.int64)
    while low < high:
        middle = (low + high + 1) >> 1
        count = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, N, BLOCK):
            keys, _ = _block(logits_ptr, start, 0.0, 1.0, N, BLOCK, ID_BITS)
            count += (keys >= (middle << ID_BITS)).to(tl.int32)
        enough = tl.sum(count, 0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low << ID_BITS


@triton.jit
def _mass_between(
    logits_ptr: tl.tensor, least: tl.tensor, above: tl.tensor, peak: tl.tensor, temperature: tl.tensor,
    N: tl.constexpr, BLOCK: tl.constexpr, ID_BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """f64: the mass of the keys above `above`, none below `least`."""
    mass = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, N, BLOCK):
        keys, below = _block(logits_ptr, start, peak, temperature, N, BLOCK, ID_BITS)
        mass += tl.where((keys > above) & (keys >= least), tl.exp(below), 0.0).to(tl.float64)
    return tl.sum(mass, 0)


@triton.jit
def _nucleus(
    logits_ptr: tl.tensor, least: tl.tensor, wanted: tl.tensor, peak: tl.tensor, temperature: tl.tensor,
    N: tl.constexpr, BLOCK: tl.constexpr, ID_BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The least key of the nucleus: less than the wanted mass lies above it."""
    high = tl.full((), ((1 << 31) - 1) << ID_BITS, tl.int64)
    low = tl.maximum(least, tl.full((), -(1 << 31), tl.int64) << ID_BITS)
    while low < high:
        middle = (low + high) >> 1
        mass = _mass_between(logits_ptr, least, middle, peak, temperature, N, BLOCK, ID_BITS)
        inside = mass < wanted
        high = tl.where(inside, middle, high)
        low = tl.where(inside, low, middle + 1)
    return low


@triton.jit
def _draw_from_row(
    logits_ptr: tl.tensor, least: tl.tensor, floor: tl.tensor, uniform: tl.tensor, peak: tl.tensor,
    temperature: tl.tensor, N: tl.constexpr, BLOCK: tl.constexpr, ID_BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The id at which the mass of the keys from `least` on, in the order of ids, passes `uniform` of their sum."""
    mass = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, N, BLOCK):
        keys, below = _block(logits_ptr, start, peak, temperature, N, BLOCK, ID_BITS)
        mass += tl.where((keys >= least) & (below >= floor), tl.exp(below), 0.0).to(tl.float64)
    target = uniform * tl.sum(mass, 0)
    passed, chosen = tl.zeros((), tl.float64), tl.full((), 2147483647, tl.int32)
    last = tl.zeros((), tl.int32)
    for start in range(0, N, BLOCK):
        keys, below = _block(logits_ptr, start, peak, temperature, N, BLOCK, ID_BITS)
        weights = tl.where((keys >= least) & (below >= floor), tl.exp(below), 0.0).to(tl.float64)
        ids = start + tl.arange(0, BLOCK)
        through = passed + tl.cumsum(weights, 0)
        chosen = tl.minimum(chosen, tl.min(tl.where((through > target) & (weights > 0), ids, 2147483647), 0))
        last = tl.maximum(last, tl.max(tl.where(weights > 0, ids, 0), 0))
        passed += tl.sum(weights, 0)
    return tl.minimum(chosen, last)  # rounding can leave the target at the sum itself


@triton.jit
def _draw_from_list(ids: tl.tensor, weights: tl.tensor, uniform: tl.tensor) -> tl.tensor:
    """The same from a list of ids in any order: the mass up to an id is that of all lower ones and its own."""
    through = tl.sum(tl.where(ids[None, :] <= ids[:, None], weights[None, :], 0.0), 1)
    chosen = tl.min(tl.where((through > uniform * tl.sum(weights, 0)) & (weights > 0), ids, 2147483647), 0)
    return tl.minimum(chosen, tl.max(tl.where(weights > 0, ids, 0), 0))


@triton.jit
def draw(
    logits_ptr: tl.tensor,
    sampling_ptr: tl.tensor,
    key_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    sampled_ptr: tl.tensor,
    N: tl.constexpr,
    TILES: tl.constexpr,
    TILES_PAD: tl.constexpr,
    LISTED: tl.constexpr,
    WORDS: tl.constexpr,
    ID_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """Draw each row's token; grid (rows,).

    chosen: i32 [rows], the id, 0 for a row that is no distribution. sampled: i32 [rows, 4 + 2 LISTED], the id (-1 for
    such a row), its log-probability before temperature and filters, what to take off a logit for that, the sum of
    exp((logit - largest) / temperature); then the ids of the best logits, -1 behind the last, and the logits.
    """
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * N
    key_ptr += row * TILES * LISTED
    mass_ptr += row * 2 * TILES
    options = sampling_ptr + row * WORDS
    wait(PDL)
    low, high = tl.load(options).to(tl.uint32, bitcast=True), tl.load(options + 1).to(tl.uint32, bitcast=True)
    uniform = (high.to(tl.float64) * 2097152.0 + low.to(tl.float64)) * 1.1102230246251565e-16
    temperature = tl.load(options + 2).to(tl.float32, bitcast=True)
    top_k = tl.load(options + 3)
    top_p = tl.load(options + 4).to(tl.float32, bitcast=True)
    floor = tl.load(options + 5).to(tl.float32, bitcast=True)
    greedy = temperature == 0
    temperature = tl.where(greedy, 1.0, temperature)

    place = tl.arange(0, TILES_PAD * LISTED)
    keys = tl.topk(tl.load(key_ptr + place, mask=place < TILES * LISTED, other=_LEAST), LISTED)
    rank = tl.arange(0, LISTED)
    ids, values = _ids_of(keys, ID_BITS), _values_of(keys, ID_BITS)
    peak = tl.max(values, 0)
    sane = (peak > _NOTHING) & (peak < float("inf"))
    tile = tl.arange(0, TILES_PAD)
    peaks = _values_of(tl.load(key_ptr + tile * LISTED, mask=tile < TILES, other=_LEAST), ID_BITS)
    normalizer = peak + tl.log(_row_mass(mass_ptr, peaks, peak, 1.0, TILES).to(tl.float32))
    total = _row_mass(mass_ptr + TILES, peaks, peak, temperature, TILES)

    below = (values - peak) / temperature
    weights = tl.exp(below.to(tl.float64))
    listed = keys > _LEAST
    bounded = (top_k > 0) & (top_k < N)
    kth = tl.max(tl.where(rank == tl.minimum(top_k, LISTED) - 1, values, _NOTHING), 0)
    kept = listed & ((not bounded) | (values >= kth))
    ends = N <= LISTED
    known = (not bounded) | ends | (tl.sum((kept & (rank == LISTED - 1)).to(tl.int32), 0) == 0)
    mass = tl.where(bounded, tl.sum(tl.where(kept, weights, 0.0), 0), total)
    before = tl.cumsum(weights, 0) - weights
    enough = tl.where(top_p >= 1, float("inf"), top_p.to(tl.float64) * mass)
    kept = kept & (before < enough) & (below >= floor)
    decided = known & (ends | (tl.sum((kept & (rank == LISTED - 1)).to(tl.int32), 0) == 0))
    if greedy | decided | (not sane):
        chosen = _draw_from_list(ids, tl.where(kept & ((not greedy) | (rank == 0)), weights, 0.0), uniform)
    else:
        least = tl.full((), _LEAST + 1, tl.int64)
        if bounded:
            least = _kth(logits_ptr, top_k, N, BLOCK, ID_BITS)
        if top_p < 1:
            within = total
            if bounded:
                within = _mass_between(logits_ptr, least, least - 1, peak, temperature, N, BLOCK, ID_BITS)
            wanted = top_p.to(tl.float64) * within
            least = _nucleus(logits_ptr, least, wanted, peak, temperature, N, BLOCK, ID_BITS)
        chosen = _draw_from_row(logits_ptr, least, floor, uniform, peak, temperature, N, BLOCK, ID_BITS)

    chosen = tl.where(sane, tl.minimum(chosen, N - 1), 0)
    own = tl.load(logits_ptr + chosen).to(tl.float32)
    tl.store(chosen_ptr + row, chosen)
    out = sampled_ptr + row * (4 + 2 * LISTED)
    tl.store(out, tl.where(sane, chosen, -1))
    tl.store(out + 1, (own - normalizer).to(tl.int32, bitcast=True))
    tl.store(out + 2, normalizer.to(tl.int32, bitcast=True))
    tl.store(out + 3, total.to(tl.float32).to(tl.int32, bitcast=True))
    tl.store(out + 4 + rank, tl.where(listed, ids, -1))
    tl.store(out + 4 + LISTED + rank, values.to(tl.int32, bitcast=True))
