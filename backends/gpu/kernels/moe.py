"""Mixtures of experts: routing on the GPU, products expert by expert, answers added back.

A slot is one choice of one token; routed rows are the slots sorted by expert, stably, as in the IR. Expert e has the
rows [e * N, (e + 1) * N) of its stack; the ups of all experts follow the gates of all. The score scales the input of an
expert, so it scales what its gate and up give. Which expert a program works for it reads from the offsets: no launch
depends on how tokens were routed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .linear import inverse_rms, silu
from .packed import exponent_of_one
from .products import few_rows, many_rows, wait

_LOWEST = tl.constexpr(-3.4028234663852886e38)
_TAKEN = tl.constexpr(float("-inf"))


@triton.jit
def route(
    logits_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    slot_score_ptr: tl.tensor,
    order_ptr: tl.tensor,
    place_ptr: tl.tensor,
    score_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    tokens: tl.tensor,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """The TOP best experts of each row of logits [T, EXPERTS], of equal ones the first; one program.

    order, place i32 [T * TOP]: slot of each routed row, routed row of each slot. score f32: sigmoid of each routed
    row's logit. offset i32 [EXPERTS + 1]: the routed rows of expert e are [offset[e], offset[e + 1]). chosen i32 and
    slot_score f32 [T * TOP] are scratch. WIDTH: a power of two from EXPERTS on.
    """
    wait(PDL)
    e, b = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    counts = tl.zeros((WIDTH,), tl.int32)
    for start in range(0, tokens, BLOCK):
        t = start + b
        known = (t < tokens)[:, None] & (e < EXPERTS)[None, :]
        logits = tl.load(logits_ptr + t[:, None] * EXPERTS + e[None, :], mask=known, other=_TAKEN).to(tl.float32)
        # NaN last among the real ones; what is taken or no expert, behind those.
        scored = tl.where(known, tl.where(logits >= _LOWEST, logits, _LOWEST), _TAKEN)
        for choice in tl.static_range(TOP):
            best, expert = tl.max(scored, 1, return_indices=True)
            hit = e[None, :] == expert[:, None]
            counts += tl.sum((hit & known).to(tl.int32), 0)
            scored = tl.where(hit, _TAKEN, scored)
            tl.store(chosen_ptr + t * TOP + choice, expert, mask=t < tokens)
            tl.store(slot_score_ptr + t * TOP + choice, 1.0 / (1.0 + tl.exp(-best)), mask=t < tokens)
    ends = tl.cumsum(counts, 0)
    tl.store(offset_ptr + 1 + e, ends, mask=e < EXPERTS)
    tl.store(offset_ptr + e, 0, mask=e == 0)
    tl.debug_barrier()  # the choices that other threads stored are read from here on
    starts = ends - counts
    for start in range(0, tokens * TOP, BLOCK):
        slot = start + b
        expert = tl.load(chosen_ptr + slot, mask=slot < tokens * TOP, other=WIDTH)
        hit = (e[None, :] == expert[:, None]).to(tl.int32)
        before = tl.cumsum(hit, 0) - hit
        place = tl.sum(hit * (starts[None, :] + before), 1)
        inside = slot < tokens * TOP
        tl.store(place_ptr + slot, place, mask=inside)
        tl.store(order_ptr + place, slot, mask=inside)
        tl.store(score_ptr + place, tl.load(slot_score_ptr + slot, mask=inside, other=0.0), mask=inside)
        starts += tl.sum(hit, 0)


@triton.jit
def expert_of_row(offset_ptr: tl.tensor, row: tl.tensor, EXPERTS: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """The expert that a routed row belongs to."""
    e = tl.arange(0, WIDTH)
    ends = tl.load(offset_ptr + 1 + e, mask=e < EXPERTS, other=2147483647)
    return tl.sum((ends <= row).to(tl.int32), 0)


@triton.jit
def expert_tile(
    offset_ptr: tl.tensor, tile: tl.tensor, EXPERTS: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Tiles of BM routed rows, none across experts: the expert, first row and end of one (end <= row: no tile)."""
    e = tl.arange(0, WIDTH)
    begins = tl.load(offset_ptr + e, mask=e < EXPERTS, other=0)
    ends = tl.load(offset_ptr + 1 + e, mask=e < EXPERTS, other=0)
    count = tl.where(e < EXPERTS, (ends - begins + BM - 1) // BM, 0)
    upto = tl.cumsum(count, 0)
    expert = tl.sum((upto <= tile).to(tl.int32), 0)
    own = e == expert
    row = tl.sum(tl.where(own, begins + (tile - upto + count) * BM, 0), 0)
    end = tl.sum(tl.where(own, ends, 0), 0)
    return expert, row, end


@triton.jit
def decode_expert_gate_up(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    order_ptr: tl.tensor,
    score_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    EPS: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y [T * TOP, N] = swiglu of score * [rms_norm](x[token]) for each routed row; grid (tiles of BN, T * TOP)."""
    tile, row = tl.program_id(0), tl.program_id(1)
    wait(PDL)
    expert = expert_of_row(offset_ptr, row, EXPERTS, WIDTH)
    x_row = tl.load(order_ptr + row + tl.arange(0, 1)) // TOP
    columns = tile * BN + tl.arange(0, BN)
    rows = expert.to(tl.int64) * N + tl.minimum(columns, N - 1)
    gate, up, squares = few_rows(
        x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_row, rows, rows + EXPERTS * N, 0, KP, exponent_of_one(row),
        K, KP, K, BK, WEIGHT, GROUP, ZERO, True, False,
    )  # fmt: skip
    factor = tl.load(score_ptr + row)
    if norm_ptr is not None:
        factor = factor * inverse_rms(squares, x_ptr, x_row, K, K, EPS, True)
    y = tl.reshape(silu(gate * factor) * (up * factor), (BN,))
    tl.store(y_ptr + row.to(tl.int64) * N + columns, y.to(y_ptr.dtype.element_ty), mask=columns < N)


@triton.jit
def decode_expert_down(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    order_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    base_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y of each routed row = its expert's W x[row]; grid (tiles of BN, T * TOP).

    With base, for one expert a token: y[token] = base[token] + W x[row], so nothing is left to scatter.
    """
    tile, row = tl.program_id(0), tl.program_id(1)
    wait(PDL)
    expert = expert_of_row(offset_ptr, row, EXPERTS, WIDTH)
    columns = tile * BN + tl.arange(0, BN)
    rows = expert.to(tl.int64) * N + tl.minimum(columns, N - 1)
    y, _, _ = few_rows(
        x_ptr, None, w_ptr, scale_ptr, min_ptr, row + tl.arange(0, 1), rows, rows, 0, KP, exponent_of_one(row),
        K, KP, K, BK, WEIGHT, GROUP, ZERO, False, False,
    )  # fmt: skip
    y = tl.reshape(y, (BN,))
    to = row
    if base_ptr is not None:
        to = tl.load(order_ptr + row)
        y += tl.load(base_ptr + to.to(tl.int64) * N + columns, mask=columns < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + to.to(tl.int64) * N + columns, y.to(y_ptr.dtype.element_ty), mask=columns < N)


@triton.jit
def prefill_expert_gate_up(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    order_ptr: tl.tensor,
    score_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    EPS: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """As `decode_expert_gate_up`, in tiles; grid (T * TOP / BM + EXPERTS tiles at most, tiles of BN)."""
    wait(PDL)
    expert, row0, end = expert_tile(offset_ptr, tl.program_id(0), EXPERTS, WIDTH, BM)
    if row0 < end:
        m = row0 + tl.arange(0, BM)
        slots = tl.load(order_ptr + tl.minimum(m, end - 1))
        x_rows = (slots // TOP).to(tl.int64)
        columns = tl.program_id(1) * BN + tl.arange(0, BN)
        rows = expert.to(tl.int64) * N + tl.minimum(columns, N - 1)
        gate, up = many_rows(
            x_ptr, norm_ptr, w_ptr, scale_ptr, min_ptr, x_rows, rows, rows + EXPERTS * N,
            K, KP, K, EPS, BK, WEIGHT, GROUP, ZERO, DOT, True,
        )  # fmt: skip
        factor = tl.load(score_ptr + tl.minimum(m, end - 1))
        if x_scale_ptr is not None:
            factor = factor * tl.load(x_scale_ptr + x_rows)
        y = silu(gate * factor[None, :]) * (up * factor[None, :])
        places = y_ptr + m.to(tl.int64)[None, :] * N + columns[:, None]
        tl.store(places, y.to(y_ptr.dtype.element_ty), mask=(columns < N)[:, None] & (m < end)[None, :])


@triton.jit
def prefill_expert_down(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    order_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    base_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """As `decode_expert_down`, in tiles; grid as in `prefill_expert_gate_up`."""
    wait(PDL)
    expert, row0, end = expert_tile(offset_ptr, tl.program_id(0), EXPERTS, WIDTH, BM)
    if row0 < end:
        m = row0 + tl.arange(0, BM)
        x_rows = tl.minimum(m, end - 1).to(tl.int64)
        columns = tl.program_id(1) * BN + tl.arange(0, BN)
        rows = expert.to(tl.int64) * N + tl.minimum(columns, N - 1)
        y, _ = many_rows(
            x_ptr, None, w_ptr, scale_ptr, min_ptr, x_rows, rows, rows,
            K, KP, K, 0.0, BK, WEIGHT, GROUP, ZERO, DOT, False,
        )  # fmt: skip
        if x_scale_ptr is not None:
            y *= tl.load(x_scale_ptr + x_rows)[None, :]
        inside = (columns < N)[:, None] & (m < end)[None, :]
        to = x_rows
        if base_ptr is not None:
            to = tl.load(order_ptr + x_rows).to(tl.int64)
            y += tl.load(base_ptr + to[None, :] * N + columns[:, None], mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + to[None, :] * N + columns[:, None], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scatter_routed(
    routed_ptr: tl.tensor,
    place_ptr: tl.tensor,
    base_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y [T, N] = base plus the routed rows of each token, best expert first; grid (T, blocks of columns)."""
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    wait(PDL)
    total = tl.load(base_ptr + token.to(tl.int64) * N + columns, mask=inside, other=0.0).to(tl.float32)
    for choice in tl.static_range(TOP):
        row = tl.load(place_ptr + token * TOP + choice).to(tl.int64)
        total += tl.load(routed_ptr + row * N + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + token.to(tl.int64) * N + columns, total.to(y_ptr.dtype.element_ty), mask=inside)
