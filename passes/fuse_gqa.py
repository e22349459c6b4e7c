"""Fuses masked attention over repeated KV heads into `attention`, which shares each KV head instead of copying it.

Before: `matmul(cast(softmax(cast(add(mul(matmul(q, transpose(repeat k)), scale), mask)))), repeat v)`
After:  `attention q, k, v, positions {scale}`, with `chunk` when the mask also hides other blocks of positions

`repeat` is reshape-broadcast-reshape, a broadcast of one KV head to all, or nothing when every query head has its own.
Scores may be divided by 1 / scale. The mask hides by -inf or by the lowest finite value: beside a visible key, the
row's own, both weigh nothing. Must not fire for another mask than these two, or when k and v are repeated
differently.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dims import divide
from llamac.ir.dtypes import I32
from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.ir.types import tensor
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Optional, Scalar, match
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

_SCORES = Node("matmul", Any("q"), Node("transpose", Any("keys"), name="turned"))


def _pattern(scaling: str) -> Node:
    masked = Node("add", Node(scaling, _SCORES, Scalar("scale"), name="scaled"), Any("mask"))
    return Node("matmul", Optional("cast", Node("softmax", Optional("cast", masked), name="weights")), Any("values"))


PATTERN = _pattern("mul")
DIVIDED = _pattern("div")

_ROW = Node("reshape", Node("iota", name="keys"), name="row")
_COLUMN = Node("reshape", Any("positions"), name="column")
_NOT_AFTER = Node("less_equal", _ROW, _COLUMN)
_SAME_CHUNK = Node(
    "equal", Node("floor_divide", _ROW, Scalar("chunk")), Node("floor_divide", _COLUMN, Scalar("chunk_of_query"))
)
_CAUSAL = Node("select", _NOT_AFTER, Scalar("shown", 0.0), Scalar("hidden"))
_CHUNKED = Node("select", Node("logical_and", _NOT_AFTER, _SAME_CHUNK), Scalar("shown", 0.0), Scalar("hidden"))
LOWEST = {"f32": -3.4028234663852886e38, "bf16": -3.3895313892515355e38, "f16": -65504.0}
"""The lowest finite value of each float dtype."""

_REPEATED = Node("reshape", Node("broadcast", Node("reshape", Any("x"), name="narrow"), name="wide"), name="heads")


def unrepeated(value: Value) -> Value | None:
    """x of `repeat x`, or the value itself when it is not repeated; None when it is repeated in another order."""
    if (single := _single_head(value)) is not None:
        return single
    found = match(_REPEATED, value.producer) if value.producer is not None else None
    if found is None:
        return value
    x, wide, heads = (found[name].tensor.shape for name in ("x", "wide", "heads"))
    if len(x) != 3 or found["narrow"].tensor.shape != (x[0], 1, *x[1:]) or heads != (x[0] * wide[1], *x[1:]):
        return None
    return found["x"]


def _single_head(value: Value) -> Value | None:
    """x [1, S, h] when `value` is it, broadcast to every query head."""
    op = value.producer
    is_broadcast = op is not None and op.opcode == "broadcast" and value.tensor.rank == 3
    if op is None or not is_broadcast or op.operands[0].tensor.shape != (1, *value.tensor.shape[1:]):
        return None
    return op.operands[0]


def mask_of(found: Match) -> Value:
    """The mask [T, S], which may have an axis of 1 for the heads."""
    mask = found["mask"]
    op = mask.producer
    if op is not None and op.opcode == "reshape" and mask.tensor.shape == (1, *op.operands[0].tensor.shape):
        return op.operands[0]
    return mask


def _visible(mask: Value) -> tuple[Value, int] | None:
    """The positions of a causal mask and its chunk (0: none), or None for any other mask."""
    if mask.producer is None:
        return None
    found = match(_CAUSAL, mask.producer) or match(_CHUNKED, mask.producer)
    if found is None or found["positions"].tensor.rank != 1:
        return None
    if found.number("hidden") > LOWEST[mask.tensor.dtype.name]:
        return None
    keys, positions = found["keys"].tensor.shape, found["positions"].tensor.shape
    if found["row"].tensor.shape != (1, *keys) or found["column"].tensor.shape != (*positions, 1):
        return None
    if "chunk" not in found.values:
        return found["positions"], 0
    chunk = found.number("chunk")
    return (found["positions"], int(chunk)) if chunk == found.number("chunk_of_query") >= 1 else None


def _check(found: Match) -> str | None:
    keys, values = unrepeated(found["keys"]), unrepeated(found["values"])
    q = found["q"].tensor
    if keys is None or values is None or keys.type != values.type:
        return "keys and values are not repeated alike from one KV head to the query heads of its group"
    if q.rank != 3 or keys.tensor.rank != 3 or divide(q.shape[0], keys.tensor.shape[0]) is None:
        return f"q {q} and k {keys.type} are not the heads of one sequence"
    if found.root.result.type != q:
        return f"the result {found.root.result.type} differs from q {q}"
    if found.op("turned").attributes["permutation"] != (0, 2, 1):
        return "the keys are not transposed"
    if found.op("weights").attributes["axis"] not in (-1, 2):
        return "the softmax is not over the keys"
    mask = mask_of(found)
    if (visible := _visible(mask)) is None:
        return "the mask is not the causal mask of the positions, nor that of chunks of one size"
    if visible[0].type != tensor(q.shape[1], I32) or mask.tensor.shape != (q.shape[1], keys.tensor.shape[1]):
        return "the mask is not that of these queries and keys"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    keys, values, visible = unrepeated(found["keys"]), unrepeated(found["values"]), _visible(mask_of(found))
    assert keys is not None and values is not None and visible is not None
    positions, chunk = visible
    seen = {"chunk": chunk} if chunk else {}
    scale = found.number("scale") if found.op("scaled").opcode == "mul" else 1 / found.number("scale")
    return rewriter.op("attention", found["q"], keys, values, positions, scale=scale, **seen)


_EXACT = 99
"""Deeper than any pattern: the rarer form reports no near matches, the other one does for both."""

RULES = (
    Rule("attention", DIVIDED, _rewrite, _check, near=_EXACT),
    Rule("attention", PATTERN, _rewrite, _check, near=3),
)


@dataclass(frozen=True)
class FuseGqa(Pass):
    """Textbook attention with repeated KV heads -> attention."""

    name = "fuse-gqa"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
