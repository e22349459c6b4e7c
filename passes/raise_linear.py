"""Raises a product with a transposed weight to `linear`.

Before: `%t = transpose @w {permutation = [1, 0]}`, `%y = matmul %x, %t`
After:  `%y = linear %x, @w`

A cast of the weight disappears: `linear` reads what is stored, so a checkpoint that stores more than its working dtype
keeps it. Must not fire when the second operand is an activation, or when the weight holds integers.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node, Optional
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

PATTERN = Node("matmul", Any("x"), Node("transpose", Optional("cast", AnyWeight("weight")), name="transposed"))


def _check(found: Match) -> str | None:
    weight, x = found["weight"].tensor, found["x"].tensor
    if found.op("transposed").attributes["permutation"] != (1, 0):
        return "the weight is not transposed as a matrix"
    if x.rank != 2:
        return f"x has rank {x.rank}"
    if not weight.dtype.is_float:
        return f"the weight holds {weight.dtype}"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    return rewriter.op("linear", found["x"], found["weight"])


RULES = (Rule("linear", PATTERN, _rewrite, _check),)


@dataclass(frozen=True)
class RaiseLinear(Pass):
    """matmul with a transposed weight -> linear."""

    name = "raise-linear"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
