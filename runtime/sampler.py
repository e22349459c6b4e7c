"""Picks the next token from logits, with the semantics and the order of transformers' logits processors.

repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw. A temperature of 0 takes the largest logit, the
lowest id among equals. Draws come from a counter-based generator, so a seed gives the same ids wherever the logits are
the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llamac.errors import LlamacError, did_you_mean

SEED_LIMIT = 1 << 64
SMALLEST = 1e-30
"""What a float32 logit can still be divided by."""
FIRST_CUT = 512
"""How many of the largest logits top-p looks at first; all are sorted only when their mass stays below p."""

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class SamplerOptions:
    """How to sample. The defaults are greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 switch a filter off.

    Raises LLC0850 for a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        temperature, cold = self._number("temperature"), f"0 (greedy), or a number from {SMALLEST} to 100"
        self._require("temperature", temperature == 0 or SMALLEST <= temperature <= 100.0, cold)
        self._require("top_k", _is_integer(self.top_k) and self.top_k >= 0, "a whole number from 0 (off)")
        self._require("top_p", 0.0 < self._number("top_p") <= 1.0, "a number above 0, up to 1 (off)")
        self._require("min_p", 0.0 <= self._number("min_p") <= 1.0, "a number from 0 (off) to 1")
        penalty = self._number("repetition_penalty")
        self._require("repetition_penalty", SMALLEST <= penalty <= 100.0, f"a number from {SMALLEST} to 100; 1 is off")
        seeded = self.seed is None or (_is_integer(self.seed) and 0 <= self.seed < SEED_LIMIT)
        self._require("seed", seeded, "a whole number from 0 to 2**64 - 1")

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            return math.nan
        return float(value)

    def _require(self, name: str, right: bool, wanted: str) -> None:
        if not right:
            raise LlamacError("LLC0850", name, f"{getattr(self, name)!r} is out of range", f"give {wanted}")

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> SamplerOptions:
        """Options by name, e.g. a model's generation defaults; LLC0851 for a name that is not an option."""
        known = [field.name for field in fields(SamplerOptions)]
        for name in values:
            if name not in known:
                reason = f"unknown sampling option '{name}'{did_you_mean(name, known)}"
                raise LlamacError("LLC0851", "sampling", reason, f"the options are {', '.join(known)}")
        return SamplerOptions(**values)


class Sample(NamedTuple):
    """The chosen id and its log-probability under the model itself (before any option bends the distribution)."""

    token_id: int
    logprob: float


class Sampler:
    """Draws ids by `options`. Holds the random state of one sequence: `seed` and how many draws were made.

    Samplers of one seed and different `stream` draw independently.
    """

    def __init__(self, options: SamplerOptions, stream: int = 0) -> None:
        self.options = options
        self.seed = options.seed
        self._next: deque[int] = deque()
        if options.temperature > 0:
            if self.seed is None:
                import secrets

                self.seed = secrets.randbits(64)
            # The raw stream of a bit generator is part of numpy's compatibility promise; Generator's methods are not.
            self._stream = np.random.Philox(key=self.seed + (stream << 64))

    def sample(self, logits: ArrayLike, history: Sequence[int] | NDArray[np.integer] = ()) -> Sample:
        """Choose an id from `logits` [V]; `history` is every id so far, prompt included (for the repetition penalty).

        Raises LLC0853 for logits that are no distribution (a NaN, +inf, or nothing finite).
        """
        raw = checked(logits)
        scores = penalize_repetition(raw, history, self.options.repetition_penalty)
        if self.options.temperature == 0:
            token_id = int(scores.argmax())
        else:
            ids, weights = candidates(scores, self.options)
            token_id = int(ids[self._draw(weights)])
        return Sample(token_id, float(raw[token_id]) - log_normalizer(raw))

    def draw(self, ids: NDArray[np.int64], weights: NDArray[np.float64]) -> int:
        """One of `ids` by its weight."""
        return int(ids[self._draw(weights)])

    def uniform(self) -> float:
        """The next number of the stream, in [0, 1)."""
        bits = self.upcoming()
        self.skip()
        return bits * 2.0**-53

    def upcoming(self, ahead: int = 0) -> int:
        """The 53 bits of the draw after `ahead` others, which is made elsewhere; 0 where nothing is left to chance."""
        if self.options.temperature == 0:
            return 0
        while len(self._next) <= ahead:
            self._next.append(int(self._stream.random_raw()) >> 11)
        return self._next[ahead]

    def skip(self) -> None:
        """The next draw has been made."""
        if self._next:
            self._next.popleft()

    def _draw(self, weights: NDArray[np.float64]) -> int:
        cumulative = np.cumsum(weights)
        uniform = self.uniform()
        place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        # Rounding can put the target on the total itself: then the last candidate of any weight is meant.
        return place if place < len(weights) else int(np.flatnonzero(weights)[-1])


def penalize_repetition(logits: Logits, history: Sequence[int] | NDArray[np.integer], penalty: float) -> Logits:
    """Divide positive and multiply negative logits of the ids in `history` by `penalty` (Keskar et al. 2019)."""
    if penalty == 1.0 or len(history) == 0:
        return logits
    ids = np.asarray(history, dtype=np.int64)
    ids = ids[(ids >= 0) & (ids < len(logits))]
    seen = logits[ids]
    scores = logits.copy()
    factor = np.float32(penalty)
    scores[ids] = np.where(seen < 0, seen * factor, seen / factor)
    return scores


def candidates(scores: Logits, options: SamplerOptions) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids that survive top-k, top-p and min-p, in ascending order, and their unnormalized weights."""
    ids: NDArray[np.int64] | None = None
    # The temperature keeps the order, so top-k may come first: everything after it then works on k numbers.
    if 0 < options.top_k < len(scores):
        cut = np.partition(scores, len(scores) - options.top_k)[len(scores) - options.top_k]
        ids = np.flatnonzero(scores >= cut)  # as in transformers, ids tied with the k-th largest all stay
        scores = scores[ids]
    scaled = relative(scores, options.temperature)
    if options.top_p < 1.0:
        kept = top_p_indices(scaled, options.top_p)
        ids, scaled = (kept if ids is None else ids[kept]), scaled[kept]
    if options.min_p > 0.0:
        kept = min_p_indices(scaled, options.min_p)
        ids, scaled = (kept if ids is None else ids[kept]), scaled[kept]
    weights = np.exp(scaled, dtype=np.float64)
    return (np.arange(len(weights)) if ids is None else ids), weights


def relative(scores: Logits, temperature: float) -> Logits:
    """Scores below the largest, over the temperature: a low one overflows only downwards, to a weight of zero."""
    with np.errstate(over="ignore"):
        scaled: Logits = (scores - scores.max()) / np.float32(temperature)
    return scaled


def min_p_indices(scaled: Logits, min_p: float) -> NDArray[np.int64]:
    """Places of the scores that are at least `min_p` times as likely as the largest, ascending."""
    return np.flatnonzero(scaled >= math.log(min_p))


def top_p_indices(scaled: Logits, top_p: float) -> NDArray[np.int64]:
    """Places of the smallest set of largest scores whose mass reaches `top_p`, ascending; the one crossing it is kept.

    `scaled` is relative to its largest value. Only as much of the order is found as the mass needs, and the set is cut
    by value, so that no argsort is needed; of equal scores at the cut the lowest ids stay.
    """
    wanted = top_p * float(np.exp(scaled).sum(dtype=np.float64))
    for size in (FIRST_CUT, len(scaled)):
        size = min(size, len(scaled))
        top = scaled if size == len(scaled) else np.partition(scaled, len(scaled) - size)[len(scaled) - size :]
        descending = np.sort(top)[::-1]
        mass = np.cumsum(np.exp(descending), dtype=np.float64)
        if mass[-1] >= wanted:
            break
    count = min(int(np.searchsorted(mass, wanted, side="left")) + 1, size)
    return largest_indices(scaled, descending[count - 1], count)


def largest_indices(scaled: Logits, cut: np.float32, count: int) -> NDArray[np.int64]:
    """Places of the `count` largest scores, of which `cut` is the last, ascending; of equal ones the first stay."""
    kept = np.flatnonzero(scaled >= cut)
    surplus = len(kept) - count
    return kept if surplus == 0 else np.delete(kept, np.flatnonzero(scaled[kept] == cut)[-surplus:])


def log_normalizer(logits: Logits) -> float:
    """log(sum(exp(logits))), so that a logit minus it is a log-probability."""
    peak = logits.max()
    with np.errstate(over="ignore"):
        return float(peak) + math.log(float(np.exp(logits - peak).sum(dtype=np.float64)))


def top_logprobs(logits: ArrayLike, count: int) -> list[Sample]:
    """The `count` most likely ids with their log-probabilities, most likely first, lower ids first among equals."""
    raw = checked(logits)
    count = min(count, len(raw))
    if count <= 0:
        return []
    cut = np.partition(raw, len(raw) - count)[len(raw) - count]
    ids = np.flatnonzero(raw >= cut)
    order = np.argsort(-raw[ids], kind="stable")[:count]
    normalizer = log_normalizer(raw)
    return [Sample(int(i), float(raw[i]) - normalizer) for i in ids[order]]


def checked(logits: ArrayLike) -> Logits:
    """One row of logits as float32; LLC0853 unless it is a distribution."""
    raw = np.ascontiguousarray(logits, dtype=np.float32)
    if raw.ndim != 1 or len(raw) == 0:
        raise LlamacError(
            "LLC0853", "logits", f"shape {raw.shape} is not one row", "this is a fault of the caller; report it"
        )
    if not math.isfinite(raw.max()):
        raise no_distribution()
    return raw


def no_distribution() -> LlamacError:
    """What is wrong with logits whose largest is no finite number."""
    reason, hint = "they hold a NaN, +inf, or nothing finite", "its weights or code are damaged"
    return LlamacError("LLC0853", "logits", reason, f"run `llamac verify` on the artifact; {hint}")


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
