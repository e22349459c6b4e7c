"""Fuses the attention temperature of layers without rotation into `temper`.

Before: `mul(q, reshape(add(mul(log1p(floor(div(add(cast positions, 1), floor))), scale), 1)))`
After:  `temper q, positions {floor, scale}`

Must not fire when the factor does not vary along the tokens of q [heads, T, head_dim] alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dtypes import I32
from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.ir.types import tensor
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Scalar
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

_BLOCKS = Node("floor", Node("div", Node("add", Node("cast", Any("positions")), Scalar("one", 1.0)), Scalar("floor")))
_FACTOR = Node("add", Node("mul", Node("log1p", _BLOCKS), Scalar("scale")), Scalar("rest", 1.0))
PATTERN = Node("mul", Any("q"), Node("reshape", _FACTOR, name="factor"))


def _check(found: Match) -> str | None:
    q, positions, factor = (found[name].tensor for name in ("q", "positions", "factor"))
    if q.rank != 3 or factor.shape != (1, q.shape[1], 1):
        return f"the factor {factor} does not vary along the tokens of q {q} alone"
    if positions != tensor(q.shape[1], I32):
        return f"{positions} are not the positions of {q}"
    if not found.number("floor") > 0:
        return "the positions are not divided by a positive number"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    floor, scale = found.number("floor"), found.number("scale")
    return rewriter.op("temper", found["q"], found["positions"], floor=floor, scale=scale)


RULES = (Rule("temper", PATTERN, _rewrite, _check, near=3),)


@dataclass(frozen=True)
class FuseTemperature(Pass):
    """Textbook attention temperature -> temper."""

    name = "fuse-temperature"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
