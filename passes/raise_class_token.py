"""Raises the joining of patches and a class token to `add_class_token`.

Before: `concat %patches, reshape @token` of one tile, `concat broadcast(reshape @token), reshape %patches` of several
After:  `add_class_token %patches, @token {tiles, place}`, on rows

Must not fire when what is joined is not one row of weights a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Op, Value, Weight
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult, Refusal
from llamac.transform.rewriter import Rewriter


@dataclass(frozen=True)
class RaiseClassToken(Pass):
    """concat of tokens and a weight -> add_class_token."""

    name = "raise-class-token"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        raised, refusals = 0, list[Refusal]()
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "concat" and len(op.operands) == 2]:
                reason = _raise(rewriter, op)
                raised += reason is None
                refusals += [Refusal(op.location, reason)] if reason else []
            rewriter.finish()
        return PassResult({"class_token": raised}, tuple(refusals))


def _token(value: Value) -> Value | None:
    """The weight, perhaps cast, that `value` is a row of for each tile; None for other values."""
    shape = value.tensor.shape
    if any(d != 1 for d in shape[-2:-1]) or len(shape) < 2:
        return None
    op = value.producer
    while op is not None and op.opcode in ("reshape", "broadcast", "cast") and not isinstance(value, Weight):
        if op.opcode == "cast" and isinstance(op.operands[0], Weight):
            break
        value = op.operands[0]
        op = value.producer
    is_weight = isinstance(value, Weight) or (op is not None and op.opcode == "cast")
    return value if is_weight and value.tensor.shape == shape[-1:] else None


def _raise(rewriter: Rewriter, op: Op) -> str | None:
    """Raise `op`, or give the reason not to; nothing to report where no part is a weight."""
    tokens = [_token(v) for v in op.operands]
    if not any(tokens):
        return ""
    if all(tokens):
        return "both parts are weights"
    place = "last" if tokens[1] is not None else "first"
    token, patches = tokens[place == "last"], op.operands[place == "first"]
    assert token is not None
    *leading, rows, width = patches.tensor.shape
    tiles = leading[0] if leading else 1
    axis = op.attributes["axis"]
    if len(leading) > 1 or not isinstance(tiles, int) or not isinstance(rows, int) or axis not in (len(leading), -2):
        return f"the token is not joined to the rows of tiles, {patches.type}"
    rewriter.at(op)
    flat = patches if not leading else rewriter.op("reshape", patches, shape=(tiles * rows, width))
    made = rewriter.op("add_class_token", flat, token, tiles=tiles, place=place)
    rewriter.replace(op.result, made if not leading else rewriter.op("reshape", made, shape=op.result.tensor.shape))
    return None
