"""Fuses the residual addition with the norm that follows it, for backends that do both in one pass over memory.

Before: `%h = add %x, %r`, `%n = rms_norm %h, @w {eps}`
After:  `%h, %n = add_rms_norm %x, %r, @w {eps}`

The sum stays a result: the next residual needs it. Not part of the CPU pipeline, where the addition goes into the
linear before it (`fuse-residual`). Must not fire when two norms read one sum, or when the addition broadcasts.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Op
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter


@dataclass(frozen=True)
class FuseAddRmsNorm(Pass):
    """add, then rms_norm of the sum -> add_rms_norm."""

    name = "fuse-add-rms-norm"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for norm in [op for op in graph.ops if op.opcode == "rms_norm"]:
                add = norm.operands[0].producer
                if add is None or add.opcode != "add":
                    continue
                reason = _refusal(add)
                if reason is None:
                    _fuse(rewriter, add, norm)
                    fused += 1
                else:
                    refusals.append(Refusal(norm.location, reason))
            rewriter.finish()
        return PassResult({"add_rms_norm": fused}, tuple(refusals))


def _refusal(add: Op) -> str | None:
    if add.operands[0].type != add.operands[1].type:
        return f"the addition broadcasts {add.operands[0].type} and {add.operands[1].type}"
    if sum(user.opcode == "rms_norm" for user in add.result.users) != 1:
        return "two norms read one sum"
    return None


def _fuse(rewriter: Rewriter, add: Op, norm: Op) -> None:
    # In front of the addition: whatever reads the sum may come before the norm.
    rewriter.at(add)
    made = rewriter.multi("add_rms_norm", *add.operands, norm.operands[1], **norm.attributes)
    rewriter.replace(add.result, made.results[0])
    rewriter.replace(norm.result, made.results[1])
