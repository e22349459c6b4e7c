"""Fuses rotation by fixed angles, as image encoders have it for the column and row of a patch, into `rope`.

Before: `reshape(concat(sub(mul(e, C), mul(o, S)), add(mul(o, C), mul(e, S))))`, e and o the pairs of x, C and S the
        cosines and sines of a matrix of constants
After:  `%cos, %sin = cos_sin %angles`, `rope x, %cos, %sin {style = "interleaved"}`, then the casts of x back

Must not fire when the pairs or the tables are not exactly those of x, nor on angles that depend on an input.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dims import Dim
from llamac.ir.dtypes import F32
from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.ir.types import tensor
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Optional, Pattern
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

_COS = Node("reshape", Node("cos", Any("angles"), name="cosines"), name="cos_table")
_SIN = Node("reshape", Node("sin", Any("angles")), name="sin_table")


def _pattern() -> Pattern:
    pairs = Node("reshape", Any("x"), name="pairs")
    even, odd = Node("slice", pairs, name="first"), Node("slice", pairs, name="second")
    new_even = Node("sub", Node("mul", even, _COS), Node("mul", odd, _SIN))
    new_odd = Node("add", Node("mul", odd, _COS), Node("mul", even, _SIN))
    return Node("reshape", Optional("cast", Node("concat", new_even, new_odd, name="turned")))


def _check(found: Match) -> str | None:
    x, angles = found["x"].tensor, found["angles"].tensor
    if x.rank != 3 or not isinstance(x.shape[2], int) or x.shape[2] % 2:
        return f"x {x} is not [heads, tokens, head_dim]"
    _, tokens, h = x.shape
    assert isinstance(h, int)
    if isinstance(tokens, Dim) or angles != tensor(tokens, h // 2, F32):
        return f"the angles {angles} are not fixed ones, f32 [tokens, head_dim / 2]"
    if found["pairs"].tensor.shape != (*x.shape[:2], h // 2, 2) or found.root.result.tensor.shape != x.shape:
        return "x is not reshaped to pairs and back"
    halves = [(found.op(n).attributes["start"], found.op(n).attributes["stop"]) for n in ("first", "second")]
    if halves != [(0, 1), (1, 2)] or any(found.op(n).attributes["axis"] not in (-1, 3) for n in _SLICED):
        return "the slices are not the two elements of a pair"
    if any(found[name].tensor.shape != (1, tokens, h // 2, 1) for name in ("cos_table", "sin_table")):
        return "the tables do not turn token t of every head by the angles of token t"
    return None


_SLICED = ("first", "second", "turned")


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    rewriter.at(found.root, found.op("cosines").location)
    tables = rewriter.multi("cos_sin", found["angles"])
    rewriter.at(found.root)
    result = rewriter.op("rope", found["x"], *tables.results, style="interleaved")
    dtype = found.root.result.tensor.dtype
    return result if result.tensor.dtype is dtype else rewriter.op("cast", result, dtype=dtype)


RULES = (Rule("rope", _pattern(), _rewrite, _check, near=4),)


@dataclass(frozen=True)
class FuseFixedRope(Pass):
    """Rotation of adjacent pairs by fixed angles -> cos_sin and rope."""

    name = "fuse-fixed-rope"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
