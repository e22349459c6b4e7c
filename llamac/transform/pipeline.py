"""Runs passes in order: checks levels, verifies after each, asserts expected counts, and records what happened."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llamac.errors import LlamacError
from llamac.ir.graph import Module
from llamac.ir.verifier import verify

from .base import Pass, PassContext, PassResult
from .registry import parse_pass


@dataclass(frozen=True)
class Step:
    """One pass of a pipeline; `expected` are counts it must reach, such as one fused attention a layer."""

    run: Pass
    expected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PassRecord:
    """What one pass did, for the manifest and for `--time-passes`."""

    name: str
    options: Mapping[str, object]
    result: PassResult
    seconds: float


AfterPass = Callable[[Pass, Module, PassResult], None]


class Instrument:
    """Watches a pipeline run. It may read the module, and raise to stop the run; it must not change anything."""

    def before(self, item: Pass, module: Module) -> None:
        """The module is about to go through `item`."""

    def after(self, item: Pass, module: Module, result: PassResult) -> None:
        """`item` has run, and the module has been verified."""


def run_pipeline(
    module: Module,
    steps: Iterable[Step],
    context: PassContext,
    after: AfterPass | None = None,
    verify_each: bool = True,
    instruments: Sequence[Instrument] = (),
) -> list[PassRecord]:
    """Run `steps` on `module` in place; `instruments`, and `after` for those who need no more, see it on the way."""
    records = []
    for step in steps:
        for instrument in instruments:
            instrument.before(step.run, module)
        started = time.perf_counter()
        result = run_pass(module, step.run, context)
        seconds = time.perf_counter() - started
        if verify_each:
            _verify(module, step.run)
        _check_counts(step, result)
        records.append(PassRecord(step.run.name, step.run.options(), result, seconds))
        for instrument in instruments:
            instrument.after(step.run, module, result)
        if after is not None:
            after(step.run, module, result)
    return records


def run_pass(module: Module, item: Pass, context: PassContext) -> PassResult:
    """Run one pass: its required levels are checked before, the level it produces is set after."""
    if module.level not in item.requires:
        raise LlamacError(
            "LLC0503",
            item.name,
            f"needs a module at level {' or '.join(item.requires)}, this one is at {module.level}",
            "`llamac passes --pipeline cpu` prints a working order",
        )
    result = item.run(module, context)
    if not isinstance(result, PassResult):
        reason = f"run gave {type(result).__name__}, not a PassResult"
        raise LlamacError("LLC0504", item.name, reason, "return PassResult(counts) from run")
    if result.changed:
        context.analyses.invalidate()
    if item.produces is not None:
        module.level = item.produces
    return result


def parse_pipeline(text: str, also: Mapping[str, type[Pass]] | None = None) -> list[Step]:
    """Passes from text: names separated by commas, options in braces. `also` are passes that are not installed."""
    parts = re.split(r",(?![^{}]*\})", text)
    return [Step(parse_pass(part, also)) for part in parts if part.strip()]


def pipeline_text(steps: Iterable[Step]) -> str:
    """The text that `parse_pipeline` reads back."""
    return ",".join(str(step.run) for step in steps)


def _verify(module: Module, item: Pass) -> None:
    try:
        verify(module)
    except LlamacError as error:
        raise LlamacError(
            "LLC0504", error.where, f"after {item.name}: {error.reason}", "this is a bug in the pass"
        ) from error


def _check_counts(step: Step, result: PassResult) -> None:
    for name, expected in step.expected.items():
        found = result.counts.get(name, 0)
        if found != expected:
            first = next((f"; first near match, {r.where}: {r.reason}" for r in result.refusals), "")
            raise LlamacError(
                "LLC0501",
                step.run.name,
                f"'{name}' fired {found} times, the architecture has {expected}{first}",
                "the captured graph is not in the form that the pass knows",
            )
