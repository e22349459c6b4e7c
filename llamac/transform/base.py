"""What a pass is: one frozen dataclass whose fields are its options, and what running it reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from llamac.ir.evaluator import RowReader, refuse_file_weights
from llamac.ir.graph import Module

from .analyses import AnalysisManager


@dataclass(frozen=True)
class Refusal:
    """A near match that a pass left alone: where, and the condition that failed."""

    where: str
    reason: str


@dataclass(frozen=True)
class LedgerEntry:
    """Something a user may want to know was decided for them: a default, a layer left alone, a feature off."""

    kind: str
    where: str
    what: str
    reason: str

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


@dataclass
class PassContext:
    """What passes may read besides the module: weight bytes, analyses. What they may write: the ledger."""

    read_rows: RowReader = refuse_file_weights
    ledger: list[LedgerEntry] = field(default_factory=list)
    analyses: AnalysisManager = field(default_factory=AnalysisManager)
    cache_scales: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Layer -> the scales of its keys and values that the checkpoint was calibrated to, for 8-bit floats."""


@dataclass(frozen=True)
class PassResult:
    """`counts` says how often each thing was done; nothing done means nothing changed."""

    counts: Mapping[str, int] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()

    @property
    def changed(self) -> bool:
        return any(self.counts.values())


@dataclass(frozen=True)
class Pass:
    """One rewrite of a module, named verb-object.

    `requires` lists the levels it accepts, `produces` the level it leaves the module at (None: as it was). `run`
    changes the module in place; running it twice changes nothing the second time. `after` is for passes outside llamac:
    the step of the pipeline behind which `--passes-from` puts them.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    produces: ClassVar[str | None] = None
    after: ClassVar[str] = ""

    def run(self, module: Module, context: PassContext) -> PassResult:
        """Rewrite `module` and say what was done."""
        raise TypeError(f"{type(self).__name__} does not define run")

    def options(self) -> dict[str, object]:
        """The options that differ from their defaults."""
        found = {}
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if value != option.default:
                found[option.name] = value
        return found

    def __str__(self) -> str:
        inside = ",".join(f"{k}={_option_text(v)}" for k, v in self.options().items())
        return f"{self.name}{{{inside}}}" if inside else self.name


def _option_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
