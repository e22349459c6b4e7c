"""Fuses the arithmetic of GELU, in its exact form, into `gelu`.

Before: `cast(mul(mul(cast x, 0.5), add(erf(mul(cast x, 0.7071...)), 1)))`
After:  `gelu x`

Must not fire for other constants, or when the result has another dtype than x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Scalar
from llamac.transform.rewriter import Rewriter, Rule, apply_in_turn

_ERROR = Node("erf", Node("mul", Any("wide"), Scalar("inverse_root")))
_HALF = Node("mul", Any("wide"), Scalar("half", 0.5))
PATTERN = Node("mul", _HALF, Node("add", _ERROR, Scalar("one", 1.0)))
NARROWED = Node("cast", PATTERN)


def _check(found: Match) -> str | None:
    number = found.number("inverse_root")
    if not math.isclose(number, math.sqrt(0.5), rel_tol=1e-7):
        return f"the argument of erf is scaled by {number}, not by 1 / sqrt(2)"
    return None


def _narrow(found: Match) -> Value | None:
    """What was widened to f32, when the result is cast back to its dtype."""
    op = found["wide"].producer
    is_cast = op is not None and op.opcode == "cast" and op.operands[0].type == found.root.result.type
    return op.operands[0] if op is not None and is_cast else None


def _check_narrowed(found: Match) -> str | None:
    return _check(found) or (None if _narrow(found) else f"the result {found.root.result.type} is not of x's dtype")


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    return rewriter.op("gelu", found["wide"])


def _rewrite_narrowed(found: Match, rewriter: Rewriter) -> Value:
    x = _narrow(found)
    assert x is not None
    return rewriter.op("gelu", x)


_EXACT = 99
"""Deeper than any pattern: a near match of the form with a cast is one of the form without, which reports it."""

RULES = (
    Rule("gelu", NARROWED, _rewrite_narrowed, _check_narrowed, near=_EXACT),
    Rule("gelu", PATTERN, _rewrite, _check, near=2),
)


@dataclass(frozen=True)
class FuseGelu(Pass):
    """x * (1 + erf(x / sqrt(2))) / 2 -> gelu."""

    name = "fuse-gelu"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        # The form with a cast first: the other is inside it.
        return PassResult(*apply_in_turn(module, RULES))
