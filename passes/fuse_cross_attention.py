"""Fuses attention to the vision tokens that a row may see into `cross_attention`.

Before: `select(%stop <= %start, 0, reshape(transpose(matmul(cast(softmax(cast(add(mul(matmul(q, transpose(repeat k)),
        scale), mask)))), repeat v))))`
After:  `reshape(transpose(cross_attention q, k, v, start, stop {scale}))`, which is zero where a row sees nothing

The mask shows the tokens from start to stop - 1 of each row, and all of them where there is none. Must not fire where
rows that see nothing are left in (their average over all pictures would be lost), for other masks, or when k and v are
repeated differently.
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

from .fuse_gqa import LOWEST, mask_of, unrepeated

_START, _STOP = Node("reshape", Any("start"), name="starts"), Node("reshape", Any("stop"), name="stops")
_KEYS = Node("reshape", Node("iota", name="keys_at"), name="row")
NOTHING = Node("less_equal", _STOP, _START)
"""Whether each row sees nothing."""

_SEEN = Node("logical_and", Node("less_equal", _START, _KEYS), Node("less", _KEYS, _STOP))
_MASK = Node("select", NOTHING, Scalar("shown", 0.0), Node("select", _SEEN, Scalar("seen", 0.0), Scalar("hidden")))
_SCORES = Node("matmul", Any("q"), Node("transpose", Any("keys"), name="turned"))
_MASKED = Node("add", Node("mul", _SCORES, Scalar("scale")), Any("mask"))
_WEIGHTS = Node("softmax", Optional("cast", _MASKED), name="weights")
_MIXED = Node("matmul", Optional("cast", _WEIGHTS), Any("values"), name="mixed")
_ROWS = Node("reshape", Node("transpose", _MIXED, name="by_row"), name="rows")
PATTERN = Node("select", NOTHING, Scalar("nothing", 0.0), _ROWS)


def are_ranges(found: Match, rows: object) -> bool:
    """Whether start and stop are i32 [rows], compared as columns."""
    columns = {found[name].tensor.shape for name in ("starts", "stops")}
    return found["start"].type == found["stop"].type == tensor(rows, I32) and columns == {(rows, 1)}  # type: ignore[arg-type]


def _check(found: Match) -> str | None:
    keys, values, q = unrepeated(found["keys"]), unrepeated(found["values"]), found["q"].tensor
    if keys is None or values is None or keys.type != values.type:
        return "keys and values are not repeated alike from one KV head to the query heads of its group"
    if q.rank != 3 or keys.tensor.rank != 3 or divide(q.shape[0], keys.tensor.shape[0]) is None:
        return f"q {q} and k {keys.type} are not the heads of one sequence"
    if found.op("turned").attributes["permutation"] != (0, 2, 1) or found["mixed"].type != q:
        return "the keys are not transposed, or the result is not like q"
    if found.op("weights").attributes["axis"] not in (-1, 2):
        return "the softmax is not over the keys"
    if not are_ranges(found, q.shape[1]) or not _is_range_mask(found, keys.tensor.shape[1]):
        return "the mask is not that of the range of keys that each row may see"
    return None


def _is_range_mask(found: Match, keys: object) -> bool:
    """Whether the mask hides all but the ranges whose emptiness decides which rows are zero."""
    mask = mask_of(found)
    inner = match(_MASK, mask.producer) if mask.producer is not None else None
    if inner is None or (inner["start"], inner["stop"]) != (found["start"], found["stop"]):
        return False
    shape = (found["q"].tensor.shape[1], keys)
    is_hidden = inner.number("hidden") <= LOWEST[mask.tensor.dtype.name]
    return is_hidden and inner["row"].tensor.shape == (1, keys) and mask.tensor.shape == shape


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    keys, values = unrepeated(found["keys"]), unrepeated(found["values"])
    assert keys is not None and values is not None
    ranges = (found["start"], found["stop"])
    mixed = rewriter.op("cross_attention", found["q"], keys, values, *ranges, scale=found.number("scale"))
    by_row, rows = found.op("by_row"), found.op("rows")
    return rewriter.op("reshape", rewriter.op("transpose", mixed, **by_row.attributes), **rows.attributes)


RULES = (Rule("cross_attention", PATTERN, _rewrite, _check, near=4),)


@dataclass(frozen=True)
class FuseCrossAttention(Pass):
    """Textbook attention to ranges of vision tokens -> cross_attention."""

    name = "fuse-cross-attention"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
