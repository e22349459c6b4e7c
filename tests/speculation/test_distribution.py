"""Guesses leave the distribution of sampled texts as it is: chi-square on vocabularies where it is known exactly."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from markov_device import markov_session

from llamac.runtime.generation import Continuation, GenerationOptions
from llamac.runtime.sampler import Sampler, SamplerOptions, candidates
from llamac.runtime.scheduler import run_together
from llamac.runtime.speculation.draft import DraftModel
from llamac.runtime.speculation.lookup import PromptLookup
from llamac.runtime.speculation.proposal import Distribution, Speculator
from llamac.runtime.speculation.verification import keep_or_replace

TEXTS = 1500
SIGMAS = 4.0
"""A chi-square sum of n cells less one has mean n - 1 and variance 2 (n - 1): a right sampler is within this many
deviations but for one seed in ten thousand, and the seeds are fixed."""


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """How many deviations the sum lies above its mean; cells with fewer than 5 expected are taken together."""
    small = expected < 5
    if small.any():
        counts = np.append(counts[~small], counts[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    kept = expected > 0
    assert counts[~kept].sum() == 0, "something impossible was drawn"
    free = kept.sum() - 1
    total = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    return float((total - free) / np.sqrt(2 * free))


@pytest.mark.parametrize("seed", range(4))
def test_a_guess_is_kept_or_replaced_as_often_as_it_should_be(seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = np.array([1, 4, 5, 9, 12])
    p, q = random.dirichlet(np.ones(5)), random.dirichlet(np.ones(4))
    own, other = Distribution(ids, p), Distribution(np.array([1, 5, 9, 13]), q)  # 13 is impossible, 4 never guessed
    sampler = Sampler(SamplerOptions(temperature=1.0, seed=seed))
    drawn = [
        keep_or_replace(own, int(random.choice(other.ids, p=q)), other, sampler)
        for _ in range(TEXTS)
    ]  # fmt: skip
    counts = np.array([drawn.count(token) for token in ids])
    assert counts.sum() == TEXTS and chi_square(counts, p * TEXTS) < SIGMAS


def test_equal_distributions_keep_every_guess() -> None:
    own = Distribution(np.arange(3), np.array([0.2, 0.3, 0.5]))
    sampler = Sampler(SamplerOptions(temperature=1.0, seed=1))
    assert all(keep_or_replace(own, guess, own, sampler) == guess for guess in [0, 1, 2] * 100)


def texts_of(
    table: np.ndarray, speculator: Speculator | None, options: dict[str, Any], prompt: list[int], count: int = TEXTS
) -> list[Continuation]:
    """Many texts of three tokens, each with a seed of its own."""
    session = markov_session(table)
    texts = [
        Continuation(
            prompt, GenerationOptions(3, SamplerOptions(**options, seed=seed)), None, 100, speculator=speculator
        )
        for seed in range(count)
    ]
    for _ in run_together(session, texts):
        pass
    assert session.pools[0].free_pages == session.pools[0].page_count
    return texts


def expected_counts(table: np.ndarray, options: dict[str, Any], last: int) -> np.ndarray:
    """How many of the texts should be each sequence of three tokens, [n, n, n]."""
    chances = np.zeros(table.shape)
    for token, row in enumerate(table.astype(np.float32)):
        ids, weights = candidates(row, SamplerOptions(**options))
        chances[token, ids] = weights / weights.sum()
    return TEXTS * np.einsum("i,ij,jk->ijk", chances[last], chances, chances)


TABLES = np.random.default_rng(2).standard_normal((2, 4, 4)) * 1.5


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}, {"temperature": 1.2, "top_p": 0.8}],
    ids=["plain", "top-k", "top-p"],
)
@pytest.mark.parametrize("way", ["off", "lookup", "draft"])
def test_texts_have_the_models_distribution(way: str, options: dict[str, Any]) -> None:
    prompt = [0, 1, 2, 3, 0, 1, 2]
    draft = DraftModel(markov_session(TABLES[1]), 4)
    speculator: Speculator | None = {"off": None, "lookup": PromptLookup(4), "draft": draft}[way]
    texts = texts_of(TABLES[0], speculator, options, prompt)
    counts = np.zeros((4, 4, 4))
    for text in texts:
        counts[tuple(text.token_ids)] += 1
    assert chi_square(counts.ravel(), expected_counts(TABLES[0], options, 2).ravel()) < SIGMAS
    if way == "off":
        return
    drafted, accepted = (sum(getattr(text.counts, name) for text in texts) for name in ("drafted", "accepted"))
    assert drafted >= TEXTS and 0.1 < accepted / drafted < 0.95, "guesses were right and wrong"
    draft.cache.close()
    assert draft.session.pools[0].free_pages == draft.session.pools[0].page_count


def test_the_bound_sees_a_wrong_distribution() -> None:
    """Keeping every guess, the classic mistake, would give the draft's distribution."""
    found = expected_counts(TABLES[1], {"temperature": 1.0}, 2).ravel()
    assert chi_square(np.round(found), expected_counts(TABLES[0], {"temperature": 1.0}, 2).ravel()) > 10 * SIGMAS


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}], ids=str)
def test_a_lookup_draws_the_very_tokens_of_the_seed(options: dict[str, Any]) -> None:
    prompt = [0, 1, 2, 3] * 3
    alone, guessed = (texts_of(TABLES[0], way, options, prompt, 200) for way in (None, PromptLookup(4)))
    assert [text.token_ids for text in guessed] == [text.token_ids for text in alone]


def test_an_outcome_does_not_depend_on_the_company() -> None:
    """A draft's guesses use up random numbers, so they must be the same ones however full the steps are."""
    tables, settings = TABLES, {"temperature": 1.0}
    prompts = [list(row) for row in itertools.product(range(4), repeat=3)]

    def texts(chosen: list[list[int]]) -> list[list[int]]:
        draft = DraftModel(markov_session(tables[1]), 5)
        made = [
            Continuation(p, GenerationOptions(12, SamplerOptions(**settings, seed=sum(p))), None, 100, speculator=draft)
            for p in chosen
        ]
        for _ in run_together(markov_session(tables[0]), made):
            pass
        return [text.token_ids for text in made]

    together = texts(prompts)
    assert together == [texts([prompt])[0] for prompt in prompts]
