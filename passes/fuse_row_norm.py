"""Puts an RMS norm, and the choice of rows before it, inside the products that read it.

Before: `%n = rms_norm %x, @w {eps}`, `%y = linear_rows16 %n, @p {operands = "x weight"}`
After:  `%y = linear_rows16 %x, @w, @p {eps, operands = "x norm weight"}`

Every block of a product reads all of its activation rows anyway: a norm of its own would only add a launch, and a trip
through memory. Must not fire when something else than products over packed rows reads the norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Op, Value
from llamac.ir.levels import LOWERING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter

_PRODUCTS = ("linear_rows16", "gate_up_rows16", "expert_gate_up_rows16")


@dataclass(frozen=True)
class FuseRowNorm(Pass):
    """rms_norm (of chosen rows) -> inside the products of it."""

    name = "fuse-row-norm"
    requires = (LOWERING,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for norm in [op for op in graph.ops if op.opcode == "rms_norm"]:
                if norm.result in graph.outputs or not all(_takes(user, norm.result) for user in norm.result.users):
                    refusals.append(Refusal(norm.location, "something else than products over rows reads the norm"))
                    continue
                for product in list(norm.result.users):
                    _fuse(rewriter, norm, product)
                fused += 1
            rewriter.finish()
        return PassResult({"norm": fused}, tuple(refusals))


def _takes(product: Op, normed: Value) -> bool:
    """Whether `product` multiplies `normed`, and does nothing else with it."""
    if product.opcode not in _PRODUCTS:
        return False
    operands = str(product.attributes["operands"])
    return operands.startswith("x weight") and product.operands.count(normed) == 1 and product.operands[0] is normed


def _fuse(rewriter: Rewriter, norm: Op, product: Op) -> None:
    x, weight = norm.operands
    before, names = [x, weight], "x norm"
    chosen = x.producer
    if chosen is not None and chosen.opcode == "select_rows" and product.opcode == "linear_rows16":
        before, names = [*chosen.operands, weight], "x rows norm"
    operands = names + str(product.attributes["operands"]).removeprefix("x")
    rewriter.at(product)
    attributes = {**product.attributes, "operands": operands, "eps": norm.attributes["eps"]}
    rewriter.replace(product.result, rewriter.op(product.opcode, *before, *product.operands[1:], **attributes))
