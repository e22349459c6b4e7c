"""Speculative sampling: a drawn guess is kept or replaced so that the outcome has the model's own distribution.

A guess x drawn from q is kept with probability min(1, p(x) / q(x)); otherwise the token is drawn from what is left of
p, max(0, p - q) made a distribution again (Leviathan et al. 2023, Chen et al. 2023). p and q are what the sampling
options make of the two models' logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..sampler import Logits, Sampler, candidates, checked, penalize_repetition
from .proposal import Distribution


def distribution_of(logits: Logits, history: Sequence[int], sampler: Sampler) -> Distribution:
    """What the sampler's options make of `logits` [vocab]; `history` is every id so far. LLC0853 as for a draw."""
    scores = penalize_repetition(checked(logits), history, sampler.options.repetition_penalty)
    ids, weights = candidates(scores, sampler.options)
    return Distribution(ids, weights / weights.sum())


def keep_or_replace(own: Distribution, guess: int, guessed_from: Distribution, sampler: Sampler) -> int:
    """The token that follows, given a guess drawn from another distribution: the guess, or a draw in its place."""
    of_guess = np.array([guess])
    p, q = float(own.of(of_guess)[0]), float(guessed_from.of(of_guess)[0])
    if sampler.uniform() * q < p:
        return guess
    left = np.maximum(own.probabilities - guessed_from.of(own.ids), 0.0)
    # Only rounding leaves nothing, where the two are equal: then any draw of one is a draw of the other.
    return sampler.draw(own.ids, left if left.any() else own.probabilities)
