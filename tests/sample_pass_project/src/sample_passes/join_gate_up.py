"""Joins the gate and up projections of an MLP: llamac's own fusion, written outside of it.

Before: `%g = linear %x, @gate`, `%u = linear %x, @up`, `swiglu %g, %u`
After:  `@gate.up = concat @gate, @up {axis = 0}`, `%y = linear %x, @gate.up`, `swiglu %y`

Must not fire when the two weights are stored differently, or when a product is used elsewhere.
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
    Node("linear", Any("x"), AnyWeight("gate"), name="gated"),
    Node("linear", Any("x"), AnyWeight("up"), name="raised"),
)


def check(found: Match) -> str | None:
    """Why this MLP is left alone, or None."""
    if scheme_of(found["gate"]) != scheme_of(found["up"]):
        return "gate and up are stored differently"
    if any(len(found[name].users) != 1 for name in ("gated", "raised")):
        return "a product is used elsewhere"
    return None


def join(found: Match, rewriter: Rewriter) -> Value:
    """One product, its columns gate then up."""
    name = f"{found.root.location}.gate.up"
    weight = over_rows(rewriter.module, name, "concat", [found["gate"], found["up"]], axis=0)
    return rewriter.op("swiglu", rewriter.op("linear", found["x"], weight))


RULES = (Rule("gate_up", PATTERN, join, check, near=1),)


@dataclass(frozen=True)
class JoinGateUp(Pass):
    """Gate and up projections of one input -> one product."""

    name = "join-gate-up"
    requires = (MODEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        """Apply the rule everywhere."""
        return PassResult(*apply_rules(module, RULES))
