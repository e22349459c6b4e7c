"""Folds the rotary convention into the weights: interleaved pairs become half-split ones by reordering rows of q and k.

Before: `%q = linear %x, @q`, ..., `rope %h, %cos, %sin {style = "interleaved"}`
After:  `%q = linear %x, @q.half_split`, ..., `rope %h, %cos, %sin {style = "half_split"}`

Attention scores do not change: q and k are permuted alike within each head. Quantized weights are reordered as they are.
Must not fire unless the rotated value comes straight from a projection that nothing else uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Value, Weight
from llamac.ir.levels import MODEL, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node
from llamac.transform.rewriter import Rewriter, Rule, apply_rules
from llamac.transform.weight_rows import over_rows

_PROJECTED = Node("linear", Any("x"), AnyWeight("weight"), name="flat")
_HEADS = Node("transpose", Node("reshape", _PROJECTED, name="split"), name="heads")
PATTERN = Node("rope", _HEADS, Any("cos"), Any("sin"))


def _check(found: Match) -> str | None:
    if found.root.attributes["style"] != "interleaved":
        return "already half-split"
    if found.op("heads").attributes["permutation"] != (1, 0, 2):
        return "the projection is not split into [T, heads, head_dim]"
    if any(len(found[name].users) != 1 for name in ("flat", "split", "heads")):
        return "the projection is also used without rotation"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    h = found.root.result.tensor.shape[-1]
    assert isinstance(h, int) and isinstance(found["weight"], Weight)
    name = f"{found['weight'].name}.half_split"
    weight = over_rows(rewriter.module, name, "rows_to_half_split", [found["weight"]], head_dim=h)
    flat = rewriter.op("linear", found["x"], weight)
    split = rewriter.op("reshape", flat, shape=found["split"].tensor.shape)
    heads = rewriter.op("transpose", split, permutation=(1, 0, 2))
    return rewriter.op("rope", heads, found["cos"], found["sin"], style="half_split")


RULES = (Rule("half_split", PATTERN, _rewrite, _check),)


@dataclass(frozen=True)
class FoldRope(Pass):
    """Interleaved rope -> half-split rope on permuted projections."""

    name = "fold-rope"
    requires = (MODEL, RAISING)

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
