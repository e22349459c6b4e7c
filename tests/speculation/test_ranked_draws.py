"""A draw from the best logits alone is the draw from the whole row, or none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime.ranked_sampler import GREEDY, WHOLE_ROW, choose_ranked, need_of
from llamac.runtime.sampler import Logits, Sampler, SamplerOptions

MOST = 64

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "top_k": 1},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.3, "top_k": 55, "top_p": 0.7},
    {"temperature": 0.3, "top_k": 63, "min_p": 0.05},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.5, "min_p": 0.02},
    {"temperature": 2.0, "top_p": 0.97},
    {"temperature": 0.7, "min_p": 0.05},
    {"temperature": 1e-3, "top_p": 0.9},
]

ROWS = {
    "peaked": lambda random: random.standard_normal(3000) * 4,
    "flat": lambda random: random.standard_normal(3000) * 0.3,
    "coarse": lambda random: np.round(random.standard_normal(3000) * 8),
    "few": lambda random: np.where(random.random(3000) < 0.01, random.standard_normal(3000) * 3, -np.inf),
    "constant": lambda random: np.zeros(3000),
    "short": lambda random: random.standard_normal(50) * 2,
}


def ranked(row: Logits, count: int, temperature: float | None) -> tuple[Any, Any, float | None]:
    """The list that the code would give, and the sum with errors of its size."""
    order = np.argsort(-row, kind="stable")[:count]
    ids = np.where(np.isneginf(row[order]), -1, order).astype(np.int32)
    total = None
    if temperature is not None:
        exponents = (row - row.max()).astype(np.float64) * np.float32(1 / temperature)
        total = float(np.float32(np.exp(exponents).sum() * (1 + 5e-6)))
    return ids, row[order], total


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_draw_or_none(kind: str, options: dict[str, Any]) -> None:
    random, decided = np.random.default_rng(8), 0
    settings = SamplerOptions(**options, seed=5)
    for _ in range(40):
        row = ROWS[kind](random).astype(np.float32)
        need = need_of(settings, min(MOST, len(row)))
        if need == WHOLE_ROW:
            assert settings.top_k >= len(row), "a list as long as the row leaves nothing to rank"
            continue
        whole, listed = Sampler(settings), Sampler(settings)
        temperature = settings.temperature if need.inverse_temperature is not None else None
        for _ in range(3):
            expected = whole.sample(row).token_id
            found = choose_ranked(listed, *ranked(row, need.count, temperature), len(row))
            if found is None:
                found = listed.sample(row).token_id  # nothing of the stream was used
            else:
                decided += 1
            assert found == expected
    if kind == "peaked" and settings.top_p < 0.95:
        assert decided >= 110, "a peaked row is decided by its best, but for a border that is too near"


def test_what_is_needed() -> None:
    def need(**options: Any) -> Any:
        return need_of(SamplerOptions(**options), MOST)

    assert need() == need(top_k=5) == GREEDY
    assert need(repetition_penalty=1.1) == need(temperature=1) == need(temperature=1, top_k=64) == WHOLE_ROW
    assert need_of(SamplerOptions(), 0) == WHOLE_ROW, "code that does not rank"
    assert (need(temperature=1, top_k=10).count, need(temperature=1, top_k=10).whole_row) == (18, False)
    assert need(temperature=1, top_k=63).count == 64
    nucleus = need(temperature=0.5, top_p=0.9)
    assert (nucleus.count, nucleus.inverse_temperature, nucleus.whole_row) == (64, 2.0, True)
    assert (need(temperature=1, min_p=0.1).count, need(temperature=1, min_p=0.1).inverse_temperature) == (64, None)


@pytest.mark.parametrize("first", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_distribution(first: float) -> None:
    values = np.array([first, 0, 0], np.float32)
    for options in ({}, {"temperature": 1.0, "top_k": 2}):
        sampler = Sampler(SamplerOptions(**options, seed=1))
        with pytest.raises(LlamacError) as caught:
            choose_ranked(sampler, np.array([0, 1, 2], np.int32), values, None, 9)
        whole = np.array([0, first, *[0.0 if first > 0 or first != first else first] * 7], np.float32)
        whole[0] = whole[2]
        with pytest.raises(LlamacError) as plain:
            sampler.sample(whole)
        assert caught.value.message() == plain.value.message() and caught.value.code == "LLC0853"
