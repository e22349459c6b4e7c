"""Translation validation: every pass is run before and after through the interpreter on a small model.

What is compared is what a user sees: the logits of every token of some sequences. At captured and model level each
sequence is run whole and in two parts with explicit past; from `lower-kv-cache` on, the same tokens go through the
ragged step, cut and interleaved at random. In exact mode (f64, nothing rounded) a rewrite must agree to `EXACT_BOUND`;
a pass that changes weights is compared with the graph before it, run on the weights it made, and those weights with
what rounding them may do (`rounding`). Once memory is planned, values live in the planned bytes and nowhere else
(`arena`). Bounded evidence, not a proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.definition import Array
from llamac.ir.dtypes import BF16, F32
from llamac.ir.evaluator import RowReader, WeightEvaluator
from llamac.ir.graph import Module, Weight
from llamac.ir.interpreter import Interpreter
from llamac.ir.kv_groups import empty_caches, kv_groups
from llamac.ir.layouts import IN_PAIRS
from llamac.ir.levels import KERNEL, LOWERING
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.ops.row_kernels import E4M3_ABOVE
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.types import CacheType, TensorType

from .arena import ArenaInterpreter, is_planned
from .base import Pass, PassContext, PassResult
from .far_positions import PLACE, inputs_of
from .matrices import matrices
from .pictures import PAST
from .pipeline import Instrument, Step, run_pipeline
from .ranked_step import run_step
from .rounding import column_factors, is_recoded, rounding_ratio, stand_in
from .scenario import FAR, Scenario

EXACT_BOUND = 1e-10
"""Largest difference of a logit in exact mode, relative to the largest logit."""

_CACHE_DTYPE = re.compile(r"(kv_cache<[^<>]*?, )\w+(?:, scale = \w+)?>")

_LOOK = "`llamac opt --explain` and `--print-ir-after` show what the pass did"

PICTURE_PAGE = 8
"""Vision tokens of a sequence lie around this number, and around twice as many: the page of small models."""

DTYPE_FACTOR = 1.5
"""How much larger the errors of the final graph's logits may be than those of the captured graph's, in dtype mode."""

F32_FACTOR = 4.0
"""The same for models in f32: the order of summation alone may double errors, while f16 in one place is 1000-fold."""


FAR_FACTOR = 16.0
"""The same at far positions, where there are few tokens to average: positions held too narrowly are off 1000-fold."""


@dataclass(frozen=True)
class Verdict:
    """What validation found for one pass: the largest relative difference, and whether it is within the bound."""

    after: str
    difference: float
    bound: float
    passed: bool
    against: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Validator(Instrument):
    """Runs a pipeline on a small model and compares after every pass."""

    def __init__(self, read_rows: RowReader, scenario: Scenario) -> None:
        self.read_rows = read_rows
        self.scenario = scenario
        self.verdicts: list[Verdict] = []

    def run(self, module: Module, steps: Sequence[Step], instruments: Sequence[Instrument] = ()) -> list[Verdict]:
        """Validate every step (LLC0507 for the first that does not hold)."""
        rounded_before = self.logits(module, exact=False)
        exact = self._before = self.logits(module, exact=True)
        factor, in_bf16 = DTYPE_FACTOR if _is_narrow(module) else F32_FACTOR, _computes_in_bf16(module)
        self._text = print_module(module)
        run_pipeline(module, steps, PassContext(self.read_rows), instruments=[*instruments, self])
        changed_weights = any(v.against == "its own weights" for v in self.verdicts)
        if not changed_weights and not _rounds_activations(module, in_bf16):
            self._check_rounding(module, exact, rounded_before, factor)
        return self.verdicts

    def before(self, item: Pass, module: Module) -> None:
        self._matrices = {} if module.level in (LOWERING, KERNEL) else {w.name: w for w in matrices(module, "all")}

    def after(self, item: Pass, module: Module, result: PassResult) -> None:
        text = print_module(module)
        if text == self._text:
            # The text holds all of a module, so there is nothing to run.
            self.verdicts.append(Verdict(item.name, 0.0, EXACT_BOUND, True, "the graph before"))
            return
        self._check_report(item, text, result)
        found = self._run(item, module)
        replaced = self._replaced_weights(module)
        if replaced:
            self._judge_weights(item, replaced)
            evaluator = WeightEvaluator(self.read_rows)
            old = {origin: evaluator.whole(self._matrices[origin]) for origin in replaced}
            values = {origin: stand_in(weight, old[origin], evaluator) for origin, weight in replaced.items()}
            self._judge(item.name, found, self._on_weights(values), "its own weights")
        else:
            self._judge(item.name, found, self._before, "the graph before")
        if is_planned(module):
            self._judge(item.name, self._run(item, module, in_arena=True), found, "memory without reuse")
        self._before, self._text = found, text

    def _run(self, item: Pass, module: Module, in_arena: bool = False) -> Array:
        """Exact logits after `item`; a module that cannot be run any more is its fault."""
        try:
            return self.logits(module, exact=True, in_arena=in_arena)
        except Exception as error:
            reason = f"the module after it does not run: {type(error).__name__}: {error}"
            raise LlamacError("LLC0507", item.name, reason, _LOOK) from error

    def _check_report(self, item: Pass, text: str, result: PassResult) -> None:
        """Analyses are kept after a pass that reports no change, so the report must be true."""
        changed = text.partition("\n")[2] != self._text.partition("\n")[2]  # the first line names the level
        if changed and not result.changed:
            reason = "reports that nothing changed, but the module did"
            raise LlamacError("LLC0507", item.name, reason, "count what the pass does in its PassResult")

    def _judge(self, name: str, found: Array, before: Array, against: str) -> None:
        difference = relative_difference(found, before)
        self.verdicts.append(Verdict(name, difference, EXACT_BOUND, difference <= EXACT_BOUND, against))
        if not difference <= EXACT_BOUND:
            amount = f"logits differ by {difference:.2e} from {against}, bound {EXACT_BOUND:.0e}"
            raise LlamacError(
                "LLC0507",
                name,
                f"changes what the model computes: {amount}",
                _LOOK,
            )

    def _judge_weights(self, item: Pass, replaced: Mapping[str, Weight]) -> None:
        """Every matrix that the pass stores otherwise is as near to its old values as that storage allows."""
        largest, worst = 0.0, ""
        evaluator = WeightEvaluator(self.read_rows)
        for origin, weight in replaced.items():
            old, new = (evaluator.whole(w) for w in (self._matrices[origin], weight))
            if (factors := column_factors(weight, evaluator)) is not None:
                old = old.astype(np.float64) * factors
            ratio = rounding_ratio(weight, old, new, item)
            if not ratio <= largest:
                largest, worst = ratio, weight.name
        self.verdicts.append(Verdict(item.name, largest, 1.0, largest <= 1.0, "the weights before"))
        if not largest <= 1.0:
            reason = f"@{worst} is {largest:.3g} times as far from the values before as its format explains"
            raise LlamacError("LLC0507", item.name, reason, "compare the scales and groups with those of the format")

    def _check_rounding(self, module: Module, exact: Array, rounded_before: Array, factor: float) -> None:
        # What the cache is stored in is asked for, not lost by a pass.
        wide = parse_module(_CACHE_DTYPE.sub(r"\1f32>", print_module(module)))
        rounded_after = self.logits(wide, exact=False)
        errors = (rounded_after - exact, rounded_before - exact)
        near = sum(map(len, self.scenario.sequences))
        for rows, allowed, where in ((slice(near), factor, ""), (slice(near, None), FAR_FACTOR, f" at {FAR}")):
            if not len(exact[rows]):
                continue
            ratio = _error_ratio(*(x[rows] for x in errors))
            self.verdicts.append(
                Verdict("dtype mode", ratio, allowed, ratio <= allowed, f"the captured graph's rounding{where}")
            )
            if not ratio <= allowed:
                reason = f"rounds {ratio:.3g} times as coarsely as the captured graph{where}, allowed {allowed}"
                raise LlamacError("LLC0507", "pipeline", reason, "a pass lost precision between ops")

    # Weights that a pass replaced.

    def _replaced_weights(self, module: Module) -> dict[str, Weight]:
        """Name before -> weight after, for matrices that now are other values under a longer name."""
        if module.level in (LOWERING, KERNEL):
            return {}
        found = {}
        for weight in matrices(module, "all"):
            origins = (n for n in self._matrices if weight.name.startswith(f"{n}.") and is_recoded(weight, n))
            origin = next(origins, None)
            if weight.name not in self._matrices and origin is not None:
                found[origin] = weight
        return found

    def _on_weights(self, replaced: Mapping[str, Array]) -> Array:
        return self.logits(parse_module(self._text), exact=True, overrides=replaced)

    # Running.

    def logits(
        self, module: Module, exact: bool, overrides: Mapping[str, Array] | None = None, in_arena: bool = False
    ) -> Array:
        """Logits of every token of every sequence, [tokens, vocabulary]."""
        interpreter = (
            ArenaInterpreter(module, self.read_rows) if in_arena else Interpreter(module, self.read_rows, exact)
        )
        for name, value in (overrides or {}).items():
            interpreter.override(name, value)
        if kv_groups(module.step):
            return np.concatenate([*self._ragged(interpreter), *self._far_ragged(interpreter)])
        near = [self._sequence(interpreter, n) for n in range(len(self.scenario.sequences))]
        return np.concatenate([*near, *self._far(interpreter)])

    def _sequence(self, interpreter: Interpreter, number: int) -> Array:
        """One sequence, its last third after its first two thirds as past."""
        length = len(self.scenario.sequences[number])
        cut = max(1, 2 * length // 3)
        tokens = self.scenario.sequences[number]
        logits, state = self._step(interpreter, number, 0, tokens[:cut], None)
        if cut == length:
            return logits
        rest, _ = self._step(interpreter, number, cut, tokens[cut:], state)
        return np.concatenate([logits, rest])

    def _far(self, interpreter: Interpreter) -> Iterator[Array]:
        """The tail of the far sequence, after the state of its block over and over."""
        far = self.scenario.far
        if far is not None:
            _, state = self._step(interpreter, PLACE, 0, far.block, None)
            yield self._step(interpreter, PLACE, far.start, far.tail, [far.repeated(v) for v in state])[0]

    def _step(
        self,
        interpreter: Interpreter,
        number: int,
        start: int,
        tokens: Sequence[int],
        state: list[Array] | None,
    ) -> tuple[Array, list[Array]]:
        graph, stop = interpreter.module.step, start + len(tokens)
        inputs: dict[str, Any] = {
            "ids": np.array(tokens, np.int32),
            "positions": np.arange(start, stop, dtype=np.int32),
            **self.scenario.pictures(PICTURE_PAGE).of_sequence(graph, number, start, stop),
        }
        for index, argument in enumerate(a for a in graph.arguments if a.name.startswith(PAST)):
            heads, _, width = argument.tensor.shape
            inputs[argument.name] = state[index] if state else np.zeros((heads, 0, width))
        logits, *new = interpreter.run(inputs)
        return logits, new

    def _ragged(self, interpreter: Interpreter) -> list[Array]:
        sequences, graph = self.scenario.sequences, interpreter.module.step
        groups, pictures = kv_groups(graph), self.scenario.pictures(PICTURE_PAGE)
        tables, caches = self._memory(interpreter)
        found: list[list[Array]] = [[] for _ in sequences]
        for number, rows in enumerate(self.scenario.partitions(groups[0].type.page)):
            # The rows whose logits are wanted are asked for in another order than the tokens'.
            wanted = np.roll(np.arange(len(rows), dtype=np.int32)[::-1], len(rows) // 3)
            inputs = inputs_of(rows, [sequences[s][p] for s, p in rows], wanted) | pictures.of_rows(graph, rows)
            logits, states = run_step(interpreter, {**inputs, **tables, **caches}, number)
            caches = dict(zip(caches, states, strict=True))
            ordered = dict(zip(wanted.tolist(), logits, strict=True))
            for place, (index, _) in enumerate(rows):
                found[index].append(ordered[place])
            for group in groups:
                _give_back(tables[group.tables.name], group.type, [len(done) for done in found])
        return [np.stack(rows) for rows in found]

    def _memory(self, interpreter: Interpreter) -> tuple[dict[str, Array], dict[str, CacheState]]:
        """Page tables for all sequences, and caches that hold their pictures."""
        sequences, graph = self.scenario.sequences, interpreter.module.step
        groups, pictures = kv_groups(graph), self.scenario.pictures(PICTURE_PAGE)
        held = [list(map(len, sequences)), [pictures.tokens(n) for n in range(len(sequences))]]
        pages = [[-(-count // g.type.page) for count in held[g.type.cross]] for g in groups]
        longest = max(max(counts) for counts in pages)
        tables = {
            group.tables.name: _page_tables(counts, longest, place)
            for place, (group, counts) in enumerate(zip(groups, pages, strict=True))
        }
        caches = empty_caches(graph, [sum(counts) for counts in pages], interpreter.exact)
        for group in groups:
            if group.type.cross:
                pictures.fill(group, caches[group.cache.name], tables[group.tables.name])
        return tables, caches

    def _far_ragged(self, interpreter: Interpreter) -> Iterator[Array]:
        """The same of the ragged step: the block's page stands in the table for every page before the tail's."""
        far, graph = self.scenario.far, interpreter.module.step
        if far is None:
            return
        tables, caches = self._memory(interpreter)
        for group in kv_groups(graph):
            tables[group.tables.name] = far.page_table(tables[group.tables.name], group.type.cross)
        logits = np.empty(0)
        for number, (rows, tokens) in enumerate(far.steps()):
            inputs = inputs_of(rows, tokens, np.arange(len(rows), dtype=np.int32))
            inputs |= self.scenario.pictures(PICTURE_PAGE).of_rows(graph, rows)
            logits, states = run_step(interpreter, {**inputs, **tables, **caches}, number)
            caches = dict(zip(caches, states, strict=True))
        yield logits


def _page_tables(pages: Sequence[int], longest: int, turn: int) -> Array:
    """Pages handed out interleaved, in each cache from another one on (`turn`), so that their numbers say nothing."""
    tables = np.full((len(pages), longest), -1, np.int32)
    numbers = list(np.roll(np.arange(sum(pages)), turn))
    for place in range(max(pages)):
        for index, count in enumerate(pages):
            if place < count:
                tables[index, place] = numbers.pop()
    return tables


def _give_back(tables: Array, cache: CacheType, lengths: Sequence[int]) -> None:
    """Forget the pages that no later row of a sequence can see."""
    for sequence, length in enumerate(lengths):
        tables[sequence, : cache.first_visible(length) // cache.page] = -1


def relative_difference(found: Array, expected: Array) -> float:
    """Largest absolute difference over the largest magnitude; infinite for other shapes or for values not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def _is_narrow(module: Module) -> bool:
    types = [v.type for graph in module.graphs.values() for v in graph.values()]
    return any(isinstance(t, TensorType) and t.dtype.is_float and t.dtype is not F32 for t in types)


def _error_ratio(found: Array, allowed: Array) -> float:
    """How much larger the errors of a token's logits are, as the geometric mean over tokens.

    A mean of squares over all tokens would be that of the few whose attention is sharpest: noise, for equal arithmetic.
    """
    rows = [np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=1)) for x in (found, allowed)]
    if not np.isfinite(rows).all():
        return float("inf")
    found_rms, allowed_rms = (np.maximum(r, 1e-12) for r in rows)
    return float(np.exp(np.mean(np.log(found_rms / allowed_rms))))


def _computes_in_bf16(module: Module) -> bool:
    """Whether all products of a captured graph are bf16."""
    return all(op.result.tensor.dtype is BF16 for _, op in module.ops() if op.opcode == "matmul")


def _rounds_activations(module: Module, in_bf16: bool) -> bool:
    """Whether activations are rounded on purpose: to 8 bits, or to bf16 in a model that holds them otherwise."""
    for _, op in module.ops():
        if E4M3_ABOVE in op.attributes:
            return True
        if op.opcode.endswith(("quantize_rows", "_quantized")):
            return True
        if not in_bf16 and op.opcode != "pack" and "format" in op.attributes:
            name = str(op.attributes["format"])
            if name in IN_PAIRS.values():
                return True
    return False
