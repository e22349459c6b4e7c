"""Replaces each linear, embedding and expert by its kernel over weights in rows, the layout `gpu-rows16`.

Before: `%y = linear %x, @w {format = "i4g32s16"}`
After:  `@w.rows = pack_rows @w.quants, @w.scales {format}`, `%y = linear_rows16 %x, @w.rows {operands = "x weight"}`

Activations stay floats. Gate and up of routed rows become one stack and one kernel, which gathers and scores. Weights
of norms become f32. Must not fire before select-kernels, nor where gate and up are stored differently.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.builder import define_weight
from llamac.ir.dtypes import F32
from llamac.ir.graph import Attribute, Module, Op, Value, Weight
from llamac.ir.layouts import format_of
from llamac.ir.levels import LOWERING
from llamac.ir.row_layouts import between_type
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.rewriter import Rewriter
from llamac.transform.weight_rows import over_rows, scheme_of


@dataclass(frozen=True)
class PackRows(Pass):
    """linear, embedding and experts -> kernels over weights in rows."""

    name = "pack-rows"
    requires = (LOWERING,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts = {"linear": 0, "experts": 0, "embedding": 0, "norm": 0}
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in list(graph.ops):
                rewriter.at(op)
                kind = _pack(rewriter, op)
                if kind is not None:
                    counts[kind] += 1
            rewriter.finish()
        return PassResult(counts)


def _pack(rewriter: Rewriter, op: Op) -> str | None:
    if op.opcode == "linear":
        x, weight = op.operands
        made = rewriter.op("linear_rows16", x, _packed(rewriter.module, op, weight), **_shape(op, weight, "x weight"))
        rewriter.replace(op.result, made)
        return "linear"
    if op.opcode == "embedding":
        _embedding(rewriter, op)
        return "embedding"
    if op.opcode == "swiglu" and len(op.operands) == 2:
        rewriter.replace(op.result, _gate_up(rewriter, op))
        return "experts"
    if op.opcode == "expert_linear" and not _is_gate_or_up(op):
        rewriter.replace(op.result, _down(rewriter, op))
        return "experts"
    if op.opcode == "rms_norm" and _widen(rewriter, op):
        return "norm"
    return None


def _widen(rewriter: Rewriter, norm: Op) -> bool:
    weight = norm.operands[1]
    if not isinstance(weight, Weight) or weight.tensor.dtype is F32:
        return False
    norm.set_operand(1, rewriter.weight(f"{weight.name}.f32", "cast", weight, dtype=F32))
    return True


def _shape(op: Op, weight: Value, operands: str, experts: int = 1) -> dict[str, Attribute]:
    rows, columns = weight.tensor.shape
    assert isinstance(rows, int) and isinstance(columns, int)
    return {"format": _format(op), "rows": rows // experts, "columns": columns, "operands": operands}


def _format(op: Op) -> str:
    if "format" not in op.attributes:
        raise LlamacError("LLC0505", op.location, f"{op.opcode} has no weight format", "run select-kernels first")
    return str(op.attributes["format"])


def _packed(module: Module, op: Op, weight: Value) -> Weight:
    assert isinstance(weight, Weight)
    producer = weight.producer
    parts = producer.operands if producer is not None and producer.opcode == "dequantize" else (weight,)
    return define_weight(module, f"{weight.name}.rows", "pack_rows", *parts, format=_format(op))


def _embedding(rewriter: Rewriter, op: Op) -> None:
    table, ids = op.operands
    found = rewriter.op("embed_rows16", ids, _packed(rewriter.module, op, table), **_shape(op, table, "ids weight"))
    # The lookup gives f32 whatever the table holds, so the cast that followed it is gone.
    for user in list(op.result.users):
        if user.opcode == "cast" and user.result.type == found.type:
            rewriter.replace(user.result, found)
    rewriter.replace(op.result, found)


def _is_gate_or_up(op: Op) -> bool:
    return any(user.opcode == "swiglu" for user in op.result.users)


def _gate_up(rewriter: Rewriter, swiglu: Op) -> Value:
    """The kernel of both products of routed rows, from the rows before they are gathered."""
    gate, up = (value.producer for value in swiglu.operands)
    gather = gate.operands[0].producer if gate is not None else None
    # Gate and up of one input that are stored alike have been joined by fuse-gate-up.
    if not (gate and up and gather and gather.opcode == "gather_routed" and _alike(gate, up)):
        reason = "gate and up are stored differently, and one kernel makes both"
        raise LlamacError("LLC0506", swiglu.location, reason, "choose a --quantize for all weights")
    experts, (x, order, scores) = _experts(gate), gather.operands
    weights = [gate.operands[1], up.operands[1]]
    joined = over_rows(rewriter.module, f"{swiglu.location}.expert_gate_up", "concat", weights, axis=0)
    shape = _shape(gate, gate.operands[1], "x weight order scores offsets", experts)
    return rewriter.op(
        "expert_gate_up_rows16", x, _packed(rewriter.module, gate, joined), order, scores, gate.operands[2], **shape,
        experts=experts, top_k=gather.attributes["top_k"], dtype=between_type(format_of(_format(gate))),
    )  # fmt: skip


def _alike(one: Op, other: Op) -> bool:
    """Whether the weights of two products are stored by one scheme."""
    return scheme_of(one.operands[1]) == scheme_of(other.operands[1])


def _down(rewriter: Rewriter, op: Op) -> Value:
    x, weight, offsets = op.operands
    route = offsets.producer
    if route is None or route.opcode != "route":
        raise LlamacError("LLC0505", op.location, "the experts' offsets do not come from a route")
    experts = _experts(op)
    return rewriter.op(
        "expert_down_rows16", x, _packed(rewriter.module, op, weight), route.results[0], offsets,
        **_shape(op, weight, "x weight order offsets", experts), experts=experts, top_k=route.attributes["top_k"],
    )  # fmt: skip


def _experts(op: Op) -> int:
    offsets = op.operands[2].tensor.shape[0]
    assert isinstance(offsets, int)
    return offsets - 1
