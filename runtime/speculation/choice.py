"""Which speculator a generation gets, by its options."""

from __future__ import annotations

from llamac.errors import LlamacError, did_you_mean

from ..session import Session
from .draft import DraftCache, DraftModel
from .lookup import PromptLookup
from .proposal import Speculator

WAYS = ("lookup", "draft", "off")
DEFAULT_TOKENS = {"lookup": 8, "draft": 5}
"""Guesses at a time: those of a lookup are free, each of a draft is a step of its own."""

MOST_TOKENS = 64
LONGEST_NGRAM = 16
DEFAULT_NGRAM = 3


class Speculators:
    """The speculators of one model, one for each way and size, so that texts of a batch share theirs."""

    def __init__(self, draft: Session | None = None) -> None:
        self._draft = draft
        self._cache = None if draft is None else DraftCache(draft)
        self._made: dict[tuple[str, int, int], Speculator] = {}

    def choose(self, way: str | None, tokens: int | None, ngram: int | None) -> Speculator | None:
        """The speculator for these options; by default the draft where the model has one, else none.

        LLC0841 for a way that there is not, a draft that is not there, or numbers out of range.
        """
        way = way if way is not None else "off" if self._draft is None else "draft"
        if way not in WAYS:
            reason = f"{way!r} is no way to speculate{did_you_mean(str(way), WAYS)}"
            raise LlamacError("LLC0841", "speculate", reason, f"choose {', '.join(WAYS)}")
        _require("draft_tokens", tokens, MOST_TOKENS)
        _require("lookup_ngram", ngram, LONGEST_NGRAM)
        if way == "off":
            return None
        key = (way, tokens or DEFAULT_TOKENS[way], ngram or DEFAULT_NGRAM)
        if key not in self._made:
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, way: str, tokens: int, ngram: int) -> Speculator:
        if way == "lookup":
            return PromptLookup(tokens, ngram)
        if self._draft is None:
            raise LlamacError(
                "LLC0841", "speculate", "no draft was loaded", "load the model with a draft, or `--draft`"
            )
        return DraftModel(self._draft, tokens, self._cache)


def _require(name: str, value: int | None, most: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most):
        raise LlamacError("LLC0841", name, f"{value!r} is out of range", f"give a whole number from 1 to {most}")
