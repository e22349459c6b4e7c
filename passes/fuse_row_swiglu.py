"""Puts the gated activation inside the product that gives gate and up.

Before: `%y = linear_rows16 %x, @n, @gate_up {rows = 2 N}`, `swiglu %y`
After:  `gate_up_rows16 %x, @n, @gate_up {rows = N, dtype = bf16}`

What comes out is what the next product reads, in the type that activations have between two kernels; a cast says that
the graph goes on in f32. Must not fire when gate and up have another use, or a residual.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Op
from llamac.ir.layouts import format_of
from llamac.ir.levels import LOWERING
from llamac.ir.row_layouts import between_type
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter


@dataclass(frozen=True)
class FuseRowSwiglu(Pass):
    """linear_rows16 and swiglu -> gate_up_rows16."""

    name = "fuse-row-swiglu"
    requires = (LOWERING,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for swiglu in [op for op in graph.ops if op.opcode == "swiglu"]:
                reason = _fuse(rewriter, swiglu)
                if reason is None:
                    fused += 1
                else:
                    refusals.append(Refusal(swiglu.location, reason))
            rewriter.finish()
        return PassResult({"swiglu": fused}, tuple(refusals))


def _fuse(rewriter: Rewriter, swiglu: Op) -> str | None:
    """Fuse, or give the reason not to."""
    product = swiglu.operands[0].producer
    if len(swiglu.operands) != 1 or product is None or product.opcode != "linear_rows16":
        return "gate and up are not one product over rows"
    names = str(product.attributes["operands"]).split()
    if "residual" in names or "rows" in names:
        return "the product does more than gate_up_rows16 can"
    if sum(product.result.users.values()) != 1 or product.result in rewriter.graph.outputs:
        return "gate and up have another use"
    rows = product.attributes["rows"]
    assert isinstance(rows, int)
    dtype = between_type(format_of(str(product.attributes["format"])))
    rewriter.at(swiglu)
    attributes = {**product.attributes, "rows": rows // 2, "dtype": dtype}
    rewriter.replace(swiglu.result, rewriter.op("gate_up_rows16", *product.operands, **attributes))
    return None
