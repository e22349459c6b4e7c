"""Places every intermediate tensor in one arena, for at most `tokens` tokens a step.

Before: `%3 = rms_norm %0, @w : ...`
After:  `%3 = rms_norm %0, @w {buffers = [2359296]} : ...`

Offsets are in bytes from the start of the arena, 64-byte aligned, and reuse what is no longer live. What adds to a
residual writes over the residual when that dies there, and q is normed, tempered and rotated inside qkv. -1 - i means
argument i's own memory (an outlined layer updates its hidden state in place); -1000 is a cache or an output, which the
caller owns. The parts of a concat along columns are written in place: each is a strip of the concat's buffer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamac.analysis.memory import EXTERNAL, value_bytes
from llamac.errors import LlamacError
from llamac.ir.definition import PLACEMENT
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.levels import KERNEL
from llamac.ir.types import CacheType
from llamac.transform.base import Pass, PassContext, PassResult

_RESIDUAL = {
    "linear_dense": 2,
    "linear_biased": 3,
    "linear_grouped": 4,
    "scatter_routed": 2,
    "all_reduce": 1,
    "gated_add": 1,
    "gelu": 0,
    "add_places": 0,
}
_UPDATED = {
    "call": 0,
    "rope_append": 1,
    "append": 1,
    "norm_heads": 0,
    "temper_heads": 0,
    "merge_rows": 0,
    "rope_pairs": 0,
    "take_rows": 0,
}
"""Opcode -> the operand that it updates in place."""


@dataclass(frozen=True)
class PlanMemory(Pass):
    """Values -> offsets in one arena."""

    name = "plan-memory"
    requires = (KERNEL,)
    tokens: int = 512

    def run(self, module: Module, context: PassContext) -> PassResult:
        # Planned anew even where there is a plan: it may be of other ops, or of fewer tokens.
        entries, before = module.entries, {op: op.attributes.get(PLACEMENT) for _, op in module.ops()}
        _check_calls(module, entries)
        frame = max(_Planner(graph, self.tokens, 0, True).run() for graph in entries)
        for graph in module.graphs.values():
            if graph not in entries:
                _Planner(graph, self.tokens, frame, False).run()
        changed = [op for op, placed in before.items() if op.attributes[PLACEMENT] != placed]
        return PassResult({"buffer": sum(len(op.results) for op in changed)})


def _check_calls(module: Module, entries: list[Graph]) -> None:
    """Frames of called graphs all begin behind those of the entries: one within another would lie on it."""
    for graph in module.graphs.values():
        for op in graph.ops if graph not in entries else ():
            if op.opcode == "call":
                reason = f"@{graph.name}, which is called itself, calls @{op.attributes['callee']}"
                raise LlamacError("LLC0505", op.location, reason, "calls of calls have no place in memory")


@dataclass
class _Planner:
    graph: Graph
    tokens: int
    base: int
    is_main: bool
    place: dict[Value, int] = field(default_factory=dict)
    last_use: dict[Value, int] = field(default_factory=dict)
    live: dict[int, tuple[int, int]] = field(default_factory=dict)
    end: int = 0

    def run(self) -> int:
        """Place every result of the graph; returns the end of its frame."""
        self.end = self.base
        for index, argument in enumerate(self.graph.arguments):
            self.place[argument] = -1 - index
        for index, op in enumerate(self.graph.ops):
            for operand in op.operands:
                self.last_use[operand] = index
        strips = self._strips()
        for index, op in enumerate(self.graph.ops):
            self._free_before(index)
            for result in op.results:
                self._place(result, op, index, strips)
            op.attributes[PLACEMENT] = tuple(self.place[r] for r in op.results)
        self._check_outputs()
        return self.end

    def _strips(self) -> dict[Value, Value]:
        """Value -> the concat result whose buffer it is a strip of."""
        found: dict[Value, Value] = {}
        for op in self.graph.ops:
            if op.opcode == "concat":
                self._check_concat(op)
                for operand in op.operands:
                    found[operand] = op.result
                    self.last_use[operand] = self.last_use.get(op.result, 0)
        return found

    def _check_concat(self, op: Op) -> None:
        """No code joins the parts of a concat: each must be written in place, beside the others of its row."""
        reason = None
        if op.result.tensor.rank != 2 or op.attributes["axis"] not in (-1, 1):
            reason = "a concat joins what are not columns of matrices, which have no places side by side"
        elif self.is_main and self._is_handed_out(op.result):
            reason = "a concat is handed out, and its parts are written elsewhere"
        for operand in op.operands:
            maker = operand.producer
            if isinstance(operand, Weight) or maker is None or maker.opcode in ("concat", *_UPDATED):
                reason = f"a part of a concat, {operand!r}, is not made for it"
            elif sum(operand.users.values()) != 1 or operand in self.graph.outputs:
                reason = "a part of a concat has another use"
        if reason is not None:
            raise LlamacError("LLC0505", op.location, reason)

    def _free_before(self, index: int) -> None:
        # Slots are keyed by offset and hold (size, last op that reads them).
        for offset in [o for o, (_, last) in self.live.items() if last < index]:
            del self.live[offset]

    def _place(self, result: Value, op: Op, index: int, strips: dict[Value, Value]) -> None:
        if isinstance(result.type, CacheType) or (self.is_main and self._is_handed_out(result)):
            if not isinstance(result.type, CacheType) and op.opcode in _UPDATED:
                reason = f"{op.opcode} gives a result where its operand lies, which the caller does not see"
                raise LlamacError("LLC0505", op.location, reason)
            self.place[result] = EXTERNAL
            return
        last = max(self.last_use.get(result, index), len(self.graph.ops) if result in self.graph.outputs else 0)
        in_place = self._in_place(op, result, index) if result not in strips else None
        if in_place is not None:
            self.place[result] = self.place[in_place]
            if self.place[result] >= 0:
                size = max(value_bytes(result, self.tokens), value_bytes(in_place, self.tokens))
                self.live[self.place[result]] = (size, last)
            return
        whole = strips.get(result, result)
        if whole in self.place:
            self.place[result] = self.place[whole]
            return
        offset = self._find(value_bytes(whole, self.tokens))
        self.live[offset] = (value_bytes(whole, self.tokens), max(last, self.last_use.get(whole, index)))
        self.place[result] = self.place[whole] = offset

    def _is_handed_out(self, result: Value) -> bool:
        """Whether a result lies in the caller's memory: an output, or the columns of one that `all_gather` joins."""
        joined = [user.result for user in result.users if user.opcode == "all_gather"]
        return any(value in self.graph.outputs for value in (result, *joined))

    def _in_place(self, op: Op, result: Value, index: int) -> Value | None:
        """The operand whose memory this result takes over, or None."""
        if op.opcode in _UPDATED:
            taken = op.operands[_UPDATED[op.opcode]]
            reason = None
            if self.last_use[taken] != index or taken in self.graph.outputs:
                reason = f"{op.opcode} updates {taken!r} in place, which has a later use"
            elif not self._may_write(taken):
                reason = f"{op.opcode} updates {taken!r} in place, which is not the graph's to write"
            elif value_bytes(result, self.tokens) > value_bytes(taken, self.tokens):
                reason = f"{op.opcode} gives more than its operand {taken!r} has room for"
            if reason is not None:
                raise LlamacError("LLC0505", op.location, reason)
            return taken
        at = _RESIDUAL.get(op.opcode)
        if at is None or len(op.operands) <= at:
            return None
        residual = op.operands[at]
        # Read as another operand too, it would be overwritten while other threads still read it.
        is_free = self.last_use[residual] == index and op.operands.count(residual) == 1
        is_free = is_free and residual not in self.graph.outputs
        return residual if is_free and self._may_write(residual) else None

    def _may_write(self, value: Value) -> bool:
        """Whether the memory of `value` is the graph's to write: its own, or what a called graph hands back."""
        if isinstance(value, Weight):
            return False
        given = -1 - self.place[value]
        return given < 0 or (not self.is_main and given < len(self.graph.outputs))

    def _find(self, size: int) -> int:
        offset = self.base
        for start, (length, _) in sorted(self.live.items()):
            if start - offset >= size:
                break
            offset = max(offset, start + length)
        self.end = max(self.end, offset + size)
        return offset

    def _check_outputs(self) -> None:
        if self.is_main:
            return
        for index, value in enumerate(self.graph.outputs):
            if self.place[value] not in (EXTERNAL, -1 - index):
                where = f"@{self.graph.name}"
                raise LlamacError("LLC0505", where, f"output {index} does not end in the memory it came from")
