"""Folds the rotary convention into the weights: interleaved pairs become half-split ones by reordering rows of q and k.

Before: `%q = linear %x, @q`, ..., `rope %h, %cos, %sin {style = "interleaved"}`
After:  `%q = linear %x, @q.half_split`, ..., `rope %h, %cos, %sin {style = "half_split"}`

Attention scores do not change, because q and k of one attention are permuted alike within each head; the keys handed
from step to step are in the new order, and a norm of the heads in between sees no order. Quantized weights are
reordered as they are. Must not fire unless both rotated values come straight from projections and nothing but that
attention, and the keys it hands on, uses them.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.levels import MODEL, RAISING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.pattern import Any, AnyWeight, Match, Node, match
from llamac.transform.rewriter import Rewriter
from llamac.transform.weight_rows import over_rows

_PROJECTED = Node("linear", Any("x"), AnyWeight("weight"), name="flat")
_HEADS = Node("transpose", Node("reshape", _PROJECTED, name="split"), name="heads")
PATTERN = Node("rope", _HEADS, Any("cos"), Any("sin"))


@dataclass(frozen=True)
class FoldRope(Pass):
    """Interleaved rope -> half-split rope on permuted projections."""

    name = "fold-rope"
    requires = (MODEL, RAISING)

    def run(self, module: Module, context: PassContext) -> PassResult:
        folded, refusals = 0, []
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            left = {op for op in graph.ops if _is_interleaved(op)}
            for attention in [op for op in graph.ops if op.opcode == "attention"]:
                rotated = [_behind_norm(graph, _behind_past(v)) for v in attention.operands[:2]]
                ropes = [v.producer for v in rotated]
                if not left.intersection(ropes):
                    continue
                left.difference_update(ropes)
                shared = any(_is_shared(graph, *pair) for pair in zip(attention.operands, rotated, strict=False))
                reason = "q or k, or its past, has another use" if shared else _fold(rewriter, ropes)
                folded += 2 if reason is None else 0
                refusals += [] if reason is None else [Refusal(attention.location, reason)]
            rewriter.finish()
            alone = [op for op in graph.ops if op in left]
            refusals += [Refusal(op.location, "rotates neither q nor k of an attention") for op in alone]
        return PassResult({"half_split": folded}, tuple(refusals))


def _is_interleaved(op: Op | None) -> bool:
    return op is not None and op.opcode == "rope" and op.attributes["style"] == "interleaved"


def _behind_past(value: Value) -> Value:
    """What is joined to the past of q or k, or the value itself when it has none."""
    op = value.producer
    return op.operands[1] if op is not None and op.opcode == "concat" and len(op.operands) == 2 else value


def _behind_norm(graph: Graph, value: Value) -> Value:
    """What is normed head by head, which no order within a head changes; or the value itself."""
    op = value.producer
    alone = sum(value.users.values()) == 1 and value not in graph.outputs
    return op.operands[0] if op is not None and op.opcode == "unit_rms_norm" and alone else value


def _is_shared(graph: Graph, operand: Value, rotated: Value) -> bool:
    """Whether anything but one attention, and the state it hands on, sees the order of the rotated elements."""
    if sum(rotated.users.values()) != 1 or rotated in graph.outputs:
        return True
    joined = operand.producer
    if operand is rotated or joined is None or joined.opcode != "concat":
        return False
    past = joined.operands[0]
    return sum(operand.users.values()) != 1 or past not in graph.arguments or sum(past.users.values()) != 1


def _fold(rewriter: Rewriter, ropes: list[Op | None]) -> str | None:
    """Fold q's and k's rotation, both or none; returns the reason for none."""
    matches = []
    for role, rope in zip("qk", ropes, strict=True):
        if rope is None or not _is_interleaved(rope):
            return f"{role} is not rotated in interleaved pairs"
        found = match(PATTERN, rope)
        if found is None:
            return f"{role} does not come straight from a projection"
        if found.op("heads").attributes["permutation"] != (1, 0, 2):
            return f"the projection of {role} is not split into [T, heads, head_dim]"
        values = (found[name] for name in ("flat", "split", "heads"))
        if any(len(v.users) != 1 or v in rewriter.graph.outputs for v in values):
            return f"the projection of {role} is also used without rotation"
        matches.append(found)
    for found in matches:
        rewriter.at(found.root)
        rewriter.replace(found.root.result, _half_split(rewriter, found))
    return None


def _half_split(rewriter: Rewriter, found: Match) -> Value:
    h = found.root.result.tensor.shape[-1]
    assert isinstance(h, int) and isinstance(found["weight"], Weight)
    name = f"{found['weight'].name}.half_split"
    weight = over_rows(rewriter.module, name, "rows_to_half_split", [found["weight"]], head_dim=h)
    flat = rewriter.op("linear", found["x"], weight)
    split = rewriter.op("reshape", flat, shape=found["split"].tensor.shape)
    heads = rewriter.op("transpose", split, permutation=(1, 0, 2))
    return rewriter.op("rope", heads, found["cos"], found["sin"], style="half_split")
