"""Adds the residual, and the answers of experts, inside the products that precede the addition.

Before: `%y = linear_rows16 %x, @w`, `%z = add %r, %y`
After:  `%z = linear_rows16 %x, @w, %r {operands = "x weight residual"}`

Where a mixture of experts adds its answers to the product first, the sums are reordered: the residual goes into the
product still. Where every token has one expert, the product of its way back adds what it is scattered onto:
`scatter_routed (expert_down_rows16 ...), %place, %z` -> `expert_down_rows16 ..., %z {operands = "... base"}`. Must not
fire when the product has another use.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Op
from llamac.ir.levels import LOWERING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter

from .fuse_residual import Attributes, fuse_addition


@dataclass(frozen=True)
class FuseRowResidual(Pass):
    """add and scatter_routed after products over rows -> operands of those."""

    name = "fuse-row-residual"
    requires = (LOWERING,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts, refusals = {"residual": 0, "scatter": 0}, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in list(graph.ops):
                reason = _add(rewriter, op) if op.opcode == "add" else "not an addition"
                if reason is None:
                    counts["residual"] += 1
                elif op.opcode == "add":
                    refusals.append(Refusal(op.location, reason))
            rewriter.finish()
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "scatter_routed"]:
                counts["scatter"] += _scatter(rewriter, op)
            rewriter.finish()
        return PassResult(counts, tuple(refusals))


def _add(rewriter: Rewriter, add: Op) -> str | None:
    return fuse_addition(rewriter, add, _with_residual, "neither operand is a product over rows without residual")


def _with_residual(op: Op) -> Attributes | None:
    if op.opcode != "linear_rows16" or "residual" in str(op.attributes["operands"]):
        return None
    return {**op.attributes, "operands": f"{op.attributes['operands']} residual"}


def _scatter(rewriter: Rewriter, scatter: Op) -> bool:
    routed, _, base = scatter.operands
    down = routed.producer
    is_only = sum(routed.users.values()) == 1 and routed not in rewriter.graph.outputs
    if down is None or down.opcode != "expert_down_rows16" or scatter.attributes["top_k"] != 1 or not is_only:
        return False
    rewriter.at(scatter)
    attributes = {**down.attributes, "operands": f"{down.attributes['operands']} base"}
    rewriter.replace(scatter.result, rewriter.op("expert_down_rows16", *down.operands, base, **attributes))
    return True
