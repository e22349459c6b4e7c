"""Raises what each tile of a picture adds to its tokens, by its place, to `add_places`.

Before: `add(x [n, t, W], mul(rows [n, t or 1, W], tanh(@gate)))`, rows reshaped from a row of @table for the picture's
        shape, from rows of @table by slot (nothing for slot -1), or from @table itself; the factor may be 1 - tanh
After:  `add_places x, @table, @gate, %index {tiles, each, complement}`, on rows; `lookup_row` for tables of slots

Must not fire when the gate is not one number, or the table not as many values as the tiles, or one of them, have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamac.ir.dims import DimLike
from llamac.ir.dtypes import I32
from llamac.ir.graph import Module, Op, Value, Weight
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.pattern import Any, AnyWeight, Match, Node, Optional, Pattern, Scalar, match
from llamac.transform.rewriter import Rewriter

_TANH = Node("tanh", Optional("cast", AnyWeight("gate")))
_GATES: tuple[Pattern, ...] = (_TANH, Node("sub", Scalar("one", 1.0), _TANH))
_BY_SHAPE = Node("embedding", Optional("cast", AnyWeight("table")), Any("shape"))
_SLOT = Node("select", Node("less_equal", Scalar("zero", 0.0), Any("slots")), Any("slots"), Scalar("none", 0.0))
_BY_SLOT = Node(
    "select",
    Node("reshape", Node("less", Any("slots"), Scalar("least", 0.0))),
    Scalar("nothing", 0.0),
    Node("embedding", Optional("cast", AnyWeight("table")), _SLOT),
)


@dataclass(frozen=True)
class RaisePlaces(Pass):
    """Gated additions of rows of tables -> add_places."""

    name = "raise-places"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts, refusals = {"places": 0, "slots": 0}, list[Refusal]()
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in list(graph.ops):
                if op.opcode == "embedding" and op.result.tensor.dtype is I32:
                    counts["slots"] += _look_up(rewriter, op)
                elif op.opcode == "add" and op.result.tensor.rank == 3:
                    reason = _raise(rewriter, op)
                    counts["places"] += reason is None
                    refusals += [Refusal(op.location, reason)] if reason else []
            rewriter.finish()
        return PassResult(counts, tuple(refusals))


def _look_up(rewriter: Rewriter, op: Op) -> bool:
    """One row of a table of integers."""
    if not isinstance(op.operands[0], Weight) or op.result.tensor.shape[0] != 1:
        return False
    rewriter.at(op)
    row = rewriter.op("lookup_row", *op.operands)
    rewriter.replace(op.result, rewriter.op("reshape", row, shape=op.result.tensor.shape))
    return True


def _behind_reshapes(value: Value) -> Value:
    while value.producer is not None and value.producer.opcode == "reshape" and not isinstance(value, Weight):
        value = value.producer.operands[0]
    return value


def _gated(value: Value) -> tuple[Value, Match] | None:
    """What is multiplied by a gate, and the gate; None when `value` is no such product."""
    product = _behind_reshapes(value).producer
    if product is None or product.opcode != "mul":
        return None
    for rows, factor in (product.operands, product.operands[::-1]):
        maker = _behind_reshapes(factor).producer
        for pattern in _GATES if maker is not None else ():
            assert maker is not None
            found = match(pattern, maker)
            if found is not None and _count(factor) == _count(found["gate"]) == 1:
                return _behind_reshapes(rows), found
    return None


def _count(value: Value) -> int:
    return math.prod(d for d in value.tensor.shape if isinstance(d, int))


def _raise(rewriter: Rewriter, op: Op) -> str | None:
    """Raise `op`, or give the reason not to; nothing to report where nothing is gated."""
    for x, added in (op.operands, op.operands[::-1]):
        found = _gated(added) if x.type == op.result.type else None
        if found is not None:
            break
    else:
        return ""
    rows, gate = found
    tiles, tokens, width = op.result.tensor.shape
    if not isinstance(tiles, int) or not isinstance(tokens, int) or not isinstance(width, int):
        return f"{op.result.type} is not a fixed number of tiles"
    of_tiles, of_tokens, _ = _three(added.tensor.shape)
    each = (width if of_tokens == 1 else tokens * width) if of_tokens in (1, tokens) else 0
    rewriter.at(op)
    table = _table(rewriter, rows, tiles, each) if of_tiles == tiles else _plain(rows, each)
    if table is None:
        return f"{rows!r} does not hold what tiles add"
    flat = rewriter.op("reshape", x, shape=(tiles * tokens, width))
    complement = "one" in gate.values
    made = rewriter.op(
        "add_places", flat, table[0], gate["gate"], *table[1:], tiles=tiles, each=each, complement=complement
    )
    rewriter.replace(op.result, rewriter.op("reshape", made, shape=op.result.tensor.shape))
    return None


def _three(shape: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
    return (*(1,) * (3 - len(shape)), *shape)


def _plain(rows: Value, each: int) -> tuple[Value, ...] | None:
    """A table of one row, the same for every tile."""
    op = rows.producer
    if op is not None and op.opcode == "cast" and not isinstance(rows, Weight):
        rows = op.operands[0]
    return (rows,) if isinstance(rows, Weight) and _count(rows) == each else None


def _table(rewriter: Rewriter, rows: Value, tiles: int, each: int) -> tuple[Value, ...] | None:
    """The table that `rows` are taken from, and which row each tile takes."""
    op = rows.producer
    if op is None or _count(rows) != tiles * each:
        return None
    if (found := match(_BY_SHAPE, op)) is not None and found["shape"].tensor.shape == (1,):
        return found["table"], rewriter.op("tile_rows", found["shape"], tiles=tiles)
    found = match(_BY_SLOT, op)
    return (found["table"], found["slots"]) if found is not None else None
