"""A speculator for tests: guesses from the known outcome, some of them wrong, in lengths drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llamac.runtime.generation import Continuation
from llamac.runtime.speculation.proposal import Proposal, Wish


@dataclass
class WildGuesser:
    """Guesses of one text: `learned` is what it was told of each step."""

    outcome: list[int]
    prompt: int
    random: np.random.Generator
    learned: list[tuple[int, int, int]] = field(default_factory=list)
    closed: int = 0

    def length(self) -> int:
        return int(self.random.integers(0, 8))

    def learn(self, drafted: int, accepted: int, tokens: int) -> None:
        self.learned.append((drafted, accepted, tokens))

    def close(self) -> None:
        self.closed += 1


@dataclass
class WildSpeculator:
    """Knows the outcomes by their prompts; a guess is right with probability `hits`. Keeps the guessers it made."""

    outcomes: dict[tuple[int, ...], list[int]]
    hits: float
    seed: int
    made: list[WildGuesser] = field(default_factory=list)

    def begin(self, continuation: Continuation, may_wait: bool) -> WildGuesser:
        outcome = self.outcomes[tuple(continuation.prompt_ids)]
        random = np.random.default_rng([self.seed, len(self.made)])
        self.made.append(WildGuesser(outcome, len(continuation.prompt_ids), random))
        return self.made[-1]

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        return [self._guess(wish) for wish in wishes]

    def _guess(self, wish: Wish) -> Proposal:
        guesser: Any = wish.guesser
        done = len(wish.ids) - guesser.prompt
        following = [*guesser.outcome[done:], *([0] * wish.count)][: wish.count]
        wrong = guesser.random.random(wish.count) >= self.hits
        return Proposal(tuple((t + 7) % 100 if bad else t for t, bad in zip(following, wrong, strict=True)))
