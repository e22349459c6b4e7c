"""What a speculator proposes, and what the scheduler asks of one.

A speculator guesses how a text goes on. The guesses are fed behind the last token in one step, whose rows then say
whether each was right: the tokens that come out are those (greedy, lookup) or distributed as those (draft, sampling)
that single steps would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..generation import Continuation


@dataclass(frozen=True)
class Distribution:
    """Probabilities of some ids, ascending; every other id has none."""

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The probabilities of these ids, in their order."""
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, self.probabilities[places], 0.0)


@dataclass(frozen=True)
class Proposal:
    """Guessed ids. `drawn_from`: for each the distribution that it was drawn from; empty where nothing was drawn."""

    ids: tuple[int, ...] = ()
    drawn_from: tuple[Distribution, ...] = ()


NOTHING = Proposal()


@dataclass(frozen=True)
class SpeculationCounts:
    """What speculation did for one generation: steps that gave tokens, ids guessed and ids guessed right.

    A guess that ends the text counts as not accepted: it does not have to be in the cache.
    """

    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step gave on average: one, and the guesses that were right."""
        return 1 + self.accepted / self.steps if self.steps else 0.0

    def to_json(self) -> dict[str, float]:
        """Plain data for `--json`."""
        return {**asdict(self), "tokens_per_step": round(self.tokens_per_step, 4)}


class Guesser(Protocol):
    """The state of one running text in a speculator."""

    def length(self) -> int:
        """How many ids to guess now."""

    def learn(self, drafted: int, accepted: int, tokens: int) -> None:
        """Of `drafted` guesses the first `accepted` were right; `tokens` tokens of the text are certain and fed."""

    def close(self) -> None:
        """The text has ended."""


@dataclass(frozen=True)
class Wish:
    """Up to `count` guesses are wanted of how `ids` goes on, prompt and new tokens."""

    guesser: Guesser
    ids: Sequence[int]
    count: int


class Speculator(Protocol):
    """A way to guess."""

    def begin(self, continuation: Continuation, may_wait: bool) -> Guesser | None:
        """The state for a text that is about to run.

        None when there is no room for it as long as others run, which only `may_wait` allows.
        """

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """A guess for each wish, of this speculator's own guessers; perhaps shorter than wished, or empty."""


@dataclass
class Pace:
    """How many ids to guess at a time: more while guesses are right, fewer or none for a while when they are not.

    A step of several rows costs more than one of a single row, so guesses that are always wrong must become rare.
    """

    most: int
    now: int = field(init=False)
    _misses: int = 0
    _rest: int = 0

    def __post_init__(self) -> None:
        self.now = max(1, self.most // 2)

    def length(self) -> int:
        """How many to guess in this step."""
        if self._rest:
            self._rest -= 1
            return 0
        return self.now

    def learn(self, drafted: int, accepted: int) -> None:
        """Of `drafted` guesses the first `accepted` were right."""
        if not drafted:
            return
        self.now = min(self.most, max(self.now, 2 * drafted)) if accepted == drafted else max(1, accepted + 1)
        self._misses = 0 if accepted else self._misses + 1
        self._rest = 0 if self._misses < 2 else min(1 << (self._misses - 1), 32)
