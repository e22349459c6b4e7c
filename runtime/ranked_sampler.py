"""Draws from the best logits of a row alone, where those decide: the same draw as from all of them, or none.

A list holds the largest logits of a row in order. It decides a greedy choice; a draw among the top k when the k-th is
not tied with the end of the list; top-p when the nucleus surely ends within the list, which the sum over the whole
vocabulary tells; min-p when the list reaches below the threshold. What it cannot decide needs the whole row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sampler import (
    Logits,
    Sampler,
    SamplerOptions,
    largest_indices,
    min_p_indices,
    no_distribution,
    relative,
    top_p_indices,
)

SLACK = 2.0**-10
"""How much mass, relative to the nucleus, must lie between its border and the next token's: a hundred times more than
what the sum of the code and that of numpy can differ by."""

TIES = 8
"""Entries beyond the k of top-k: enough to see that the k-th is not tied with what is not in the list."""


@dataclass(frozen=True)
class Need:
    """What of a row's logits a choice needs: the `count` best (0: not that way), whether the sum at this inverse
    temperature too, and whether the whole row must be there in case they do not decide.
    """

    count: int
    inverse_temperature: float | None = None
    whole_row: bool = True


WHOLE_ROW = Need(0)
GREEDY = Need(1, whole_row=False)


def need_of(options: SamplerOptions, most: int) -> Need:
    """What these options need of rows whose `most` best logits can be had (0: none)."""
    if most == 0 or options.repetition_penalty != 1:
        return WHOLE_ROW
    if options.temperature == 0:
        return GREEDY
    if options.top_k:
        # Undecided only by a tie of many, so the whole row is computed again when that happens.
        return Need(min(options.top_k + TIES, most), whole_row=False) if options.top_k < most else WHOLE_ROW
    if options.top_p < 1:
        return Need(most, 1 / options.temperature)
    return Need(most) if options.min_p > 0 else WHOLE_ROW


def choose_ranked(
    sampler: Sampler, ids: NDArray[np.int32], values: Logits, total: float | None, vocab_size: int
) -> int | None:
    """The id that `Sampler.sample` would choose from the whole row, or None when the list does not decide.

    ids, values: the best logits, [count], as `RankedRows` holds them; total: their sum over the vocabulary, for top-p.
    LLC0853 as for a whole row.
    """
    if not math.isfinite(values[0]):
        raise no_distribution()
    options = sampler.options
    if options.temperature == 0:
        return int(ids[0])
    if ids[-1] < 0:
        return None
    is_all = len(ids) == vocab_size
    chosen = _top_k(ids, values, options, is_all) if options.top_k else _likeliest(ids, values, total, options, is_all)
    return None if chosen is None else sampler.draw(*chosen)


_Candidates = tuple[NDArray[np.int64], NDArray[np.float64]]


def _top_k(ids: NDArray[np.int32], values: Logits, options: SamplerOptions, is_all: bool) -> _Candidates | None:
    count = len(ids)
    if options.top_k < count:
        count = int(np.count_nonzero(values >= values[options.top_k - 1]))  # ids tied with the k-th all stay
    if count == len(ids) and not is_all:
        return None
    order = np.argsort(ids[:count])
    scaled = relative(values[order], options.temperature)
    if options.top_p < 1:
        kept = top_p_indices(scaled, options.top_p)
        order, scaled = order[kept], scaled[kept]
    return _above(ids[order], scaled, options)


def _likeliest(
    ids: NDArray[np.int32], values: Logits, total: float | None, options: SamplerOptions, is_all: bool
) -> _Candidates | None:
    order = np.argsort(ids)
    scaled = relative(values[order], options.temperature)
    least = scaled[order.argmax()]  # of the last entry of the list
    if options.top_p < 1:
        kept = _nucleus(scaled, least, options.top_p, total, is_all)
        if kept is None:
            return None
        order, scaled = order[kept], scaled[kept]
    elif not is_all and least >= math.log(options.min_p):
        return None
    return _above(ids[order], scaled, options)


def _above(ids: NDArray[np.int32], scaled: Logits, options: SamplerOptions) -> _Candidates:
    if options.min_p > 0:
        kept = min_p_indices(scaled, options.min_p)
        ids, scaled = ids[kept], scaled[kept]
    return ids.astype(np.int64), np.exp(scaled, dtype=np.float64)


def _nucleus(
    scaled: Logits, least: np.float32, top_p: float, total: float | None, is_all: bool
) -> NDArray[np.int64] | None:
    """Places of the nucleus among the entries of a list, in the order of `scaled`; None when it is not sure."""
    if is_all:
        return top_p_indices(scaled, top_p)
    if total is None:
        return None
    wanted = top_p * total
    descending = np.sort(scaled)[::-1]
    mass = np.cumsum(np.exp(descending), dtype=np.float64)
    count = int(np.searchsorted(mass, wanted, side="left")) + 1
    if count > len(mass) or mass[count - 1] < wanted * (1 + SLACK):
        return None
    if count > 1 and mass[count - 2] > wanted * (1 - SLACK):
        return None
    cut = descending[count - 1]
    return None if cut <= least else largest_indices(scaled, cut, count)
