"""Folds the interleaving of values into the weight that they are multiplied with.

Before: `%i = reshape(concat(%a [r, w, 1], %b [r, w, 1]))`, `linear (concat %x, %i), @w`
After:  `linear (concat %x, %a, %b), @w.by_part`, whose columns are in the new order

So the parts can be written side by side in place. Must not fire when anything else reads the interleaved values, or
when the weight is quantized.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.pattern import Any, Match, Node, match
from llamac.transform.rewriter import Rewriter

_JOINED = Node("concat", Any("x"), Node("reshape", Any("parts"), name="mixed"), name="joined")


@dataclass(frozen=True)
class FoldInterleave(Pass):
    """linear of interleaved values -> linear of the values side by side."""

    name = "fold-interleave"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        folded, refusals = 0, list[Refusal]()
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "linear"]:
                joined = op.operands[0].producer
                found = match(_JOINED, joined) if joined is not None else None
                if found is None or not _is_interleaved(found):
                    continue
                reason = _why_not(graph, op, found)
                refusals += [Refusal(op.location, reason)] if reason else []
                if reason is None:
                    _fold(rewriter, op, found)
                    folded += 1
            rewriter.finish()
        return PassResult({"interleave": folded}, tuple(refusals))


def _is_interleaved(found: Match) -> bool:
    """Whether the second part is values [rows, w] alternating, reshaped from their concat [rows, w, parts]."""
    parts, mixed = found["parts"], found["mixed"].tensor.shape
    op = parts.producer
    if op is None or op.opcode != "concat" or parts.tensor.rank != 3 or len(mixed) != 2:
        return False
    is_last = op.attributes["axis"] in (-1, 2) and found.root.attributes["axis"] in (-1, 1)
    return is_last and mixed[0] == parts.tensor.shape[0] and all(v.tensor.shape[2] == 1 for v in op.operands)


def _why_not(graph: Graph, op: Op, found: Match) -> str | None:
    weight = op.operands[1]
    if not isinstance(weight, Weight) or (weight.producer is not None and weight.producer.opcode == "dequantize"):
        return f"the columns of {weight!r} cannot be reordered: it is quantized"
    inside = [found[name] for name in ("joined", "mixed")]
    if any(sum(value.users.values()) != 1 or value in graph.outputs for value in inside):
        return "the interleaved values have another use"
    return None


def _fold(rewriter: Rewriter, op: Op, found: Match) -> None:
    parts = found.op("parts").operands
    first, weight = found["x"].tensor.shape[1], op.operands[1]
    assert isinstance(first, int)
    rewriter.at(op)
    flat: list[Value] = [rewriter.op("reshape", v, shape=v.tensor.shape[:2]) for v in parts]
    joined = rewriter.op("concat", found["x"], *flat, axis=1)
    ordered = rewriter.weight(f"{weight.name}.by_part", "columns_to_parts", weight, first=first, parts=len(parts))
    rewriter.replace(op.result, rewriter.op("linear", joined, ordered))
