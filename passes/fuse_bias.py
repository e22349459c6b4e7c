"""Adds the bias inside the linear that precedes the addition.

Before: `%y = linear_dense %x, @w`, `%z = add %y, @b`
After:  `%z = linear_biased %x, @w, @b.f32`

Must not fire when the product has another use, or when what is added is not a row of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dtypes import F32
from llamac.ir.graph import Module, Op, Weight
from llamac.ir.levels import KERNEL, LOWERING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter


@dataclass(frozen=True)
class FuseBias(Pass):
    """add of a row of weights after a linear kernel -> linear_biased."""

    name = "fuse-bias"
    requires = (LOWERING, KERNEL)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, list[Refusal]()
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "add" and isinstance(op.operands[1], Weight)]:
                reason = _fuse(rewriter, op)
                fused += reason is None
                refusals += [] if reason is None else [Refusal(op.location, reason)]
            rewriter.finish()
        return PassResult({"bias": fused}, tuple(refusals))


def _fuse(rewriter: Rewriter, add: Op) -> str | None:
    """Fuse `add`, or give the reason not to."""
    product, bias = add.operands
    linear = product.producer
    assert isinstance(bias, Weight)
    if linear is None or linear.opcode != "linear_dense" or len(linear.operands) != 2:
        return "it is not added to the product of a dense linear kernel without residual"
    if bias.tensor.shape != product.tensor.shape[1:]:
        return f"{bias!r} is not one row of {product.type}"
    if sum(product.users.values()) != 1 or product in rewriter.graph.outputs:
        return "the product has another use"
    wide = bias if bias.tensor.dtype is F32 else rewriter.weight(f"{bias.name}.f32", "cast", bias, dtype=F32)
    rewriter.at(add)
    rewriter.replace(add.result, rewriter.op("linear_biased", *linear.operands, wide, **linear.attributes))
    return None
