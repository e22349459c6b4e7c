"""What the scheduler asks of a device that ranks: lists where they decide, whole rows where they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from markov_device import MarkovDevice, RankingMarkovDevice

from llamac.runtime.generation import Continuation, GenerationOptions
from llamac.runtime.ranked import RankedRows
from llamac.runtime.sampler import SamplerOptions
from llamac.runtime.scheduler import run_together
from llamac.runtime.session import Session
from llamac.runtime.speculation.lookup import PromptLookup

CONTEXT = 100
RANDOM = np.random.default_rng(4).standard_normal((40, 40)) * 4
TIED = np.round(np.random.default_rng(5).standard_normal((40, 40)))
"""Most logits of a row stand in it many times."""

SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.3},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 20},
    {"repetition_penalty": 1.3},
]


def texts(device: MarkovDevice, samplings: list[dict[str, Any]], guess: bool) -> list[list[int]]:
    """New ids of a text for each of the samplings, run together."""
    session = Session(device, CONTEXT)
    made = [
        Continuation(
            [1, 2, 3, 1, 2],
            GenerationOptions(30, SamplerOptions(**{**options, "seed": seed})),
            None,
            CONTEXT,
            speculator=PromptLookup(5) if guess else None,
        )
        for seed, options in enumerate(samplings)
    ]
    for _ in run_together(session, made):
        pass
    assert session.pools[0].free_pages == session.pools[0].page_count
    return [text.token_ids for text in made]


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("table", [RANDOM, TIED], ids=["random", "tied"])
@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
def test_ranked_texts_are_those_of_whole_rows(table: np.ndarray, options: dict[str, Any], guess: bool) -> None:
    expected = texts(MarkovDevice(table), [options], False)
    assert texts(RankingMarkovDevice(table), [options], guess) == expected
    together = [options, *SAMPLINGS]
    assert texts(RankingMarkovDevice(table), together, guess) == texts(MarkovDevice(table), together, False)


def test_whole_rows_are_written_where_they_may_be_needed() -> None:
    written = {}
    for name, options in (("greedy", {}), ("top-k", SAMPLINGS[1]), ("top-p", SAMPLINGS[2]), ("plain", SAMPLINGS[4])):
        device = RankingMarkovDevice(RANDOM)
        texts(device, [options], False)
        written[name] = device.written
    assert written == {"greedy": 0, "top-k": 0, "top-p": 30, "plain": 30}
    device = RankingMarkovDevice(TIED)
    texts(device, [SAMPLINGS[1]], False)
    assert device.written > 0 and device.steps == 30 + device.written, "rows that ties left open were computed again"


def test_arrays_that_do_not_fit_are_refused() -> None:
    right = RankedRows.empty(3, 2, np.ones(3, np.float32))
    right.check(3)
    with pytest.raises(ValueError, match="of 4 rows"):
        right.check(4)
    with pytest.raises(TypeError, match="int32 ids"):
        RankedRows(right.ids.astype(np.int64), right.values).check(3)
    with pytest.raises(ValueError, match="one shape"):
        RankedRows(right.ids, right.values[:, :1].copy()).check(3)
    with pytest.raises(ValueError, match="come together"):
        RankedRows(right.ids, right.values, None, right.sums).check(3)
