"""Raises the textbook mixture of experts, every expert on every token, to `moe`.

Before: `%s = sigmoid(add(%l, select(top_k_mask(%l), 0, -inf)))`, `%z = mul(reshape %x, reshape(transpose %s))`,
        `reshape(reduce_sum(matmul(swiglu(matmul(%z, @gate'), matmul(%z, @up')), @down')))`, @w' each expert transposed
After:  `moe %x, %l, @gate, @up, @down {top_k}`

The score multiplies the *input* of an expert: behind the gated activation it would mean something else. Must not fire
for scores by softmax, for a score on the output, or when the scores are of other logits than the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dims import DimLike
from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node, Optional, Pattern, Scalar
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

_MASK = Node("top_k_mask", Any("logits"), name="mask")
_HIDING = Node("select", _MASK, Scalar("shown", 0.0), Scalar("hidden", float("-inf")))
_KEPT = Node("add", Any("logits"), _HIDING)
_SCORES = Optional("cast", Node("sigmoid", Optional("cast", _KEPT)))
_PER_EXPERT = Node("reshape", Node("transpose", _SCORES, name="turned"), name="score")
_SCALED = Node("mul", Node("reshape", Any("x"), name="rows"), _PER_EXPERT, name="scaled")
STACKS = ("gate", "up", "down")


def _each_expert(x: Pattern, name: str) -> Pattern:
    stack = Node("reshape", Optional("cast", AnyWeight(name)), name=f"{name}_stack")
    return Node("matmul", x, Node("transpose", stack, name=f"{name}_turned"))


_INNER = Node("swiglu", _each_expert(_SCALED, "gate"), _each_expert(_SCALED, "up"))
_SUM = Node("reduce_sum", _each_expert(_INNER, "down"), name="sum")
PATTERN = Node("reshape", _SUM)


def _check(found: Match) -> str | None:
    x, logits = found["x"].tensor, found["logits"].tensor
    if x.rank != 2 or logits.rank != 2 or logits.shape[0] != x.shape[0]:
        return f"x {x} and the logits {logits} are not those of the same tokens"
    tokens, experts = logits.shape
    if found["rows"].tensor.shape != (1, *x.shape) or found["score"].tensor.shape != (experts, tokens, 1):
        return "the scores do not scale the input of each expert"
    if found.op("turned").attributes["permutation"] != (1, 0):
        return "the scores are not transposed to experts first"
    if found.op("sum").attributes["axis"] not in (0, -3) or found.root.result.type != x:
        return "the answers are not added over the experts"
    for name in STACKS:
        if reason := _check_stack(found, name, experts):
            return reason
    return None


def _check_stack(found: Match, name: str, experts: DimLike) -> str | None:
    weight, stack = found[name].tensor, found[f"{name}_stack"].tensor
    if weight.rank != 2 or not weight.dtype.is_float:
        return f"the {name} weight {weight} is no float matrix"
    if stack.rank != 3 or stack.shape[0] != experts or stack.shape[2] != weight.shape[1]:
        return f"the {name} weight {weight} is not one matrix per expert"
    if found.op(f"{name}_turned").attributes["permutation"] != (0, 2, 1):
        return f"the {name} matrices are not transposed"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    top_k = found.op("mask").attributes["top_k"]
    return rewriter.op("moe", found["x"], found["logits"], *(found[name] for name in STACKS), top_k=top_k)


RULES = (Rule("moe", PATTERN, _rewrite, _check, near=2),)


@dataclass(frozen=True)
class RaiseMoe(Pass):
    """Textbook mixture of experts -> moe."""

    name = "raise-moe"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
