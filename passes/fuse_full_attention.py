"""Fuses attention in which every token sees every token into `full_attention`.

Before: `matmul(cast(softmax(cast(mul(matmul(q, transpose k), scale)))), v)`
After:  `full_attention q, k, v {scale}`, with `%padding` where a mask hides padding from padding

That mask is `select(column(%h) < 0, row(%h), 0)`, with %h of 0 for tokens and -inf for padding. Must not fire for
another mask, nor when heads are shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Optional, Scalar, match
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

_SCORES = Node("matmul", Any("q"), Node("transpose", Any("k"), name="turned"))
_SCALED = Node("mul", _SCORES, Scalar("scale"))


def _weighted(scores: Node) -> Node:
    return Node("matmul", Optional("cast", Node("softmax", Optional("cast", scores), name="weights")), Any("v"))


PATTERN = _weighted(_SCALED)
MASKED = _weighted(Node("add", _SCALED, Any("mask")))

_FROM_PADDING = Node("less", Node("reshape", Any("hidden"), name="column"), Scalar("zero", 0.0))
_MASK = Node("select", _FROM_PADDING, Node("reshape", Any("hidden"), name="row"), Scalar("shown", 0.0))


def _hidden(found: Match) -> Value | None:
    """What is -inf for padding and 0 for tokens, of a mask that hides padding from padding; None for another mask."""
    mask = found["mask"]
    op = mask.producer
    if op is not None and op.opcode == "reshape" and mask.tensor.shape == (1, *op.operands[0].tensor.shape):
        op = op.operands[0].producer
    inner = match(_MASK, op) if op is not None else None
    if inner is None:
        return None
    tokens = found["q"].tensor.shape[1]
    shapes = [inner[name].tensor.shape for name in ("row", "column")]
    return inner["hidden"] if shapes == [(1, tokens), (tokens, 1)] else None


_TURNED: dict[tuple[int, ...], tuple[int, ...]] = {(0, 2, 1): (0, 1, 2), (1, 2, 0): (1, 0, 2)}
"""How keys are transposed for the scores -> how they are to be, [heads, tokens, head_dim], as values are."""


def _check(found: Match) -> str | None:
    q, v = found["q"].tensor, found["v"].tensor
    if q.rank != 3 or v != q or found.root.result.type != q or found["k"].tensor.rank != 3:
        return f"q {q}, k {found['k'].type} and v {v} are not the heads of the same tokens"
    order = _TURNED.get(_permutation(found))
    if order is None or tuple(found["k"].tensor.shape[i] for i in order) != q.shape:
        return "the keys are not transposed"
    if found.op("weights").attributes["axis"] not in (-1, 2):
        return "the softmax is not over the keys"
    return None


def _check_masked(found: Match) -> str | None:
    if reason := _check(found):
        return reason
    hidden = _hidden(found)
    if hidden is None or not _is_zero_or_hidden(hidden):
        return "the mask is not one that hides padding from padding"
    return None


def _is_zero_or_hidden(value: Value) -> bool:
    """Whether every element is 0 or -inf, as far as its own ops say so."""
    op = value.producer
    if op is None:
        return False
    if op.opcode in ("reshape", "broadcast", "cast"):
        return _is_zero_or_hidden(op.operands[0])
    if op.opcode in ("select", "add"):
        return all(_is_zero_or_hidden(v) for v in op.operands[op.opcode == "select" :])
    return op.opcode == "constant" and op.attributes["value"] in (0.0, -math.inf)


def _permutation(found: Match) -> tuple[int, ...]:
    order = found.op("turned").attributes["permutation"]
    assert isinstance(order, tuple)
    return tuple(i for i in order if isinstance(i, int))


def _keys(found: Match, rewriter: Rewriter) -> Value:
    order = _TURNED[_permutation(found)]
    return found["k"] if order == (0, 1, 2) else rewriter.op("transpose", found["k"], permutation=order)


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    keys = _keys(found, rewriter)
    return rewriter.op("full_attention", found["q"], keys, found["v"], scale=found.number("scale"))


def _rewrite_masked(found: Match, rewriter: Rewriter) -> Value:
    hidden, scale = _hidden(found), found.number("scale")
    assert hidden is not None
    row = rewriter.op("reshape", hidden, shape=found["q"].tensor.shape[1:2])
    zero = rewriter.op("constant", value=0.0, dtype=hidden.tensor.dtype)
    padding = rewriter.op("less", row, zero)
    return rewriter.op("full_attention", found["q"], _keys(found, rewriter), found["v"], padding, scale=scale)


_EXACT = 99
"""Deeper than any pattern: the form without a mask reports what is nearly either."""

RULES = (
    Rule("full_attention", MASKED, _rewrite_masked, _check_masked, near=_EXACT),
    Rule("full_attention", PATTERN, _rewrite, _check, near=3),
)


@dataclass(frozen=True)
class FuseFullAttention(Pass):
    """Attention without a mask of time -> full_attention."""

    name = "fuse-full-attention"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
