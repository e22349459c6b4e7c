"""Raises the padding of tiles to `pad_tiles`, and the question which tokens are padding to `tile_padding`.

Before: `concat(x [n, t, W], broadcast 0 [n, p - t, W])`; `less(reshape(select(%slots >= 0, of_token, -inf)), 0)`, where
        of_token is 0 for the first tokens of a tile and -inf for the rest
After:  `pad_tiles x {tiles, padded}`, on rows; `tile_padding %slots {tokens, padded}`

Must not fire for other values than zeros, nor for a mask of another form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamac.ir.dtypes import I32
from llamac.ir.graph import Module, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Scalar
from llamac.transform.rewriter import Rewriter, Rule, apply_rules

_IS_TOKEN = Node("less_equal", Node("iota", name="places"), Scalar("last"))
_OF_TOKEN = Node("select", _IS_TOKEN, Scalar("shown", 0.0), Scalar("hidden", -math.inf))
_IS_TILE = Node("less_equal", Scalar("first", 0.0), Node("reshape", Any("slots"), name="column"))
_HIDDEN = Node("select", _IS_TILE, Node("reshape", _OF_TOKEN, name="row"), Scalar("hidden_tile", -math.inf))
PADDING = Node("less", Node("reshape", _HIDDEN, name="flat"), Scalar("limit", 0.0))

_ZEROS = Node("broadcast", Node("reshape", Scalar("zero", 0.0)), name="zeros")
PADDED = Node("concat", Any("x"), _ZEROS)


def _slots(found: Match) -> Value:
    """The slots as a vector: a reshape that only makes the row of a table one is left out."""
    value = found["slots"]
    op = value.producer
    return op.operands[0] if op is not None and op.opcode == "reshape" and value.tensor.rank == 2 else value


def _check_padding(found: Match) -> str | None:
    slots = _slots(found).tensor
    tiles, padded = slots.shape[-1], found["places"].tensor.shape[0]
    if slots.rank != 1 or slots.dtype is not I32 or not isinstance(tiles, int) or not isinstance(padded, int):
        return f"the slots {slots} are not i32, one for each of a fixed number of tiles"
    shapes = [found[name].tensor.shape for name in ("column", "row", "flat")]
    if shapes != [(tiles, 1), (1, padded), (tiles * padded,)]:
        return "the mask is not one number for each token of each tile"
    return None


def _raise_padding(found: Match, rewriter: Rewriter) -> Value:
    padded = found["places"].tensor.shape[0]
    assert isinstance(padded, int)
    rewriter.at(found.root, found.op("row").location)
    return rewriter.op("tile_padding", _slots(found), tokens=int(found.number("last")) + 1, padded=padded)


def _check_padded(found: Match) -> str | None:
    shape = found.root.result.tensor.shape
    if len(shape) != 3 or not all(isinstance(d, int) for d in shape):
        return f"{found.root.result.type} is not a fixed number of tiles"
    if found.root.attributes["axis"] not in (1, -2):
        return "the zeros do not follow the tokens of each tile"
    return None


def _raise_padded(found: Match, rewriter: Rewriter) -> Value:
    tiles, padded, width = found.root.result.tensor.shape
    assert isinstance(tiles, int) and isinstance(padded, int)
    flat = rewriter.op("reshape", found["x"], shape=(tiles * found["x"].tensor.shape[1], width))
    made = rewriter.op("pad_tiles", flat, tiles=tiles, padded=padded)
    return rewriter.op("reshape", made, shape=found.root.result.tensor.shape)


RULES = (
    Rule("padding", PADDING, _raise_padding, _check_padding),
    Rule("padded", PADDED, _raise_padded, _check_padded),
)


@dataclass(frozen=True)
class RaisePadding(Pass):
    """Zeros behind the tokens of tiles -> pad_tiles; where they are -> tile_padding."""

    name = "raise-padding"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        return PassResult(*apply_rules(module, RULES))
