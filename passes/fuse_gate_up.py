"""Joins the gate and up projections of an MLP into one.

Before: `%g = linear %x, @gate`, `%u = linear %x, @up`, `swiglu %g, %u`
After:  `%y = linear %x, @gate_up`, `swiglu %y`

Must not fire when the two weights are stored by different schemes, or when gate or up has another use.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node
from llamac.transform.rewriter import Rewriter, Rule, apply_rules
from llamac.transform.weight_rows import over_rows, scheme_of

PATTERN = Node(
    "swiglu",
    Node("linear", Any("x"), AnyWeight("gate"), name="g"),
    Node("linear", Any("x"), AnyWeight("up"), name="u"),
)


def _check(found: Match) -> str | None:
    if scheme_of(found["gate"]) != scheme_of(found["up"]):
        return "mixed schemes: gate and up are stored differently"
    if len(found["g"].users) != 1 or len(found["u"].users) != 1 or found["g"] is found["u"]:
        return "gate or up has another use"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    name = f"{found.root.location}.gate_up"
    joined = over_rows(rewriter.module, name, "concat", [found["gate"], found["up"]], axis=0)
    return rewriter.op("swiglu", rewriter.op("linear", found["x"], joined))


RULES = (Rule("gate_up", PATTERN, _rewrite, _check, near=1),)


@dataclass(frozen=True)
class FuseGateUp(Pass):
    """Gate and up projections of one input -> one."""

    name = "fuse-gate-up"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
