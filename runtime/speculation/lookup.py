"""Guesses from the text itself: what followed the last few tokens when they stood there before (prompt lookup).

Texts that quote, edit or summarize what they were given repeat long stretches of it. No second model is needed, and a
guess costs a dictionary lookup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .proposal import Guesser, Pace, Proposal, Wish

if TYPE_CHECKING:
    from ..generation import Continuation


@dataclass
class Repetitions(Guesser):
    """Where every n-gram of one text stood last: its last tokens are looked up, longest n-gram first."""

    longest: int
    pace: Pace
    _ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    """n-gram -> the position behind its last occurrence that something follows."""
    _known: int = 0

    def length(self) -> int:
        return self.pace.length()

    def learn(self, drafted: int, accepted: int, tokens: int) -> None:
        self.pace.learn(drafted, accepted)

    def close(self) -> None:
        self._ends = {}

    def guess(self, ids: Sequence[int], count: int) -> tuple[int, ...]:
        """What followed the longest n-gram that ends `ids` where it stood before, up to `count` ids."""
        self._index(ids)
        for size in range(min(self.longest, len(ids) - 1), 0, -1):
            at = self._ends.get(tuple(ids[len(ids) - size :]))
            if at is not None:
                return self._copy(ids, at, count)
        return ()

    def _index(self, ids: Sequence[int]) -> None:
        """Enter the n-grams that end before the last token: those have something that follows."""
        for end in range(max(self._known, 1), len(ids)):
            for size in range(1, min(self.longest, end) + 1):
                self._ends[tuple(ids[end - size : end])] = end
        self._known = len(ids)

    @staticmethod
    def _copy(ids: Sequence[int], at: int, count: int) -> tuple[int, ...]:
        # A text that repeats itself goes on to: past its end the copy reads what it has just written.
        period = len(ids) - at
        return tuple(ids[at + index % period] for index in range(count))


@dataclass(frozen=True)
class PromptLookup:
    """Guesses `tokens` ids at most, by n-grams of at most `ngram` ids."""

    tokens: int = 8
    ngram: int = 3

    def begin(self, continuation: Continuation, may_wait: bool) -> Repetitions:
        """The state for a text that is about to run."""
        return Repetitions(self.ngram, Pace(self.tokens))

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """A guess for each wish, empty where nothing was found."""
        found = []
        for wish in wishes:
            assert isinstance(wish.guesser, Repetitions)
            found.append(Proposal(wish.guesser.guess(wish.ids, wish.count)))
        return found
