"""Computes gate and up in one kernel with the gated activation, so that neither is ever written.

Before: `%y = linear_grouped %q, %s, %t, @gate_up`, `%r, %u, %v = swiglu_quantized %y`
After:  `%r, %u, %v = gated_linear_grouped %q, %s, %t, @gate_up`

Likewise `linear_dense` with `swiglu`. The weight stays as it is: its gates lie in the first half of its rows, its ups
in the second. Must not fire when gate and up have another use, or when their rows do not fill whole panels.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Graph, Module, Op
from llamac.ir.layouts import PANEL
from llamac.ir.levels import KERNEL, LOWERING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter

_GATED = {
    "swiglu": ("linear_dense", "gated_linear_dense", 2),
    "swiglu_quantized": ("linear_grouped", "gated_linear_grouped", 4),
}
"""Gated activation -> the product it may follow, the kernel of both, and that product's operands without a residual."""


@dataclass(frozen=True)
class FuseGatedLinear(Pass):
    """linear and swiglu -> one kernel."""

    name = "fuse-gated-linear"
    requires = (LOWERING, KERNEL)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, list[Refusal]()
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode in _GATED and len(op.operands) == 1]:
                reason = _why_not(graph, op)
                if reason is None:
                    _fuse(rewriter, op)
                    fused += 1
                else:
                    refusals.append(Refusal(op.location, reason))
            rewriter.finish()
        return PassResult({"gated_linear": fused}, tuple(refusals))


def _why_not(graph: Graph, op: Op) -> str | None:
    product, (linear, _, operands) = op.operands[0].producer, _GATED[op.opcode]
    if product is None or product.opcode != linear or len(product.operands) != operands:
        return f"gate and up are not the product of one {linear} without residual"
    if sum(product.result.users.values()) != 1 or product.result in graph.outputs:
        return "gate and up have another use"
    rows = product.attributes["rows"]
    assert isinstance(rows, int)
    if rows % (2 * PANEL):
        return f"{rows // 2} gates do not fill whole panels of {PANEL}"
    return None


def _fuse(rewriter: Rewriter, op: Op) -> None:
    product, (_, fused, _) = op.operands[0].producer, _GATED[op.opcode]
    assert product is not None
    rewriter.at(op)
    made = rewriter.multi(fused, *product.operands, **product.attributes, **op.attributes)
    for old, new in zip(op.results, made.results, strict=True):
        rewriter.replace(old, new)
