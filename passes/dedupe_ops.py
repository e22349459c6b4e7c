"""Makes equal ops on equal operands one op.

Before: `%1, %2 = rope_angles %p, @f`, `%9, %10 = rope_angles %p, @f`
After:  one of them, used by both

Must not fire on ops that replace a cache: each write is its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Graph, Module, Op
from llamac.ir.levels import LEVELS
from llamac.ir.types import CacheType
from llamac.transform.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class DedupeOps(Pass):
    """Common subexpressions -> one op."""

    name = "dedupe-ops"
    requires = LEVELS

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult({"op": sum(_dedupe(graph) for graph in module.graphs.values())})


def _dedupe(graph: Graph) -> int:
    seen: dict[object, Op] = {}
    removed = 0
    for op in graph.ops:
        if any(isinstance(r.type, CacheType) for r in op.results):
            continue
        key = (op.opcode, op.operands, tuple(sorted((k, repr(v)) for k, v in op.attributes.items())))
        first = seen.setdefault(key, op)
        if first is not op:
            for old, new in zip(op.results, first.results, strict=True):
                graph.replace(old, new)
            removed += 1
    if removed:
        graph.remove_dead_ops()
    return removed
