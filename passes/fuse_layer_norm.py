"""Fuses the arithmetic of layer normalization into `layer_norm`.

Before: `%c = sub(x, reduce_mean x)`, `cast(add(mul(mul(%c, rsqrt(add(reduce_mean(mul(%c, %c)), eps))), @w), @b))`
After:  `layer_norm x, @w, @b {eps}`

x is what was widened to f32 for the norm, when the result has its dtype again. It must run before fuse-rms-norm, which
takes the inner part for a norm of its own. Must not fire when a mean is over another axis than the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.ir.ops.shapes import element_count
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node, Optional, Scalar
from llamac.transform.rewriter import Rewriter, Rule, apply_in_turn

_CENTERED = Node("sub", Any("wide"), Node("reduce_mean", Any("wide"), name="mean"), name="centered")
_VARIANCE = Node("reduce_mean", Node("mul", _CENTERED, _CENTERED), name="variance")
_NORMAL = Node("mul", _CENTERED, Node("rsqrt", Node("add", _VARIANCE, Scalar("eps"))))
_SCALED = Node("mul", _NORMAL, Optional("cast", Optional("cast", AnyWeight("weight"))))
PATTERN = Node("add", _SCALED, Optional("cast", Optional("cast", AnyWeight("bias"))))
NARROWED = Node("cast", PATTERN)


def _narrow(found: Match) -> Value | None:
    """What was widened to f32 for the norm, when the result is cast back to its dtype."""
    op = found["wide"].producer
    is_cast = op is not None and op.opcode == "cast" and op.operands[0].type == found.root.result.type
    return op.operands[0] if op is not None and is_cast else None


def _check(found: Match) -> str | None:
    x = found["wide"].tensor
    if any(found.op(name).attributes["axis"] not in (-1, x.rank - 1) for name in ("mean", "variance")):
        return "a mean is not over the last axis"
    if any(found[name].tensor.shape != x.shape[-1:] for name in ("weight", "bias")):
        return "weight and bias do not fit the last axis"
    return None


def _check_narrowed(found: Match) -> str | None:
    return _check(found) or (None if _narrow(found) else f"the result {found.root.result.type} is not of x's dtype")


def _norm(found: Match, rewriter: Rewriter, x: Value) -> Value:
    """The norm of x, on rows where x has several leading axes."""
    *leading, width = x.tensor.shape
    rows = element_count(leading)
    flat = x if len(leading) < 2 else rewriter.op("reshape", x, shape=(rows, width))
    made = rewriter.op("layer_norm", flat, found["weight"], found["bias"], eps=found.number("eps"))
    return made if flat is x else rewriter.op("reshape", made, shape=x.tensor.shape)


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    return _norm(found, rewriter, found["wide"])


def _rewrite_narrowed(found: Match, rewriter: Rewriter) -> Value:
    x = _narrow(found)
    assert x is not None
    return _norm(found, rewriter, x)


_EXACT = 99
"""Deeper than any pattern: a near match of the form with a cast is one of the form without, which reports it."""

RULES = (
    Rule("layer_norm", NARROWED, _rewrite_narrowed, _check_narrowed, near=_EXACT),
    Rule("layer_norm", PATTERN, _rewrite, _check, near=3),
)


@dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Textbook layer normalization -> layer_norm."""

    name = "fuse-layer-norm"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        # The form with a cast first: the other is inside it.
        return PassResult(*apply_in_turn(module, RULES))
