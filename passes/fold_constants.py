"""Evaluates what depends on constants alone and writes it into the module.

Before: `%8 = div %7, %6` ... a tree of iota, constant, pow, select over no input
After:  `weight @rope.inverse_frequencies : tensor<32 x f32> = data {...}`

Only tensors that something else uses become data; scalars stay constants. Powers are computed exactly and rounded once
(`exact_power`), everything else is IEEE operations, so the bits do not depend on the machine. Must not fire on sines,
products and other ops whose last bit may, nor on tensors larger than `limit` elements: tables over positions are
computed at run time instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llamac.ir.definition import Array, Evaluation
from llamac.ir.dtypes import widen
from llamac.ir.graph import DataSource, Module, Op, Value, Weight
from llamac.ir.levels import CAPTURED, MODEL, RAISING
from llamac.ir.registry import find_op
from llamac.ir.types import TensorType
from llamac.transform.base import Pass, PassContext, PassResult, Refusal

_ARITHMETIC = ("add", "sub", "mul", "div", "neg", "rsqrt", "reciprocal", "pow", "less", "less_equal", "select", "cast")
_MOVES = ("constant", "iota", "reshape", "transpose", "broadcast", "slice", "concat", "embedding")
REPRODUCIBLE = frozenset((*_ARITHMETIC, *_MOVES))
"""Ops that give the same bits on every machine."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Constant subgraphs -> data weights."""

    name = "fold-constants"
    requires = (CAPTURED, RAISING, MODEL)
    limit: int = 65536

    def run(self, module: Module, context: PassContext) -> PassResult:
        folded, refusals = 0, []
        for graph in module.graphs.values():
            known: dict[Value, Array] = {}
            for op in graph.ops:
                reason = self._why_not(op) if self._is_constant(op, known) else ""
                if reason is None:
                    known.update(zip(op.results, _evaluate(op, known), strict=True))
                    continue
                if reason:
                    refusals.append(Refusal(op.location, reason))
                folded += self._use(module, op, known)
            if folded:
                graph.remove_dead_ops()
        return PassResult({"constant": folded}, tuple(refusals))

    def _is_constant(self, op: Op, known: dict[Value, Array]) -> bool:
        types = [r.type for r in op.results]
        fixed = all(isinstance(t, TensorType) and all(isinstance(d, int) for d in t.shape) for t in types)
        return fixed and all(v in known or _is_data(v) for v in op.operands)

    def _why_not(self, op: Op) -> str | None:
        """The reason not to evaluate a constant op here, or None."""
        if op.opcode not in REPRODUCIBLE:
            return f"the bits of {op.opcode} depend on the machine"
        if any(_size(r) > self.limit for r in op.results):
            return f"{op.opcode} gives more than {self.limit} elements"
        return None

    def _use(self, module: Module, op: Op, known: dict[Value, Array]) -> int:
        """Replace the constant tensors that `op`, which is not evaluated itself, uses."""
        folded = 0
        for index, operand in enumerate(op.operands):
            if operand in known and operand.tensor.rank:
                roles = find_op(op.opcode).operands
                role = roles[min(index, len(roles) - 1)].rstrip("?*")
                op.set_operand(index, _data_weight(module, f"{op.location or 'graph'}.{role}", operand, known[operand]))
                folded += 1
        return folded


def _is_data(value: Value) -> bool:
    return isinstance(value, Weight) and isinstance(value.source, DataSource)


def _size(value: Value) -> int:
    return int(np.prod([d for d in value.tensor.shape if isinstance(d, int)], dtype=np.int64))


def _evaluate(op: Op, known: dict[Value, Array]) -> list[Array]:
    inputs = [known[v] if v in known else _data(v) for v in op.operands]
    run = Evaluation(inputs, op.attributes, [r.type for r in op.results], {}, False)
    return list(find_op(op.opcode).evaluate(run))


def _data(value: Value) -> Array:
    assert isinstance(value, Weight) and isinstance(value.source, DataSource)
    shape = tuple(d for d in value.tensor.shape if isinstance(d, int))
    stored = np.frombuffer(value.source.data, value.tensor.dtype.storage).reshape(shape)
    return widen(stored) if value.tensor.dtype.is_float else stored


def _data_weight(module: Module, name: str, value: Value, data: Array) -> Weight:
    stored = np.ascontiguousarray(data.astype(value.tensor.dtype.storage)).tobytes()
    unique, number = name, 1
    while unique in module.weights:
        existing = module.weights[unique]
        if isinstance(existing.source, DataSource) and (existing.source.data, existing.type) == (stored, value.type):
            return existing
        unique, number = f"{name}.{number}", number + 1
    return module.add_weight(Weight(unique, value.tensor, DataSource(stored)))
