"""Raises the merge of pictures into embedded text to `merge_rows`.

Before: `select(reshape(rows < 0), %x, embedding(cast %images, select(0 <= rows, rows, 0)))`
After:  `merge_rows %x, %images, %rows`

Must not fire when other row numbers are looked up than are tested, or on tables that are weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Value, Weight
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Scalar
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

_IS_TEXT = Node("less", Any("rows"), Scalar("zero", 0.0))
_IS_IMAGE = Node("less_equal", Scalar("least", 0.0), Any("rows"))
_LOOKUP = Node("embedding", Any("images"), Node("select", _IS_IMAGE, Any("rows"), Scalar("first", 0.0)))
PATTERN = Node("select", Node("reshape", _IS_TEXT, name="column"), Any("x"), _LOOKUP)


def _check(found: Match) -> str | None:
    x = found["x"].tensor
    if isinstance(found["images"], Weight):
        return "the rows are looked up in a weight"
    if x.rank != 2 or found["column"].tensor.shape != (x.shape[0], 1) or found["rows"].tensor.shape != (x.shape[0],):
        return f"the row numbers are not one for each row of {x}"
    return None


def _rewrite(found: Match, rewriter: Rewriter) -> Value:
    return rewriter.op("merge_rows", found["x"], found["images"], found["rows"])


RULES = (Rule("merge_rows", PATTERN, _rewrite, _check, near=2),)


@dataclass(frozen=True)
class RaiseMergeRows(Pass):
    """Looking up and selecting image embeddings -> merge_rows."""

    name = "raise-merge-rows"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
