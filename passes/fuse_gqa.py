"""Fuses masked attention over repeated KV heads into `attention`, which shares each KV head instead of copying it.

Before: `matmul(cast(softmax(cast(add(mul(matmul(q, transpose(repeat k)), scale), mask)))), repeat v)`
After:  `attention q, k, v, positions {scale}`

`repeat` is reshape-broadcast-reshape, or nothing when every query head has its own KV head. Must not fire for another
mask than the causal one, or when k and v are repeated differently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Optional, Scalar, match
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

_SCORES = Node("matmul", Any("q"), Node("transpose", Any("keys"), name="turned"))
_MASKED = Node("add", Node("mul", _SCORES, Scalar("scale")), Any("mask"))
PATTERN = Node(
    "matmul", Optional("cast", Node("softmax", Optional("cast", _MASKED), name="weights")), Any("values")
)

_CAUSAL = Node(
    "select",
    Node("less_equal", Node("reshape", Node("iota", name="keys"), name="row"), Node("reshape", Any("positions"), name="column")),
    Scalar("shown", 0.0),
    Scalar("hidden", -math.inf),
)

_REPEATED = Node("reshape", Node("broadcast", Node("reshape", Any("x")), name="wide"))


def _unrepeated(value: Value) -> Value | None:
    """x of `repeat x`, or the value itself when it is not repeated; None when it is repeated in another order."""
    found = match(_REPEATED, value.producer) if value.producer is not None else None
    if found is None:
        return value
    x, wide = found["x"].tensor, found["wide"].tensor
    if x.rank != 3 or wide.rank != 4 or (wide.shape[0], *wide.shape[2:]) != x.shape:
        return None
    return found["x"]


def _positions(mask: Value) -> Value | None:
    """The positions of a causal mask, or None for any other mask."""
    found = match(_CAUSAL, mask.producer) if mask.producer is not None else None
    if found is None:
        return None
    (count,) = found["keys"].tensor.shape
    (tokens,) = found["positions"].tensor.shape
    if found["row"].tensor.shape != (1, count) or found["column"].tensor.shape != (tokens, 1):
        return None
    return found["positions"]


def _check(found: Match) -> str | None:
    keys, values = _unrepeated(found["keys"]), _unrepeated(found["values"])
    if keys is None or values is None or keys.type != values.type:
        return "keys and values are not repeated alike from one KV head to the query heads of its group"
    if found.op("turned").attributes["permutation"] != (0, 2, 1):
        return "the keys are not transposed"
    if found.op("weights").attributes["axis"] not in (-1, 2):
        return "the softmax is not over the keys"
    if _positions(found["mask"]) is None:
        return "the mask is not the causal mask of the positions"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    keys, values, positions = _unrepeated(found["keys"]), _unrepeated(found["values"]), _positions(found["mask"])
    assert keys is not None and values is not None and positions is not None
    return rewriter.op("attention", found["q"], keys, values, positions, scale=found.number("scale"))


RULES = (Rule("attention", PATTERN, _rewrite, _check, near=3),)


@dataclass(frozen=True)
class FuseGqa(Pass):
    """Textbook attention with repeated KV heads -> attention."""

    name = "fuse-gqa"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
