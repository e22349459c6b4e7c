"""Byte-pair merging over a table of ranks, as tiktoken does it: the lowest rank first, the leftmost of equals."""

from __future__ import annotations

from collections.abc import Callable

RankOf = Callable[[bytes], int | None]
NO_RANK = 1 << 32


def merge_bytes(word: bytes, rank_of: RankOf) -> list[int]:
    """The ids of a word. Quadratic in its length: for words, not for texts. Every single byte must have a rank."""
    whole = rank_of(word)
    if whole is not None:
        return [whole]
    parts = [word[place : place + 1] for place in range(len(word))]
    ids = [_rank(part, rank_of) for part in parts]
    pairs = [_rank(word[place : place + 2], rank_of) for place in range(len(word) - 1)]
    while pairs:
        lowest = min(pairs)
        if lowest == NO_RANK:
            break
        place = pairs.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids[place : place + 2] = [lowest]
        del pairs[place]
        if place:
            pairs[place - 1] = _rank(parts[place - 1] + parts[place], rank_of)
        if place < len(pairs):
            pairs[place] = _rank(parts[place] + parts[place + 1], rank_of)
    return ids


def _rank(part: bytes, rank_of: RankOf) -> int:
    rank = rank_of(part)
    return NO_RANK if rank is None else rank
