"""Pages are handed out all or none, come back, and are used again."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.kv import CachedSequence, PagePool, window_pages


def test_a_sequence_owns_just_the_pages_it_needs() -> None:
    sequence = CachedSequence(PagePool(4, 256))
    for tokens, pages in ((1, 1), (256, 1), (257, 2)):
        sequence.reserve(tokens)
        assert sequence.tables[0].owned == pages
    sequence.cover(257)
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
    second.cover(8)
    assert sorted(second.pages) == [0, 1]
    with pytest.raises(LlamacError, match="LLC0815"):
        first.reserve(1)


def test_trim_gives_back_what_lies_beyond_the_last_token() -> None:
    pool = PagePool(4, 4)
    sequence = CachedSequence(pool)
    sequence.reserve(16)
    sequence.cover(9)
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
            sequences[index].cover(tokens)
    owned = [page for sequence in sequences for page in sequence.pages]
    assert len(set(owned)) == len(owned)
    assert len(owned) + pool.free_pages == 8


def test_a_refused_reservation_leaves_every_pool_as_it_was() -> None:
    large, small = PagePool(8, 4), PagePool(1, 4)
    sequence = CachedSequence(large, small)
    with pytest.raises(LlamacError, match="LLC0808"):
        sequence.reserve(9)
    assert (large.free_pages, small.free_pages) == (8, 1)


CHUNK = st.integers(1, 25)


@given(CHUNK, st.integers(1, 9), st.integers(1, 7), st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=40))
def test_chunked_layers_keep_what_rows_see_in_the_planned_pages(
    chunk: int, page: int, most: int, moves: list[tuple[bool, int]]
) -> None:
    """Whatever is appended and taken back, every visible position has a page, and none is held by two of them."""
    pool = PagePool(window_pages(chunk, most, page), page, chunk, most)
    sequence = CachedSequence(pool)
    sequence.reserve(10**6)
    table = sequence.tables[0]
    written: dict[int, int] = {}
    for forward, amount in moves:
        if not forward:
            sequence.truncate(amount % (len(sequence) + 1))
            continue
        start, stop = len(sequence), len(sequence) + 1 + amount % most
        sequence.cover(stop)
        for position in range(start, stop):
            written[position] = table.pages[position // page]
        sequence.ids.extend(range(start, stop))
        for position in range(start // chunk * chunk, stop):
            assert table.pages[position // page] == written[position] >= 0
        held = [p for p in table.pages if p >= 0]
        assert len(set(held)) == len(held) <= pool.page_count
        assert table.owned == pool.page_count


def test_going_back_behind_a_chunk_goes_back_to_its_start() -> None:
    sequence = CachedSequence(PagePool(8, 4), PagePool(window_pages(8, 4, 4), 4, 8, 4))
    sequence.reserve(32)
    for _ in range(6):
        sequence.cover(len(sequence) + 4)
        sequence.ids.extend(range(4))
    sequence.truncate(21)
    assert len(sequence) == 21
    sequence.truncate(13)
    assert len(sequence) == 8


def test_pages_come_back_in_the_middle_of_a_call() -> None:
    """A stream that nobody holds is closed wherever Python collects it, in the thread that is inside the pool too."""
    pool = PagePool(8, 4)
    forgotten, shared = pool.allocate(3), pool.allocate(2)
    pool.share(shared)

    class Interrupted(list[int]):
        def pop(self, *place: Any) -> int:  # type: ignore[override]
            if forgotten:
                pages = forgotten.copy()
                forgotten.clear()
                pool.release(pages)
                pool.release(shared)
            return super().pop(*place)

    pool._free = Interrupted(pool._free)
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.extend(pool.allocate(2)), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for itself"
    assert len(taken) == 2 and pool.free_pages == 4 and not pool.is_shared(shared[0])
    pool.release(shared)
    pool.release(taken)
    assert pool.free_pages == 8 and sorted(pool.allocate(8)) == list(range(8))
