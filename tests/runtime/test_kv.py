"""Pages are handed out all or none, come back, and are used again."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.kv import CachedSequence, PagePool


def test_a_sequence_owns_just_the_pages_it_needs() -> None:
    sequence = CachedSequence(PagePool(4, 256))
    sequence.reserve(1)
    assert len(sequence.pages) == 1
    sequence.reserve(256)
    assert len(sequence.pages) == 1
    sequence.reserve(257)
    assert len(sequence.pages) == 2


def test_out_of_pages_says_the_arithmetic_and_takes_nothing() -> None:
    pool = PagePool(4, 256)
    first, second = CachedSequence(pool), CachedSequence(pool)
    first.reserve(3 * 256)
    with pytest.raises(LlamacError, match=r"LLC0808.*2 more pages.*1 are free.*3 of 4.*1024 tokens"):
        second.reserve(257)
    assert pool.free_pages == 1
    assert second.pages == []


def test_closed_pages_are_used_again() -> None:
    pool = PagePool(2, 4)
    first = CachedSequence(pool)
    first.reserve(8)
    first.close()
    second = CachedSequence(pool)
    second.reserve(8)
    assert sorted(second.pages) == [0, 1]
    with pytest.raises(LlamacError, match="LLC0815"):
        first.reserve(1)


def test_trim_gives_back_what_lies_beyond_the_last_token() -> None:
    pool = PagePool(4, 4)
    sequence = CachedSequence(pool)
    sequence.reserve(16)
    sequence.ids.extend(range(9))
    sequence.truncate(5)
    sequence.trim()
    assert (len(sequence), len(sequence.pages), pool.free_pages) == (5, 2, 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=40))
def test_no_page_is_ever_lost_or_owned_twice(steps: list[tuple[int, int]]) -> None:
    pool = PagePool(8, 4)
    sequences = [CachedSequence(pool) for _ in range(4)]
    for index, tokens in steps:
        if tokens == 0:
            sequences[index].close()
            sequences[index] = CachedSequence(pool)
            continue
        with contextlib.suppress(LlamacError):
            sequences[index].reserve(tokens)
    owned = [page for sequence in sequences for page in sequence.pages]
    assert len(set(owned)) == len(owned)
    assert len(owned) + pool.free_pages == 8
