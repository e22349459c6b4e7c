"""Makes the cast of a weight a weight.

Before: `%b = cast @bias {dtype = f32}`, `add %y, %b`
After:  `@bias.f32 = cast @bias {dtype = f32}`, `add %y, @bias.f32`

Products have taken theirs by then: they read weights as they are stored. Must not fire on a cast of anything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dtypes import DType
from llamac.ir.graph import Module, Weight
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.rewriter import Rewriter


@dataclass(frozen=True)
class FoldCasts(Pass):
    """cast of a weight -> another weight."""

    name = "fold-casts"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        folded = 0
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "cast" and isinstance(op.operands[0], Weight)]:
                weight, dtype = op.operands[0], op.attributes["dtype"]
                assert isinstance(dtype, DType)
                rewriter.at(op)
                rewriter.replace(op.result, rewriter.weight(f"{weight.name}.{dtype}", "cast", weight, dtype=dtype))
                folded += 1
            rewriter.finish()
        return PassResult({"cast": folded})
