"""Adds the residual, and the answers of experts, inside the products that precede the addition.

Before: `%y = linear_rows16 %x, @w`, `%z = add %r, %y`
After:  `%z = linear_rows16 %x, @w, %r {operands = "x weight residual"}`

Where a mixture of experts adds its answers to the product first, the sums are reordered: the residual goes into the
product still. Where ranks add their products first, `add %r, all_reduce(%y)`, the first rank's product takes the
residual, and those of the others are added to it as they are. Where every token has one expert, the product of its way
back adds what it is scattered onto: `scatter_routed (expert_down_rows16 ...), %place, %z` -> `expert_down_rows16 ...,
%z {operands = "... base"}`. Must not fire when the product has another use.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Op, Value
from llamac.ir.levels import LOWERING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter

from .fuse_residual import Attributes, fuse_addition


@dataclass(frozen=True)
class FuseRowResidual(Pass):
    """add and scatter_routed after products over rows -> operands of those; on rank number `rank`."""

    name = "fuse-row-residual"
    requires = (LOWERING,)
    rank: int = 0

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts, refusals = {"residual": 0, "scatter": 0}, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in list(graph.ops):
                reason = _add(rewriter, op, self.rank) if op.opcode == "add" else "not an addition"
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


def _add(rewriter: Rewriter, add: Op, rank: int) -> str | None:
    for total, residual in (add.operands, add.operands[::-1]):
        summed = total.producer
        if summed is not None and summed.opcode == "all_reduce" and _is_only(rewriter, total):
            return _add_before_the_sum(rewriter, add, summed, residual, rank)
    return fuse_addition(rewriter, add, _with_residual, "neither operand is a product over rows without residual")


def _add_before_the_sum(rewriter: Rewriter, add: Op, summed: Op, residual: Value, rank: int) -> str | None:
    """The residual is one more thing that is summed: the first rank's product brings it, where it can on all ranks."""
    partial = summed.operands[0]
    scatter = partial.producer if partial.producer is not None and partial.producer.opcode == "scatter_routed" else None
    product = (scatter.operands[2] if scatter is not None else partial).producer
    attributes = _with_residual(product) if product is not None else None
    fits = len(summed.operands) == 1 and _is_only(rewriter, partial)
    if product is None or attributes is None or not fits or not _is_only(rewriter, product.result):
        return "what ranks add is not a product over rows without residual"
    if residual.type != product.result.type:
        return f"the residual {residual.type} is not of the product's type {product.result.type}"
    if rank:
        rewriter.replace(add.result, summed.result)
        return None
    rewriter.at(add)
    result = rewriter.op(product.opcode, *product.operands, residual, **attributes)
    if scatter is not None:
        result = rewriter.op(scatter.opcode, *scatter.operands[:2], result, **scatter.attributes)
    rewriter.replace(add.result, rewriter.op("all_reduce", result, **summed.attributes))
    return None


def _with_residual(op: Op) -> Attributes | None:
    if op.opcode != "linear_rows16" or "residual" in str(op.attributes["operands"]):
        return None
    return {**op.attributes, "operands": f"{op.attributes['operands']} residual"}


def _is_only(rewriter: Rewriter, value: Value) -> bool:
    """Whether one op alone reads `value`."""
    return sum(value.users.values()) == 1 and value not in rewriter.graph.outputs


def _scatter(rewriter: Rewriter, scatter: Op) -> bool:
    routed, _, base = scatter.operands
    down = routed.producer
    is_only = _is_only(rewriter, routed)
    if down is None or down.opcode != "expert_down_rows16" or scatter.attributes["top_k"] != 1 or not is_only:
        return False
    rewriter.at(scatter)
    attributes = {**down.attributes, "operands": f"{down.attributes['operands']} base"}
    rewriter.replace(scatter.result, rewriter.op("expert_down_rows16", *down.operands, base, **attributes))
    return True
