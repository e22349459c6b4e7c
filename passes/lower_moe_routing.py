"""Routes tokens to their experts: from every expert on every token to each expert on the tokens that chose it.

Before: `%y = moe %x, %logits, @gate, @up, @down {top_k}`, `%z = add %shared, %y`
After:  `%order, %place, %scores, %offsets = route %logits {top_k}`, `%r = gather_routed %x, %order, %scores`,
        `%g = expert_linear %r, @gate, %offsets`, `%u = expert_linear %r, @up, %offsets`, `%a = swiglu %g, %u`,
        `%d = expert_linear %a, @down, %offsets`, `%z = scatter_routed %d, %place, %shared`

No shape depends on data: there are T * top_k routed rows whatever the tokens choose, and offsets are values. The score
goes on the input of the expert, as it stood. Must not fire on a mixture that nothing is added to (there is always a
shared expert in the family), as the sum has to start from something.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Graph, Module, Op, Value
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter


@dataclass(frozen=True)
class LowerMoeRouting(Pass):
    """moe -> route, gather, one grouped product per projection, scatter."""

    name = "lower-moe-routing"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        routed, refusals = 0, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "moe"]:
                add = _addition(graph, op)
                if add is None:
                    refusals.append(Refusal(op.location, "its result is not added to one other value"))
                    continue
                _route(rewriter, op, add)
                routed += 1
            rewriter.finish()
        return PassResult({"moe": routed}, tuple(refusals))


def _addition(graph: Graph, moe: Op) -> Op | None:
    """The one addition that uses the mixture."""
    users = [user for user in moe.result.users if user.opcode == "add"]
    alone = len(users) == 1 and sum(moe.result.users.values()) == 1 and moe.result not in graph.outputs
    return users[0] if alone and all(v.type == moe.result.type for v in users[0].operands) else None


def _route(rewriter: Rewriter, moe: Op, add: Op) -> None:
    x, logits, gate, up, down = moe.operands
    top_k = moe.attributes["top_k"]
    base = next(v for v in add.operands if v is not moe.result)
    rewriter.at(add, moe.location)
    order, place, scores, offsets = rewriter.multi("route", logits, top_k=top_k).results
    rows = rewriter.op("gather_routed", x, order, scores, top_k=top_k)
    inner = rewriter.op("swiglu", *(_product(rewriter, rows, w, offsets) for w in (gate, up)))
    answers = _product(rewriter, inner, down, offsets)
    rewriter.replace(add.result, rewriter.op("scatter_routed", answers, place, base, top_k=top_k))


def _product(rewriter: Rewriter, x: Value, weight: Value, offsets: Value) -> Value:
    return rewriter.op("expert_linear", x, weight, offsets)
