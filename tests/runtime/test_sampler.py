"""The sampler against transformers' logits processors: the same distribution, and draws that follow it."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.runtime.sampler import (
    SMALLEST,
    Sampler,
    SamplerOptions,
    candidates,
    penalize_repetition,
    top_logprobs,
)

PROBABILITY_ABSOLUTE = 3e-6
"""transformers computes softmax in f32; ours is in f64."""
VOCABULARY = 1000
HISTORY = [3, 5, 5, 999, 0, 17]


def logits(seed: int, spread: float, size: int = VOCABULARY) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def distribution(row: NDArray[np.float32], options: SamplerOptions) -> NDArray[np.float64]:
    """Probability of every id as the sampler draws it."""
    ids, weights = candidates(penalize_repetition(row, HISTORY, options.repetition_penalty), options)
    assert list(ids) == sorted(set(ids))
    probabilities = np.zeros(len(row))
    probabilities[ids] = weights / weights.sum()
    return probabilities


def transformers_distribution(row: NDArray[np.float32], options: SamplerOptions) -> NDArray[np.float64]:
    """The same through transformers, in the order in which its `generate` lists the processors."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    chain: list[Any] = []
    if options.repetition_penalty != 1:
        chain.append(process.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1:
        chain.append(process.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        chain.append(process.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        chain.append(process.TopPLogitsWarper(options.top_p))
    if options.min_p:
        chain.append(process.MinPLogitsWarper(options.min_p))
    scores = torch.tensor(row)[None]
    for step in chain:
        scores = step(torch.tensor([HISTORY]), scores)
    probabilities: NDArray[np.float64] = torch.softmax(scores[0].double(), -1).numpy()
    return probabilities


OPTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 2.5, "top_p": 0.3},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 0.8, "min_p": 0.05},
    {"temperature": 1.3, "min_p": 1.0},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 0.5, "top_k": 10},
    {"temperature": 0.9, "top_k": 100, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1},
    {"temperature": 1.5, "top_p": 0.9999},
    {"temperature": 0.2, "top_p": 0.01},
]


@pytest.mark.parametrize("values", OPTIONS, ids=str)
@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
def test_distribution_equals_transformers(values: dict[str, Any], spread: float) -> None:
    options = SamplerOptions(**values)
    for seed in range(3):
        row = logits(seed, spread)
        ours, theirs = distribution(row, options), transformers_distribution(row, options)
        np.testing.assert_array_equal(ours > 0, theirs > 0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=PROBABILITY_ABSOLUTE)


def test_top_p_keeps_the_token_that_crosses_p() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    kept = {p: list(candidates(row, SamplerOptions(temperature=1, top_p=p))[0]) for p in (0.4, 0.6, 0.79, 0.81, 0.96)}
    assert kept == {0.4: [0], 0.6: [0, 1], 0.79: [0, 1], 0.81: [0, 1, 2], 0.96: [0, 1, 2, 3]}


def test_ties() -> None:
    equal = np.zeros(10, np.float32)
    assert list(candidates(equal, SamplerOptions(temperature=1, top_p=0.35))[0]) == [0, 1, 2, 3], "lowest ids stay"
    assert len(candidates(equal, SamplerOptions(temperature=1, top_k=3))[0]) == 10, "as in transformers all stay"
    row = np.array([1, 7, 7, 2], np.float32)
    assert Sampler(SamplerOptions()).sample(row).token_id == 1


def test_draws_follow_the_distribution() -> None:
    row = logits(1, 1.5, 50)
    options = SamplerOptions(temperature=0.9, top_k=20, top_p=0.9, seed=7)
    sampler, count = Sampler(options), 20_000
    drawn = np.bincount([sampler.sample(row).token_id for _ in range(count)], minlength=50)
    ids, weights = candidates(row, options)
    expected = np.zeros(50)
    expected[ids] = weights / weights.sum() * count
    assert drawn[expected == 0].sum() == 0
    alive = expected > 0
    chi_square = (((drawn - expected)[alive] ** 2) / expected[alive]).sum()
    degrees = alive.sum() - 1
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)


def test_a_seed_gives_the_same_ids_everywhere() -> None:
    """The ids are written down: they must never change with the machine, the numpy version, or a refactoring."""
    sampler = Sampler(SamplerOptions(temperature=0.8, top_p=0.95, seed=1234))
    row = (np.arange(100) * 37 % 101).astype(np.float32) / 16
    assert [sampler.sample(row).token_id for _ in range(12)] == SEED_1234
    other = Sampler(SamplerOptions(temperature=0.8, top_p=0.95, seed=1235))
    assert [other.sample(row).token_id for _ in range(12)] != SEED_1234


SEED_1234 = [30, 60, 68, 30, 60, 87, 90, 19, 8, 16, 79, 30]


def test_without_a_seed_the_one_taken_is_told() -> None:
    row = logits(0, 1.0)
    first = Sampler(SamplerOptions(temperature=1.0))
    ids = [first.sample(row).token_id for _ in range(10)]
    again = Sampler(SamplerOptions(temperature=1.0, seed=first.seed))
    assert [again.sample(row).token_id for _ in range(10)] == ids
    assert Sampler(SamplerOptions(temperature=1.0)).seed != first.seed


def test_greedy_takes_the_penalty_but_no_filter() -> None:
    row = np.array([1.0, 3.0, 2.9, -1.0], np.float32)
    assert Sampler(SamplerOptions()).sample(row, [1]).token_id == 1
    assert Sampler(SamplerOptions(repetition_penalty=1.5)).sample(row, [1, 1]).token_id == 2
    assert row[1] == 3.0, "the caller's logits stay as they are"


def test_logprobs_are_the_models_own() -> None:
    row = logits(3, 4.0)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    sample = Sampler(SamplerOptions(temperature=0.3, top_k=5, seed=1)).sample(row)
    assert sample.logprob == pytest.approx(exact[sample.token_id], abs=1e-5)
    top = top_logprobs(row, 20)
    assert [entry.token_id for entry in top] == list(np.argsort(-exact, kind="stable")[:20])
    assert [entry.logprob for entry in top] == pytest.approx(np.sort(exact)[::-1][:20], abs=1e-5)
    assert [entry.token_id for entry in top_logprobs(np.zeros(5, np.float32), 3)] == [0, 1, 2]
    assert top_logprobs(row, 0) == []
    assert len(top_logprobs(row[:4], 99)) == 4


@pytest.mark.parametrize("temperature", [1e-30, 1e-8, 100.0])
def test_extreme_temperatures_and_logits(temperature: float) -> None:
    row = np.array([-np.inf, 3e38, -3e38, 0], np.float32)
    for top_p in (1.0, 0.5):
        assert Sampler(SamplerOptions(temperature=temperature, top_p=top_p, seed=0)).sample(row).token_id == 1


@pytest.mark.parametrize("row", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf], [], [[1, 2]]], ids=str)
def test_logits_that_are_no_distribution(row: list[Any]) -> None:
    for options in (SamplerOptions(), SamplerOptions(temperature=1.0)):
        with pytest.raises(LlamacError, match="LLC0853"):
            Sampler(options).sample(np.array(row, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-40),
        ("temperature", 1e-46),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.0),
    ],
)
def test_options_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(LlamacError, match=f"LLC0850 {name}"):
        SamplerOptions(**{name: value})


def test_options_by_name() -> None:
    assert SamplerOptions.from_mapping({"top_p": 0.9}) == SamplerOptions(top_p=0.9)
    with pytest.raises(LlamacError, match=r"LLC0851 .*did you mean 'top_p'"):
        SamplerOptions.from_mapping({"topp": 0.9})


def test_a_large_vocabulary_is_sampled_fast() -> None:
    """Well under 2 ms on a quiet machine; the bound leaves room for a busy one."""
    row = logits(0, 3.0, 128_256)
    sampler = Sampler(SamplerOptions(temperature=0.6, top_p=0.9, top_k=50, seed=0))
    best = math.inf
    for _ in range(10):
        start = time.perf_counter()
        sampler.sample(row, HISTORY)
        best = min(best, time.perf_counter() - start)
    assert best < 0.005


@pytest.mark.parametrize("temperature", [SMALLEST, 1e-9, 1e-3])
def test_almost_no_temperature_is_greedy(temperature: float) -> None:
    row = np.linspace(-30, 20, 1000, dtype=np.float32)[np.random.default_rng(1).permutation(1000)]
    assert Sampler(SamplerOptions(temperature=temperature, seed=3)).sample(row).token_id == row.argmax()
    praised = int(np.argmin(np.where(row > 0, row, np.inf)))  # a small positive logit, made the largest by far
    options = SamplerOptions(temperature=temperature, top_p=0.9, repetition_penalty=SMALLEST, seed=3)
    assert Sampler(options).sample(row, [praised]).token_id == praised
