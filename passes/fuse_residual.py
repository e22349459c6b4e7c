"""Adds the residual inside the linear that precedes the addition.

Before: `%y = linear_dense %x, @w`, `%z = add %r, %y`
After:  `%z = linear_dense %x, @w, %r`

An `all_reduce`, which sums the products of all ranks, takes the residual the same way. Where a mixture of experts adds
its answers to the product first, the sums are reordered: the residual goes into the product still,
`add %r, scatter_routed(%y, %place, %p)` -> `scatter_routed(%y, %place, linear_dense %x, @w, %r)`. Must not fire when
the product has another use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llamac.ir.graph import Attribute, Module, Op, Value
from llamac.ir.levels import KERNEL, LOWERING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter

Attributes = Mapping[str, Attribute]

_WITHOUT = {"linear_dense": 2, "linear_biased": 3, "linear_grouped": 4, "all_reduce": 1}


@dataclass(frozen=True)
class FuseResidual(Pass):
    """add after a linear kernel -> its residual operand."""

    name = "fuse-residual"
    requires = (LOWERING, KERNEL)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "add"]:
                reason = _fuse(rewriter, op)
                if reason is None:
                    fused += 1
                else:
                    refusals.append(Refusal(op.location, reason))
            rewriter.finish()
        return PassResult({"residual": fused}, tuple(refusals))


def _fuse(rewriter: Rewriter, add: Op) -> str | None:
    return fuse_addition(
        rewriter, add, _with_residual, "neither operand is the product of a linear kernel without residual"
    )


def _with_residual(op: Op) -> Attributes | None:
    return op.attributes if len(op.operands) == _WITHOUT.get(op.opcode, 0) else None


def fuse_addition(
    rewriter: Rewriter, add: Op, with_residual: Callable[[Op], Attributes | None], otherwise: str
) -> str | None:
    """Make one operand of `add` the last operand of the product that is the other, or give the reason not to.

    `with_residual` gives the attributes that an op has with a residual, None unless it is a product that can take one;
    `otherwise` is the reason where neither operand is one.
    """
    reason = otherwise
    for total, residual in (add.operands, add.operands[::-1]):
        scatter = total.producer if _is_scattered(rewriter, total) else None
        product = scatter.operands[2] if scatter is not None else total
        linear = product.producer
        attributes = None if linear is None else with_residual(linear)
        if linear is None or attributes is None:
            continue
        if sum(product.users.values()) != 1 or product in rewriter.graph.outputs:
            reason = "the product has another use"
        elif residual.type != product.type:
            reason = f"the residual {residual.type} is not of the product's type {product.type}"
        else:
            rewriter.at(add)
            result = rewriter.op(linear.opcode, *linear.operands, residual, **attributes)
            if scatter is not None:
                result = rewriter.op(scatter.opcode, *scatter.operands[:2], result, **scatter.attributes)
            rewriter.replace(add.result, result)
            return None
    return reason


def _is_scattered(rewriter: Rewriter, value: Value) -> bool:
    """Whether `value` is a product with routed rows added, and nothing else uses it."""
    alone = sum(value.users.values()) == 1 and value not in rewriter.graph.outputs
    return alone and value.producer is not None and value.producer.opcode == "scatter_routed"
