"""Applies rewrite rules to a graph: match, check, rewrite, and report the near matches that were refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamac.ir.builder import define_weight, make_op
from llamac.ir.graph import Attribute, Graph, Module, Op, Value, Weight

from .base import Refusal
from .pattern import Match, Pattern, Trace, match


class Rewriter:
    """Makes new ops in front of the op being rewritten, and keeps the graph's order when all is done."""

    def __init__(self, module: Module, graph: Graph) -> None:
        self.module = module
        self.graph = graph
        self._before: dict[Op, list[Op]] = {}
        self._root: Op | None = None
        self._location = ""
        self._changed = False

    def at(self, root: Op, location: str | None = None) -> None:
        """Ops made from now on go in front of `root` and carry its location, or the one given."""
        self._root = root
        self._location = root.location if location is None else location

    def op(self, opcode: str, *operands: Value, **attributes: Attribute) -> Value:
        """A new op with one result."""
        return self.multi(opcode, *operands, **attributes).result

    def multi(self, opcode: str, *operands: Value, **attributes: Attribute) -> Op:
        """A new op."""
        assert self._root is not None
        made = make_op(opcode, operands, attributes, self._location)
        self._before.setdefault(self._root, []).append(made)
        self._changed = True
        return made

    def weight(self, name: str, opcode: str, *operands: Value, **attributes: Attribute) -> Weight:
        """The weight `name`, defined by an op over other weights."""
        return define_weight(self.module, name, opcode, *operands, **attributes)

    def replace(self, old: Value, new: Value) -> None:
        """Make every user of `old` use `new`."""
        self.graph.replace(old, new)
        self._changed = True

    def finish(self) -> None:
        """Put the new ops in place and remove what is no longer used; a graph without a rewrite stays as it is."""
        if not self._changed:
            return
        ops: list[Op] = []
        for op in self.graph.ops:
            ops += self._before.pop(op, [])
            ops.append(op)
        self.graph.ops = ops
        self._before = {}
        self.graph.remove_dead_ops()


@dataclass(frozen=True)
class Rule:
    """One rewrite: the result of an op that matches `pattern` is replaced by what `rewrite` returns.

    `check` gives the reason to leave a match alone, or None. A failed match that reached `near` levels deep is reported
    as a refusal: close enough that someone expected it to fire.
    """

    name: str
    pattern: Pattern
    rewrite: Callable[[Match, Rewriter], Value]
    check: Callable[[Match], str | None] = lambda found: None
    near: int = 2


def apply_rules(module: Module, rules: tuple[Rule, ...]) -> tuple[dict[str, int], tuple[Refusal, ...]]:
    """Apply each rule once at every op of every graph, in order; returns counts by rule name and the refusals."""
    counts = {rule.name: 0 for rule in rules}
    refusals: list[Refusal] = []
    for graph in module.graphs.values():
        rewriter = Rewriter(module, graph)
        for op in list(graph.ops):
            if not any(r.users or r in graph.outputs for r in op.results):
                continue
            for rule in rules:
                if _apply(rule, op, rewriter, refusals):
                    counts[rule.name] += 1
                    break
        rewriter.finish()
    return counts, tuple(refusals)


def apply_in_turn(module: Module, rules: tuple[Rule, ...]) -> tuple[dict[str, int], tuple[Refusal, ...]]:
    """As `apply_rules`, but each rule over the whole module before the next; rules of one name count together.

    For a form that contains another: its inner ops come first, and the other rule would take them.
    """
    counts: dict[str, int] = {rule.name: 0 for rule in rules}
    refusals: list[Refusal] = []
    for rule in rules:
        fired, refused = apply_rules(module, (rule,))
        counts[rule.name] += fired[rule.name]
        refusals += refused
    return counts, tuple(refusals)


def _apply(rule: Rule, op: Op, rewriter: Rewriter, refusals: list[Refusal]) -> bool:
    trace = Trace()
    found = match(rule.pattern, op, trace)
    if found is None:
        if trace.depth >= rule.near:
            refusals.append(Refusal(op.location or trace.where, f"{rule.name}: {trace.reason}"))
        return False
    reason = rule.check(found)
    if reason is not None:
        refusals.append(Refusal(op.location, f"{rule.name}: {reason}"))
        return False
    rewriter.at(op)
    rewriter.replace(op.results[0], rule.rewrite(found, rewriter))
    return True
