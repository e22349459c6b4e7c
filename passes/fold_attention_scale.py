"""Folds the scale of attention into the projection of q.

Before: `%f = linear %x, @q`, ..., `attention %h, %k, %v, %positions {scale = 0.125}`
After:  `%f = linear %x, @q.scaled`, ..., `attention %h, %k, %v, %positions {scale = 1.0}`

Rotation, temperature and the split into heads keep a factor. Only a power of two is folded, into weights whose
exponents reach far: then not one value is rounded otherwise than before. Must not fire through a norm of q, which would
undo the factor, nor when q has another use. All attentions of a graph are folded or none, so that layers stay alike.

In no pipeline so far: the CPU kernels multiply the scale into the constant of their exponential, where it is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamac.ir.builder import define_weight
from llamac.ir.dtypes import BF16, F32
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult, Refusal

_KEEP_A_FACTOR = ("rope", "temper", "transpose", "reshape")
_NORMS = ("unit_rms_norm", "rms_norm")


@dataclass(frozen=True)
class FoldAttentionScale(Pass):
    """attention {scale} on q -> attention {scale = 1.0} on scaled q."""

    name = "fold-attention-scale"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        folded, refusals = 0, []
        for graph in module.graphs.values():
            scaled = [op for op in graph.ops if op.opcode == "attention" and op.attributes["scale"] != 1.0]
            reasons = [_reason(graph, op) for op in scaled]
            if any(reasons):
                other = "the scale of another attention of the graph has to stay"
                refusals += [Refusal(op.location, why or other) for op, why in zip(scaled, reasons, strict=True)]
                continue
            for op in scaled:
                _fold(module, op)
            folded += len(scaled)
        return PassResult({"scale": folded}, tuple(refusals))


def _reason(graph: Graph, attention: Op) -> str | None:
    """Why the scale of `attention` cannot be folded exactly; None when it can."""
    scale = attention.attributes["scale"]
    assert isinstance(scale, float)
    if not scale > 0 or math.frexp(scale)[0] != 0.5:
        return f"the scale {scale!r} is no power of two: weights times it would be rounded anew"
    linear = _projection(graph, attention.operands[0])
    if isinstance(linear, str):
        return linear
    return _unfit(linear.operands[1])


def _projection(graph: Graph, q: Value) -> Op | str:
    """The linear that q comes from through ops that keep a factor, or why there is none."""
    while True:
        op = q.producer
        if op is not None and op.opcode in _NORMS:
            return "q is normed after its projection, which undoes any factor"
        if sum(q.users.values()) != 1 or q in graph.outputs:
            return "q has another use"
        if op is not None and op.opcode == "linear" and isinstance(op.operands[1], Weight):
            return op
        if op is None or op.opcode not in _KEEP_A_FACTOR:
            return f"q comes from {op.opcode if op is not None else 'an argument'}, not straight from a projection"
        q = op.operands[0]


def _unfit(weight: Value) -> str | None:
    """Why values of this weight may lose bits when multiplied by a power of two."""
    producer = weight.producer
    factors = (weight,) if producer is None or producer.opcode != "dequantize" else producer.operands[1:]
    narrow = [v for v in factors if v.tensor.dtype not in (F32, BF16)]
    return f"@{narrow[0].name} is {narrow[0].tensor.dtype}, whose small values lose bits" if narrow else None


def _fold(module: Module, attention: Op) -> None:
    scale, q = attention.attributes["scale"], attention.operands[0]
    assert isinstance(scale, float)
    while q.producer is not None and q.producer.opcode != "linear":
        q = q.producer.operands[0]
    assert q.producer is not None
    q.producer.set_operand(1, _scaled(module, q.producer.operands[1], scale))
    attention.attributes["scale"] = 1.0


def _scaled(module: Module, weight: Value, factor: float) -> Weight:
    """`weight` times `factor`; of a quantized one the scales and minima."""
    producer, name = weight.producer, f"{weight.name}.scaled"
    if producer is None or producer.opcode != "dequantize":
        return define_weight(module, name, "scale_weight", weight, factor=factor)
    quants, *factors = producer.operands
    parts = [define_weight(module, f"{v.name}.scaled", "scale_weight", v, factor=factor) for v in factors]
    return define_weight(module, name, "dequantize", quants, *parts, **producer.attributes)
