"""Ragged steps on a backend of one sequence: right whatever happens to pages, and without copies of the past."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.kv import CachedSequence
from llamac.runtime.one_sequence import OneSequenceDevice
from llamac.runtime.session import Feed, Session

from .past_sums import PAGE, VOCAB, PastSums, expected, memory_plan

PAGES = 24


def session_of(backend: PastSums, pages: int = PAGES) -> Session:
    return Session(OneSequenceDevice(backend, memory_plan(), [pages, pages]), context=pages * PAGE)


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1 << 32))
def test_any_history_of_sequences_gives_what_their_ids_give(seed: int) -> None:
    """Sequences grow by steps of any size in any company, go back by any number of tokens, close and begin again."""
    choose = random.Random(seed)
    session = session_of(PastSums())
    sequences: list[CachedSequence] = [session.open() for _ in range(3)]
    for _ in range(25):
        place = choose.randrange(3)
        what = choose.random()
        if what < 0.1:
            sequences[place].close()
            sequences[place] = session.open()
        elif what < 0.35:
            sequences[place].truncate(choose.randint(0, len(sequences[place])))
        fed = choose.sample(range(3), choose.randint(1, 3))
        counts = [min(choose.choice((1, 1, 2, 5)), 30 - len(sequences[i])) for i in fed]
        feeds = [
            Feed(sequences[i], [choose.randrange(VOCAB) for _ in range(count)], choose.choice(("all", "last", "none")))
            for i, count in zip(fed, counts, strict=True)
            if count > 0
        ]
        if feeds:
            logits = session.step(feeds)
            rows = {"all": lambda feed: len(feed.ids), "last": lambda feed: 1, "none": lambda feed: 0}
            parts = [expected(f.sequence.ids)[len(f.sequence) - rows[f.rows](f) :] for f in feeds]
            np.testing.assert_array_equal(logits, np.concatenate(parts))


def test_decoding_hands_the_present_on_uncopied() -> None:
    backend = PastSums()
    session = session_of(backend)
    sequence = session.open()
    session.step([Feed(sequence, list(range(7)))])
    for token in range(20):
        session.step([Feed(sequence, [token])])
    assert (backend.calls, backend.continued) == (21, 20)


def test_the_presents_that_are_remembered_do_not_pile_up() -> None:
    session = session_of(PastSums())
    sequence = session.open()
    for token in range(40):
        session.step([Feed(sequence, [token % VOCAB])])
    device = session.device
    assert isinstance(device, OneSequenceDevice)
    assert len(device._remembered) == 1


def test_sequences_that_share_pages_part_without_harm() -> None:
    """A runtime may give two sequences the same full pages: each writes only behind them."""
    device = OneSequenceDevice(PastSums(), memory_plan(), [8, 8])
    shared, first, second = [3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7]
    tables = np.array([[[0, 1, 2], [0, 1, 3]]] * 2, np.int32)

    def step(sequence: int, ids: list[int], start: int) -> Any:
        count = len(ids)
        logits = np.empty((count, VOCAB), np.float32)
        places, rows = np.arange(start, start + count, dtype=np.int32), np.arange(count, dtype=np.int32)
        device.step(ints(*ids), places, np.full(count, sequence, np.int32), tables, rows, logits)
        return logits

    step(0, shared, 0)
    for start in range(3):
        for sequence, ids in enumerate((first, second)):
            found = step(sequence, ids[start : start + 1], 8 + start)
            np.testing.assert_array_equal(found, expected([*shared, *ids])[8 + start : 9 + start])
    ones = [1] * 8
    step(0, ones, 0)  # the shared pages hold something else now: nothing that is remembered of them holds
    np.testing.assert_array_equal(step(1, [2], 11), expected([*ones, *second, 2])[11:])
    np.testing.assert_array_equal(step(1, [8, 8], 8), expected([*ones, 8, 8])[8:])


def test_a_step_that_fails_leaves_the_sequence_where_it_was() -> None:
    backend = PastSums()
    session = session_of(backend)
    sequence = session.open()
    session.step([Feed(sequence, [1, 2, 3])])
    backend.fails = True
    with pytest.raises(RuntimeError):
        session.step([Feed(sequence, [4])])
    backend.fails = False
    np.testing.assert_array_equal(session.step([Feed(sequence, [4])]), expected([1, 2, 3, 4])[3:])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ids": ints(VOCAB)}, "token id out of range"),
        ({"positions": ints(-1)}, "do not follow one another"),
        ({"sequences": ints(1)}, "sequence index out of range"),
        ({"rows": ints(1)}, "logit row out of range"),
        ({"positions": ints(5)}, "page out of range or missing"),
        ({"tables": np.full((2, 1, 1), -1, np.int32)}, "page out of range or missing"),
        ({"tables": np.full((2, 1, 1), 2, np.int32)}, "page out of range or missing"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], reason: str) -> None:
    device = OneSequenceDevice(PastSums(), memory_plan(), [2, 2])
    given = {"ids": ints(1), "positions": ints(0), "sequences": ints(0), "tables": np.zeros((2, 1, 1), np.int32)}
    asked = given | {"rows": ints(0)} | changes
    with pytest.raises(LlamacError, match=f"LLC0806 sums: step of 1 tokens: .*{reason}"):
        device.step(*asked.values(), np.empty((1, VOCAB), np.float32))


def test_what_it_cannot_do_is_said() -> None:
    backend = PastSums()
    device = OneSequenceDevice(backend, memory_plan(), [2, 2])
    with pytest.raises(LlamacError, match="LLC0939 sums: this device does not take a profile"):
        device.profiled()
    assert device.expert_counts().size == 0
    assert device.kv_bytes == 2 * PAGE * 4 * 2 * (6 + 4)
    device.close()
    assert backend.is_closed
    with pytest.raises(LlamacError, match="LLC0815"):
        device.step(
            *(ints(0) for _ in range(3)), np.zeros((2, 1, 1), np.int32), ints(0), np.empty((1, VOCAB), np.float32)
        )
