"""Makes a failing pipeline small: the failing pass, the fewest passes in front of it, the fewest ops it fails on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.evaluator import RowReader, refuse_file_weights
from llamac.ir.graph import Graph, Module, Value, Weight
from llamac.ir.interpreter import Interpreter
from llamac.ir.levels import CAPTURED, MODEL, RAISING
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.types import CacheType
from llamac.ir.verifier import verify

from .base import Pass, PassContext
from .pipeline import Instrument, Step, run_pipeline
from .validation import EXACT_BOUND, relative_difference

Case = TypeVar("Case")

PIPELINE = "pipeline"
"""In place of a pass, where the whole pipeline is at fault."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, and in which pass. `kind` is an error code, or the class of another exception."""

    item: str
    kind: str
    message: str

    def is_like(self, other: Failure | None) -> bool:
        """Whether the other is the same failure, perhaps in other words: numbers and names may differ."""
        return other is not None and (self.item, self.kind) == (other.item, other.kind)


@dataclass
class Tracker(Instrument):
    """Remembers which pass is under way, its place in the pipeline, and the text of what it was given."""

    current: Pass | None = None
    count: int = 0
    text: str = ""
    keep_text: bool = True

    def before(self, item: Pass, module: Module) -> None:
        self.current = item
        self.count += 1
        if self.keep_text:
            self.text = print_module(module)


def failure_of(run: Callable[[Tracker], object], keep_text: bool = True) -> tuple[Failure | None, Tracker]:
    """What goes wrong while `run` takes a module through a pipeline that the tracker watches."""
    tracker = Tracker(keep_text=keep_text)
    try:
        run(tracker)
    except LlamacError as error:
        item = tracker.current.name if tracker.current and error.where != PIPELINE else PIPELINE
        return Failure(item, error.code, error.message()), tracker
    except Exception as error:  # a crash of any kind is what reduction is for
        item = tracker.current.name if tracker.current else PIPELINE
        return Failure(item, type(error).__name__, f"{type(error).__name__}: {error}"), tracker
    return None, tracker


def shrink(
    start: Case,
    smaller: Callable[[Case], Iterable[Case]],
    fails: Callable[[Case], bool],
    deadline: float = float("inf"),
) -> Case:
    """The smallest case reached by taking, again and again, the first smaller one that still fails.

    deadline: a value of `time.monotonic()` after which what has been reached is returned.
    """
    refused: list[Case] = []
    while time.monotonic() < deadline:
        for case in smaller(start):
            if case in refused:
                continue
            if time.monotonic() >= deadline:
                return start
            if fails(case):
                start = case
                break
            refused.append(case)
        else:
            return start
    return start


def fewer_steps(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    """`steps` without a half, a quarter, ... or one of those in front of the last, which is the failing one."""
    *front, last = steps
    size = len(front)
    while size:
        for start in range(0, len(front), size):
            yield (*front[:start], *front[start + size :], last)
        size //= 2


# Modules.


@dataclass
class ModuleCheck:
    """Whether one pass fails on a module: by an error, or by changing the module's first output."""

    step: Step
    wanted: Failure
    read_rows: RowReader = refuse_file_weights
    tried: int = field(default=0)

    def fails(self, text: str) -> bool:
        """Whether the pass fails on the module of `text` as wanted."""
        self.tried += 1
        return self.wanted.is_like(self.failure(text))

    def failure(self, text: str) -> Failure | None:
        """What the pass does wrong on the module of `text`."""
        module = parse_module(text)
        before = self._outputs(module)
        failure, _ = failure_of(lambda t: self._run(module, before, t), keep_text=False)
        return failure

    def _run(self, module: Module, before: Any, tracker: Tracker) -> None:
        run_pipeline(module, [self.step], PassContext(self.read_rows), instruments=[tracker])
        if before is None:
            return
        after = self._outputs(module)
        difference = float("inf") if after is None else relative_difference(after, before)
        if not difference <= EXACT_BOUND:
            reason = f"changes what the module computes: its first output differs by {difference:.2e}"
            raise LlamacError("LLC0507", self.step.run.name, reason)

    def _outputs(self, module: Module) -> Any:
        """The first output for fixed inputs, if this failure is about values and the module can be run."""
        if self.wanted.kind != "LLC0507" or module.level not in (CAPTURED, RAISING, MODEL):
            return None
        try:
            with np.errstate(all="ignore"):
                found = np.asarray(Interpreter(module, self.read_rows, exact=True).run(make_inputs(module))[0])
        except Exception:
            return None
        return found if np.isfinite(found).all() else None


def make_inputs(module: Module) -> dict[str, Any]:
    """Inputs of the step by its arguments' types: three tokens, no past, floats from a fixed seed."""
    generator = np.random.Generator(np.random.Philox(key=7))
    symbols = {"T": 3, "P": 0}
    inputs: dict[str, Any] = {}
    for argument in module.step.arguments:
        shape = argument.tensor.concrete_shape(symbols)
        if argument.tensor.dtype.is_float:
            inputs[argument.name] = generator.random(shape) * 4 - 2
        else:
            inputs[argument.name] = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    return inputs


def shrink_module(text: str, check: ModuleCheck, deadline: float) -> str:
    """A module with fewer outputs and ops on which the pass still fails; `text` itself when it fails on none."""
    if not check.fails(text):
        return text
    return shrink(text, _smaller_modules, check.fails, deadline)


def _smaller_modules(text: str) -> Iterator[str]:
    edits: list[Callable[[Module], bool]] = [_only_first_output]
    count = len(parse_module(text).step.ops)
    if not count:
        return
    # From the end, results become the only output; from the start, they become arguments. Large cuts come first.
    for share in (2, 4, 8):
        edits += [_return_at(count * i // share) for i in range(1, share)]
        edits += [_cut_before(count * i // share) for i in range(share - 1, 0, -1)]
    edits += [_return_at(i) for i in range(count)]
    edits += [_argument_for(i) for i in range(count - 1, -1, -1)]
    for edit in edits:
        module = parse_module(text)
        if edit(module) and (smaller := _cleaned(module)) is not None and len(smaller) < len(text):
            yield smaller


def _cleaned(module: Module) -> str | None:
    graph = module.step
    graph.remove_dead_ops()
    graph.arguments = [a for a in graph.arguments if a.users or a in graph.outputs]
    module.remove_dead_weights()
    try:
        verify(module)
        return print_module(module)
    except LlamacError:
        return None


def _only_first_output(module: Module) -> bool:
    changed = len(module.step.outputs) > 1
    module.step.outputs = module.step.outputs[:1]
    return changed


def _return_at(index: int) -> Callable[[Module], bool]:
    def edit(module: Module) -> bool:
        results = module.step.ops[index].results
        if module.step.outputs == results[:1] or isinstance(results[0].type, CacheType):
            return False
        module.step.outputs = results[:1]
        return True

    return edit


def _cut_before(index: int) -> Callable[[Module], bool]:
    """Everything that ops from `index` on use of earlier ones becomes an argument."""

    def edit(module: Module) -> bool:
        graph = module.step
        early = graph.ops[:index]
        used = [r for op in early for r in op.results if any(u not in early for u in r.users)]
        return _become_arguments(graph, used)

    return edit


def _argument_for(index: int) -> Callable[[Module], bool]:
    def edit(module: Module) -> bool:
        return _become_arguments(module.step, module.step.ops[index].results)

    return edit


def _become_arguments(graph: Graph, values: Sequence[Value]) -> bool:
    """Replace each value by an argument of its type; False when there is none, or one that cannot be given."""
    if not values or any(isinstance(v.type, CacheType) or isinstance(v, Weight) for v in values):
        return False
    for value in values:
        argument = Value(f"cut{value.name}", value.type)
        graph.arguments.append(argument)
        graph.replace(value, argument)
    return True
