"""Adding up what several programs computed of one tile: the last of them to arrive does it, in a fixed order.

No kernel of its own, no atomic additions of floats: the sum is the same every time. A counter a tile, zero before the
first launch, is zero again afterwards.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_range(
    split: tl.tensor, KP: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The columns [start, stop) of one of SPLITS parts, in whole blocks of BK; none for a part behind the end."""
    PART: tl.constexpr = (KP // BK + (KP % BK != 0) + SPLITS - 1) // SPLITS * BK
    start = split * PART
    return start, tl.minimum(start + PART, KP)


@triton.jit
def store_part(partial_ptr: tl.tensor, y: tl.tensor, split: tl.tensor, rows: tl.tensor, N: tl.constexpr) -> None:
    """Keep y [M, BN] for the last program: partial is f32 [splits, M, N]."""
    M: tl.constexpr = y.shape[0]
    part = partial_ptr + split.to(tl.int64) * (M * N)
    tl.store(part + tl.arange(0, M)[:, None] * N + rows[None, :], y, mask=(rows < N)[None, :])


@triton.jit
def arrive(counter_ptr: tl.tensor, tile: tl.tensor, SPLITS: tl.constexpr) -> tl.tensor:
    """Count this program in; true for the last one, for which all that the others stored is visible."""
    tl.debug_barrier()  # every thread has stored before one of them says so
    before = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel", scope="gpu")
    last = before == SPLITS - 1
    if last:
        tl.store(counter_ptr + tile, 0)
    return last


@triton.jit
def sum_parts(
    partial_ptr: tl.tensor, rows: tl.tensor, M: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr
) -> tl.tensor:
    """f32 [M, BN]: the sum over all parts, in their order, past the cache that other programs did not write to."""
    total = tl.zeros((M, rows.shape[0]), tl.float32)
    for split in range(SPLITS):
        places = partial_ptr + (split * M + tl.arange(0, M)[:, None]).to(tl.int64) * N + rows[None, :]
        total += tl.load(places, mask=(rows < N)[None, :], other=0.0, cache_modifier=".cg")
    return total
