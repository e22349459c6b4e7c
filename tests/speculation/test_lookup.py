"""Prompt lookup finds what a search through the whole text would find, and its pace follows its luck."""

from __future__ import annotations

import numpy as np
import pytest

from llamac.runtime.speculation.lookup import Repetitions
from llamac.runtime.speculation.proposal import Pace


def searched(ids: list[int], longest: int, count: int) -> tuple[int, ...]:
    """The definition: the last earlier place of the longest n-gram that ends the text, and what follows it there."""
    for size in range(min(longest, len(ids) - 1), 0, -1):
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[-size:]:
                text = list(ids)
                for index in range(count):  # a copy that may read what it has written
                    text.append(text[end + index])
                return tuple(text[len(ids) :])
    return ()


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
@pytest.mark.parametrize("letters", [2, 4, 30])
def test_lookup_is_a_search(longest: int, letters: int) -> None:
    random = np.random.default_rng([longest, letters])
    for _ in range(20):
        text = [int(n) for n in random.integers(0, letters, random.integers(1, 60))]
        index = Repetitions(longest, Pace(8))
        for length in sorted(random.integers(1, len(text) + 1, 5)):  # it grows by several ids at a time
            part, count = text[:length], int(random.integers(1, 12))
            assert index.guess(part, count) == searched(part, longest, count)


def test_a_text_that_repeats_itself_goes_on() -> None:
    assert Repetitions(3, Pace(8)).guess([7, 1, 2, 3, 1, 2, 3, 1, 2], 7) == (3, 1, 2, 3, 1, 2, 3)
    assert Repetitions(3, Pace(8)).guess([5, 5], 4) == (5, 5, 5, 5)
    assert Repetitions(3, Pace(8)).guess([5], 4) == ()


def test_pace_grows_with_luck_and_rests_without() -> None:
    pace = Pace(8)
    assert pace.length() == 4
    pace.learn(4, 4)
    assert pace.length() == 8
    pace.learn(8, 8)
    assert pace.length() == 8, "no more than the most"
    pace.learn(8, 2)
    assert pace.length() == 3
    pace.learn(0, 0)
    assert pace.length() == 3, "a step without guesses teaches nothing"
    rests = []
    for _ in range(9):
        pace.learn(1, 0)
        rests.append(0)
        while pace.length() == 0:
            rests[-1] += 1
    assert rests == [0, 2, 4, 8, 16, 32, 32, 32, 32]
    pace.learn(1, 1)
    assert pace.length() == 2
