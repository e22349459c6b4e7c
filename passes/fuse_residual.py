"""Adds the residual inside the linear that precedes the addition.

Before: `%y = linear_dense %x, @w`, `%z = add %r, %y`
After:  `%z = linear_dense %x, @w, %r`

Must not fire when the product has another use.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Op
from llamac.ir.levels import KERNEL, LOWERING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.rewriter import Rewriter

_WITHOUT = {"linear_dense": 2, "linear_grouped": 4}


@dataclass(frozen=True)
class FuseResidual(Pass):
    """add after a linear kernel -> its residual operand."""

    name = "fuse-residual"
    requires = (LOWERING, KERNEL)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused = 0
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in list(graph.ops):
                fused += op.opcode == "add" and _fuse(rewriter, op)
            rewriter.finish()
        return PassResult({"residual": fused})


def _fuse(rewriter: Rewriter, add: Op) -> bool:
    for product, residual in (add.operands, add.operands[::-1]):
        linear = product.producer
        if linear is None or len(product.users) != 1 or len(linear.operands) != _WITHOUT.get(linear.opcode, 0):
            continue
        rewriter.at(add)
        rewriter.replace(add.result, rewriter.op(linear.opcode, *linear.operands, residual, **linear.attributes))
        return True
    return False
