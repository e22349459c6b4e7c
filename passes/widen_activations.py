"""Computes activations in f32: what the CPU backend does, whatever dtype the weights are stored in.

Before: `%1 = rms_norm %0, @w : tensor<T x 64 x bf16>`
After:  `%1 = rms_norm %0, @w : tensor<T x 64 x f32>`

Every rounding between ops disappears, so results are nearer to exact arithmetic. Weights keep their dtype; a row of
weights that is added is cast where that happens.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.builder import make_op
from llamac.ir.dtypes import F32
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.levels import MODEL
from llamac.ir.types import TensorType
from llamac.transform.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class WidenActivations(Pass):
    """Narrow float activations -> f32."""

    name = "widen-activations"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult({"value": sum(_widen(graph) for graph in module.graphs.values())})


def _is_narrow(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_float and value.type.dtype is not F32


def _widen(graph: Graph) -> int:
    widened = sum(_is_narrow(v) for v in graph.values())
    if not widened:
        return 0
    for argument in graph.arguments:
        if _is_narrow(argument):
            argument.type = argument.tensor.with_dtype(F32)
    ops: list[Op] = []
    for op in graph.ops:
        ops += _rebuild(graph, op)
    graph.ops = ops
    # A table lookup still gives the table's dtype before it is cast; that one value stays narrow.
    return widened - sum(_is_narrow(v) for v in graph.values())


def _rebuild(graph: Graph, op: Op) -> list[Op]:
    attributes = dict(op.attributes)
    dtype = attributes.get("dtype")
    if op.opcode in ("cast", "constant", "iota") and dtype is not F32 and getattr(dtype, "is_float", False):
        attributes["dtype"] = F32
    wide = op.results[0].tensor.with_dtype(F32) if op.opcode == "cast" and op.result.tensor.dtype.is_float else None
    if wide is not None and op.operands[0].type == wide:
        graph.replace(op.results[0], op.operands[0])
        op.drop_operands()
        return []
    casts = [make_op("cast", (v,), {"dtype": F32}, op.location) for v in _narrow_weights(op)]
    cast_of = {cast.operands[0]: cast.result for cast in casts}
    made = [*casts, make_op(op.opcode, tuple(cast_of.get(v, v) for v in op.operands), attributes, op.location)]
    if _is_narrow(made[-1].results[0]):
        made.append(make_op("cast", (made[-1].results[0],), {"dtype": F32}, op.location))
    for old, new in zip(op.results, made[-1].results, strict=True):
        graph.replace(old, new)
    op.drop_operands()
    return made


def _narrow_weights(op: Op) -> list[Value]:
    """The weights that an op adds, which must have the dtype of what they are added to."""
    return [v for v in op.operands if isinstance(v, Weight) and _is_narrow(v)] if op.opcode == "add" else []
