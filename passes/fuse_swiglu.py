"""Fuses the gated activation into `swiglu`.

Before: `mul(mul(g, sigmoid(g)), u)`
After:  `swiglu g, u`

Must not fire when the sigmoid is of another value than g.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

PATTERN = Node("mul", Node("mul", Any("gate"), Node("sigmoid", Any("gate"))), Any("up"))


def _check(found: Match) -> str | None:
    if found["gate"].type != found["up"].type:
        return f"gate {found['gate'].type} and up {found['up'].type} differ"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    return rewriter.op("swiglu", found["gate"], found["up"])


RULES = (Rule("swiglu", PATTERN, _rewrite, _check, near=3),)


@dataclass(frozen=True)
class FuseSwiglu(Pass):
    """gate * sigmoid(gate) * up -> swiglu."""

    name = "fuse-swiglu"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
