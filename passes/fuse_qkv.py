"""Joins the q, k and v projections of an attention into one.

Before: `%q = linear %x, @q`, `%k = linear %x, @k`, `%v = linear %x, @v`
After:  `%y = linear %x, @qkv`, `%q = slice %y`, `%k = slice %y`, `%v = slice %y`

Must not fire when the three weights are stored by different schemes (mixed GGUF files): joining would requantize.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Op, Value, Weight
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter
from llamac.transform.weight_rows import over_rows, scheme_of

PLUMBING = ("rope", "unit_rms_norm", "temper", "transpose", "reshape", "concat", "slice")


def projection(value: Value) -> Op | None:
    """The linear that a q, k or v comes from, through rotation, past and reshaping; None when there is none."""
    while value.producer is not None and value.producer.opcode in PLUMBING:
        value = value.producer.operands[-1 if value.producer.opcode == "concat" else 0]
    op = value.producer
    return op if op is not None and op.opcode == "linear" else None


@dataclass(frozen=True)
class FuseQkv(Pass):
    """Three projections of one input -> one."""

    name = "fuse-qkv"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "attention"]:
                reason = _fuse(rewriter, op)
                if reason is None:
                    fused += 1
                else:
                    refusals.append(Refusal(op.location, reason))
            rewriter.finish()
        return PassResult({"qkv": fused}, tuple(refusals))


def _fuse(rewriter: Rewriter, attention: Op) -> str | None:
    found = [projection(v) for v in attention.operands[:3]]
    linears = [op for op in found if op is not None]
    if len(linears) != 3 or len({op.operands[0] for op in linears}) != 1 or len(set(linears)) != 3:
        return "q, k and v are not three projections of one value"
    weights = [op.operands[1] for op in linears]
    if not all(isinstance(w, Weight) for w in weights):
        return "q, k and v are not all projected by weights"
    if len({scheme_of(w) for w in weights}) != 1:
        return "mixed schemes: q, k and v are stored differently"
    first = min(linears, key=rewriter.graph.ops.index)
    rewriter.at(first)
    joined = over_rows(rewriter.module, f"{attention.location}.qkv", "concat", weights, axis=0)
    y = rewriter.op("linear", linears[0].operands[0], joined)
    start = 0
    for op, weight in zip(linears, weights, strict=True):
        assert isinstance(weight, Weight)
        rows = weight.tensor.shape[0]
        assert isinstance(rows, int)
        rewriter.replace(op.result, rewriter.op("slice", y, axis=-1, start=start, stop=start + rows))
        start += rows
    return None
