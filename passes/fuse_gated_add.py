"""Fuses the gated additions of layers that attend to pictures into `gated_add`.

Before: `add(x, mul(select(%stop <= %start, 0, %made), tanh(cast @gate)))`
After:  `gated_add %made, %x, @gate, %start, %stop`

The term of the attention has no such select: it is a product of zeros in rows that see nothing, so the ranges of its
`cross_attention` are taken. Must not fire when the gate is not one number.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node, Optional, Scalar, match
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

from .fuse_cross_attention import NOTHING, are_ranges

_GATE = Optional("reshape", Node("tanh", Optional("cast", AnyWeight("gate"))))
PATTERN = Node("add", Any("x"), Node("mul", Any("term"), _GATE))
_SEEN = Node("select", NOTHING, Scalar("nothing", 0.0), Any("made"))
_PRODUCT = Node("linear", Node("reshape", Node("transpose", Any("mixed"))), AnyWeight("weight"))


def _parts(found: Match) -> tuple[Value, tuple[Value, ...]]:
    """What is added, and the ranges of the rows that it is added to; no ranges: to all."""
    term = found["term"]
    if term.producer is None:
        return term, ()
    seen = match(_SEEN, term.producer)
    if seen is not None and are_ranges(seen, term.tensor.shape[0]):
        return seen["made"], (seen["start"], seen["stop"])
    product = match(_PRODUCT, term.producer)
    attention = product["mixed"].producer if product is not None else None
    if attention is not None and attention.opcode == "cross_attention":
        return term, attention.operands[3:]
    return term, ()


def _check(found: Match) -> str | None:
    if found["gate"].tensor.shape != (1,):
        return f"the gate {found['gate'].type} is not one number"
    x, term = found["x"].tensor, found["term"].tensor
    if x.rank != 2 or term != x:
        return f"{x} and {term} are not rows of one width"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    made, ranges = _parts(found)
    return rewriter.op("gated_add", made, found["x"], found["gate"], *ranges)


RULES = (Rule("gated_add", PATTERN, _rewrite, _check, near=2),)


@dataclass(frozen=True)
class FuseGatedAdd(Pass):
    """x + tanh(gate) * term -> gated_add."""

    name = "fuse-gated-add"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
