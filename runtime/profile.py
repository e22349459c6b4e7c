"""Where the time of steps goes, op by op, beside what this machine can do at most.

    with model.profile() as profile:
        model.generate("Once upon a time", max_new_tokens=64)
    print(profile.text())

Generated code reads the clock after every op and after every barrier between ops (docs/cpu-backend.md), so the times of
a step's ops add up to the step. What an op waits for other threads is part of its time, and listed apart too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

UNITS = ("", "int8", "bf16", "f32")
"""Arithmetic units by their number in the code's table of ops."""

PREFILL, DECODE, VERIFY, IMAGE = "prefill", "decode", "verify", "image"
"""Steps in which a sequence gets several tokens; in which each gets one; which give logits for several rows of one, as
when guessed tokens are checked; encoded pictures."""

_CALL, _TOKEN, _LOGIT_ROW, _TOKEN_AND_KEY = range(4)


@dataclass(frozen=True)
class ProfiledOp:
    """An op of the code: where it stands, what it is, and the work that a call of it does (`llamac_op` in C)."""

    function: str
    kind: str
    name: str
    detail: str
    weight_bytes: int
    token_bytes: int
    key_bytes: int
    operations: int
    per: int
    unit: str
    cache: int
    experts: int
    chosen: int

    @property
    def title(self) -> str:
        """What the op is called in a table: kind, format and shape, and the model's name of its weight."""
        return " ".join(part for part in (self.kind, self.detail, self.name) if part)


@dataclass(frozen=True)
class StepWork:
    """What a step asked for. keys: for each cache, those that its sequences see; row_keys: rows times what they see."""

    tokens: int
    logit_rows: int
    keys: tuple[int, ...]
    row_keys: tuple[int, ...]


@dataclass(frozen=True)
class OpProfile:
    """One op over all steps of a phase.

    seconds: its time, of which `waited` went by until the other threads were done too. bytes: weights, cache and rows
    of tables that it read or wrote. limit: "read" or the unit that bounds it, "" when it does no work of note.
    limit_seconds: the time at that limit.
    """

    op: ProfiledOp
    calls: int
    seconds: float
    waited: float
    bytes: int
    operations: int
    limit: str
    limit_seconds: float

    @property
    def fraction(self) -> float | None:
        """How much of its limit the op reached; above 1 when its bytes came from a cache of the processor."""
        return self.limit_seconds / self.seconds if self.limit and self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `--profile --json` prints it."""
        where = {key: value for key, value in asdict(self.op).items() if key in ("function", "kind", "name", "detail")}
        return where | {
            "calls": self.calls,
            "seconds": self.seconds,
            "waited_seconds": self.waited,
            "bytes": self.bytes,
            "operations": self.operations,
            "limit": self.limit or None,
            "fraction_of_limit": self.fraction,
        }


@dataclass
class Phase:
    """The steps of one kind: how many, what they asked for in all, and calls, nanoseconds and waiting of every op."""

    times: npt.NDArray[np.uint64]
    steps: int = 0
    tokens: int = 0
    logit_rows: int = 0
    keys: dict[int, int] = field(default_factory=dict)
    row_keys: dict[int, int] = field(default_factory=dict)

    def add(self, work: StepWork | None, times: npt.NDArray[np.uint64]) -> None:
        """One more step."""
        self.steps += 1
        self.times += times
        if work is None:
            return
        self.tokens += work.tokens
        self.logit_rows += work.logit_rows
        for cache, (keys, row_keys) in enumerate(zip(work.keys, work.row_keys, strict=True)):
            self.keys[cache] = self.keys.get(cache, 0) + keys
            self.row_keys[cache] = self.row_keys.get(cache, 0) + row_keys

    @property
    def seconds(self) -> float:
        """All the time of its steps."""
        return float(self.times[:, 1:].sum()) * 1e-9


@dataclass
class Profile:
    """What the steps inside a `model.profile()` took.

    read_bytes_per_second: a plain read of memory by as many threads, the mean of one before and one after the steps.
    peaks: operations a second of each arithmetic unit, measured before them; 0 for a unit that the code has not.
    """

    ops: Sequence[ProfiledOp]
    read_bytes_per_second: float = 0.0
    peaks: dict[str, float] = field(default_factory=dict)
    phases: dict[str, Phase] = field(default_factory=dict)

    def rows(self, phase: str) -> list[OpProfile]:
        """The ops that ran in a phase, the longest first."""
        found = self.phases[phase]
        rows = [self._row(found, op, *map(int, found.times[index])) for index, op in enumerate(self.ops)]
        return sorted((row for row in rows if row.calls), key=lambda row: -row.seconds)

    def kinds(self, phase: str) -> dict[str, list[OpProfile]]:
        """The same by kind of op, the longest kind first."""
        found: dict[str, list[OpProfile]] = {}
        for row in self.rows(phase):
            found.setdefault(row.op.kind, []).append(row)
        return dict(sorted(found.items(), key=lambda item: -sum(row.seconds for row in item[1])))

    def _row(self, phase: Phase, op: ProfiledOp, calls: int, nanoseconds: int, waited: int) -> OpProfile:
        each_step = calls / phase.steps  # how many layers have the op
        moved = _weight_bytes(op, phase) * calls
        moved += each_step * (op.token_bytes * phase.tokens + op.key_bytes * phase.keys.get(op.cache, 0))
        counts = {_CALL: phase.steps, _TOKEN: phase.tokens, _LOGIT_ROW: phase.logit_rows}
        counts[_TOKEN_AND_KEY] = phase.row_keys.get(op.cache, 0)
        operations = op.operations * counts[op.per] * each_step
        limits = {"read": moved / self.read_bytes_per_second if self.read_bytes_per_second else 0.0}
        if self.peaks.get(op.unit):
            limits[op.unit] = operations / self.peaks[op.unit]
        slowest = max(limits, key=lambda name: limits[name])
        return OpProfile(
            op=op,
            calls=calls,
            seconds=(nanoseconds + waited) * 1e-9,
            waited=waited * 1e-9,
            bytes=round(moved),
            operations=round(operations),
            limit=slowest if limits[slowest] > 0 else "",
            limit_seconds=limits[slowest],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `--profile --json` prints it."""
        return {
            "read_bytes_per_second": self.read_bytes_per_second,
            "operations_per_second": self.peaks,
            "phases": {
                name: {
                    "steps": phase.steps,
                    "tokens": phase.tokens,
                    "seconds": phase.seconds,
                    "ops": [row.to_json() for row in self.rows(name)],
                }
                for name, phase in self.phases.items()
            },
        }

    def text(self) -> str:
        """A table for each phase: kinds of ops, then ops."""
        from .profile_text import profile_text

        return profile_text(self)


def _weight_bytes(op: ProfiledOp, phase: Phase) -> float:
    """Weights that a call reads; of experts those that are expected to be chosen, were all equally likely."""
    if not op.experts:
        return op.weight_bytes
    rows = op.chosen * phase.tokens / phase.steps
    return float(op.weight_bytes * (1 - (1 - 1 / op.experts) ** rows))
