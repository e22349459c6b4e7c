"""Fuses the arithmetic of RMS normalization into `rms_norm`.

Before: `mul(cast(mul(cast x, rsqrt(add(reduce_mean(mul(cast x, cast x)), eps)))), @w)`
After:  `rms_norm x, @w {eps}`, or `unit_rms_norm x {eps}` where no weight follows (the norm of q and k in Llama 4)

Must not fire when the mean is over another axis than the last, or when the result has another dtype than x.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node, Optional, Scalar
from llamac.transform.rewriter import Rewriter, Rule, apply_in_turn

_MEAN = Node("reduce_mean", Node("mul", Any("wide"), Any("wide")), name="mean")
_NORMAL = Node("mul", Any("wide"), Node("rsqrt", Node("add", _MEAN, Scalar("eps"))))
PATTERN = Node("mul", Optional("cast", _NORMAL), Optional("cast", AnyWeight("weight")))


def _input(found: Match) -> Value:
    """x itself: the value before it was widened for the norm, which gives back x's own dtype.

    A cast to another dtype is not the norm's: the table of an f32 model may be stored narrower than it computes.
    """
    wide = found["wide"]
    if wide.producer is not None and wide.producer.opcode == "cast":
        before = wide.producer.operands[0]
        return before if before.type == found.root.result.type else wide
    return wide


def _check(found: Match) -> str | None:
    rank, weight = found["wide"].tensor.rank, found["weight"].tensor
    if found.op("mean").attributes["axis"] not in (-1, rank - 1):
        return "the mean is not over the last axis"
    if _input(found).type != found.root.result.type:
        return f"the result {found.root.result.type} differs from the input {_input(found).type}"
    if weight.shape != found["wide"].tensor.shape[-1:]:
        return f"the weight {weight} does not scale the last axis"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    return rewriter.op("rms_norm", _input(found), found["weight"], eps=found.number("eps"))


def _check_unit(found: Match) -> str | None:
    if found.op("mean").attributes["axis"] not in (-1, found["wide"].tensor.rank - 1):
        return "the mean is not over the last axis"
    return None


def _rewrite_unit(found: Match, rewriter: Rewriter) -> Value:
    return rewriter.op("unit_rms_norm", found["wide"], eps=found.number("eps"))


_EXACT = 99
"""Deeper than any pattern: what is nearly a norm without weight is nearly one with, which reports it."""

RULES = (
    Rule("rms_norm", PATTERN, _rewrite, _check, near=3),
    Rule("unit_rms_norm", _NORMAL, _rewrite_unit, _check_unit, near=_EXACT),
)


@dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """Textbook RMS normalization -> rms_norm and unit_rms_norm."""

    name = "fuse-rms-norm"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        # The weighted form first: the other is inside it.
        return PassResult(*apply_in_turn(module, RULES))
