"""Puts what stands around the attention to vision tokens inside it: the norm of q before, the gate behind.

Before: `%a = attend_range norm_heads(%q, @norm), %cache, %start, %stop, ...`,
        `%z = gated_add linear_rows16(%a, @o), %x, @gate, %start, %stop`
After:  `%a = attend_vision_rows %q, @norm, %cache, %start, %stop, ..., @gate`, `%z = linear_rows16 %a, @o, %x`

tanh(gate) is a number, so the product of scaled rows is the scaled product; rows that see nothing are zeros already,
and their product adds nothing. Must not fire where the ranges of the two differ, or when the product has another use.
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
class FuseVisionRows(Pass):
    """attend_range with its norm and gate -> attend_vision_rows, and a product with a residual."""

    name = "fuse-vision-rows"
    requires = (LOWERING,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        fused, refusals = 0, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "attend_range"]:
                reason = _fuse(rewriter, op)
                if reason is None:
                    fused += 1
                else:
                    refusals.append(Refusal(op.location, reason))
            rewriter.finish()
        return PassResult({"attend": fused}, tuple(refusals))


def _fuse(rewriter: Rewriter, op: Op) -> str | None:
    """Fuse, or give the reason not to."""
    q, cache, start, stop, *rows = op.operands
    norm, product = q.producer, _only_user(op)
    if norm is None or norm.opcode != "norm_heads" or len(norm.operands) != 2 or sum(q.users.values()) != 1:
        return "q is not normed head by head for it alone"
    if norm.attributes["heads"] != op.attributes["heads"]:
        return "some heads of q are not normed"
    if product is None or product.opcode != "linear_rows16" or product.attributes["operands"] != "x weight":
        return "something else than one product reads it"
    add = _only_user(product)
    if add is None or add.opcode != "gated_add" or add.operands[0] is not product.result:
        return "the product is not added by a gate"
    if op.result in rewriter.graph.outputs or product.result in rewriter.graph.outputs:
        return "the rows are handed out"
    _, residual, gate, *ranges = add.operands
    if ranges != [start, stop]:
        return "the gate's ranges are not those that the rows see"
    rewriter.at(op)
    attended = rewriter.op(
        "attend_vision_rows", norm.operands[0], norm.operands[1], cache, start, stop, *rows, gate, **op.attributes,
        eps=norm.attributes["eps"], dtype=between_type(format_of(str(product.attributes["format"]))),
    )  # fmt: skip
    rewriter.at(add)
    attributes = {**product.attributes, "operands": "x weight residual"}
    made = rewriter.op("linear_rows16", attended, product.operands[1], residual, **attributes)
    rewriter.replace(add.result, made)
    return None


def _only_user(op: Op) -> Op | None:
    users = op.result.users
    return next(iter(users)) if sum(users.values()) == 1 else None
