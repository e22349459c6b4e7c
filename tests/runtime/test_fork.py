"""A fork shares its original's pages until one of the two writes, and neither ever sees what the other writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.kv import CachedSequence, PagePool
from llamac.runtime.loader import load
from llamac.runtime.model import Model
from llamac.runtime.session import Feed, Session

Reference = Callable[[list[int]], Any]


@pytest.fixture(scope="module")
def model(toy_artifact: Path) -> Iterator[Model]:
    with load(toy_artifact, sequences=4) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _every_page_comes_back(model: Model) -> Iterator[None]:
    yield
    assert model.session.pools[0].free_pages == model.session.pools[0].page_count


def last_row(session: Session, sequence: CachedSequence, ids: list[int]) -> Any:
    return session.step([Feed(sequence, ids)])[0]


def test_a_fork_costs_a_page_only_when_it_writes(model: Model) -> None:
    session, pool = model.session, model.session.pools[0]
    first = session.open()
    session.prefill(first, list(range(pool.page_tokens + 3)))
    before = pool.free_pages
    second = session.fork(first)
    assert pool.free_pages == before and second.pages == first.pages
    last_row(session, second, [7])
    assert pool.free_pages == before - 1
    assert second.pages[0] == first.pages[0] and second.pages[1] != first.pages[1]
    first.close()
    assert pool.free_pages == before
    second.close()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_forks_go_their_own_ways(seed: int, model: Model, toy_logits: Reference) -> None:
    """Random appending, forking, going back and closing: every row is what its own tokens give."""
    draw = random.Random(seed)
    session = model.session
    alive = [session.open()]
    session.prefill(alive[0], [draw.randrange(256) for _ in range(draw.randint(1, 30))])
    try:
        for _ in range(30):
            sequence = draw.choice(alive)
            action = draw.random()
            if action < 0.25 and len(alive) < 6:
                alive.append(session.fork(sequence))
            elif action < 0.4:
                sequence.truncate(draw.randint(1, len(sequence)))
            elif action < 0.5 and len(alive) > 1:
                alive.remove(sequence)
                sequence.close()
            elif len(sequence) < 60:
                row = last_row(session, sequence, [draw.randrange(256) for _ in range(draw.randint(1, 4))])
                np.testing.assert_array_equal(row, toy_logits(sequence.ids)[-1])
        for sequence in alive:
            row = last_row(session, sequence, [9])
            np.testing.assert_array_equal(row, toy_logits(sequence.ids)[-1])
    finally:
        for sequence in alive:
            sequence.close()


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 1 << 32), chunk=st.sampled_from([0, 3, 4, 8]))
def test_no_page_is_lost_or_written_by_two(seed: int, chunk: int) -> None:
    """The same on pages alone, with windows of attention too: `held` is what was written to each page and position."""
    draw = random.Random(seed)
    pool = PagePool(64, 4, chunk, 4)
    held: dict[int, dict[int, int]] = {page: {} for page in range(64)}
    alive = [CachedSequence(pool)]

    def copy(cache: int, source: int, to: int) -> None:
        held[to] = dict(held[source])

    for _ in range(40):
        sequence = draw.choice(alive)
        action = draw.random()
        if action < 0.2 and len(alive) < 5:
            alive.append(sequence.fork())
        elif action < 0.35:
            sequence.truncate(draw.randint(0, len(sequence)))
        elif action < 0.45 and len(alive) > 1:
            alive.remove(sequence)
            sequence.close()
        elif len(sequence) < 40:
            start, stop = len(sequence), len(sequence) + draw.randint(1, 4)
            sequence.reserve(stop)
            sequence.cover(stop, copy)
            for position in range(start, stop):
                token = draw.randrange(1000)
                sequence.ids.append(token)
                held[sequence.pages[position // 4]][position] = token
        for each in alive:
            first = len(each) // chunk * chunk if chunk and len(each) else 0
            for position in range(first, len(each)):
                assert held[each.pages[position // 4]][position] == each.ids[position]
    for sequence in alive:
        sequence.close()
    assert pool.free_pages == 64


class WithoutCopies:
    """A device that cannot copy pages."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.plan, self.vocab_size, self.page_counts = device.plan, device.vocab_size, device.page_counts

    def step(self, *arguments: Any) -> None:
        self.device.step(*arguments)


def test_without_copies_the_tokens_are_computed_again(model: Model, toy_logits: Reference) -> None:
    session = Session(WithoutCopies(model.session.device), model.context)
    first = session.open()
    session.prefill(first, [3, 1, 4, 1, 5])
    second = session.fork(first)
    assert set(first.pages).isdisjoint(second.pages)
    np.testing.assert_array_equal(last_row(session, second, [9]), toy_logits([3, 1, 4, 1, 5, 9])[-1])
    first.close()
    with pytest.raises(LlamacError, match="LLC0815"):
        session.fork(first)
    second.close()


def test_a_closed_sequence_has_no_forks(model: Model) -> None:
    sequence = model.session.open()
    sequence.close()
    with pytest.raises(LlamacError, match="LLC0815"):
        model.session.fork(sequence)


def test_going_back_twice_into_a_page_that_was_used_again() -> None:
    """A window's page that came back for its last positions does not hold the ones before them."""
    sequence = CachedSequence(PagePool(64, 4, 3, 4))
    for stop in range(4, 37, 4):
        sequence.reserve(stop)
        sequence.cover(stop)
        sequence.ids += range(len(sequence), stop)
    sequence.truncate(28)
    assert len(sequence) == 27  # the row at 28 sees 27, whose page is gone
    sequence.reserve(29)
    sequence.cover(29)
    sequence.ids += [27, 28]
    sequence.truncate(26)
    assert len(sequence) == 24  # the row at 26 sees 24 and 25, which were never written again
