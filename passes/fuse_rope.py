"""Fuses rotary position embedding into `rope`, in both conventions.

Before (half_split):  `add(mul(x, C), mul(concat(neg(x[h/2:]), x[:h/2]), S))`, C and S from doubled angles
Before (interleaved): `reshape(concat(sub(mul(e, C), mul(o, S)), add(mul(o, C), mul(e, S))))`, e and o the pairs of x
Before (moved): the same of rows [T, heads, h] whose heads go to the front afterwards, Meta's order; x moves first then
After: `%cos, %sin = rope_angles %positions, %inverse_frequencies`, `rope x, %cos, %sin {style}`, then x's casts

The tables stay in f32 whatever the activation dtype. Must not fire when the halves, the pairs or the tables are not
exactly those of x.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dims import DimLike
from llamac.ir.dtypes import F32, I32, DType
from llamac.ir.graph import Attribute, Module, Op, Value
from llamac.ir.levels import CAPTURED, RAISING
from llamac.ir.types import tensor
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, Match, Node, Optional, Pattern
from llamac.transform.rewriter import Rewriter, Rule, apply_in_turn

_COLUMN = Node("reshape", Node("cast", Any("positions")), name="column")
_ANGLES = Node("mul", _COLUMN, Node("reshape", Any("frequencies"), name="row"))


def _table(function: str, angles: Pattern, use: str) -> Pattern:
    return Node("reshape", Optional("cast", Node(function, angles)), name=f"{function}{use}")


def _tables(angles: Pattern, use: str = "_table") -> tuple[Pattern, Pattern]:
    return _table("cos", angles, use), _table("sin", angles, use)


def _half_split() -> Pattern:
    cos, sin = _tables(Node("concat", _ANGLES, _ANGLES, name="doubled"))
    turned = Node(
        "concat",
        Node("neg", Node("slice", Any("x"), name="second")),
        Node("slice", Any("x"), name="first"),
        name="turned",
    )
    return Node("add", Node("mul", Any("x"), cos), Node("mul", turned, sin))


def _interleaved() -> Pattern:
    cos, sin = _tables(_ANGLES)
    again, sin_again = _tables(_ANGLES, "_again")  # the same angles, if not the same ops
    pairs = Node("reshape", Any("x"), name="pairs")
    even, odd = Node("slice", pairs, name="first"), Node("slice", pairs, name="second")
    new_even = Node("sub", Node("mul", even, cos), Node("mul", odd, sin))
    new_odd = Node("add", Node("mul", odd, again), Node("mul", even, sin_again))
    # Where x was widened to be rotated, casts come before the reshape: canonicalize moves it behind them.
    turned = Node("concat", new_even, new_odd, name="turned")
    return Node("reshape", Optional("cast", Optional("cast", turned)), name="joined")


def _before_moving() -> Node:
    return Node("transpose", _interleaved(), name="moved")


def _bounds(op: Op) -> tuple[Attribute, Attribute]:
    return op.attributes["start"], op.attributes["stop"]


def _last(op: Op) -> bool:
    return op.attributes["axis"] in (-1, op.results[0].tensor.rank - 1)


def _check_common(found: Match, tokens: DimLike, h: int) -> str | None:
    positions, frequencies = (found[name].tensor for name in ("positions", "frequencies"))
    if not all(_last(found.op(n)) for n in ("first", "second", "turned")):
        return "the halves are not taken from the last axis"
    if frequencies != tensor(h // 2, F32):
        return f"{frequencies} does not hold head_dim / 2 frequencies in f32"
    column, row = found["column"].tensor, found["row"].tensor
    if positions != tensor(tokens, I32) or column != tensor(tokens, 1, F32) or row.shape != (1, *frequencies.shape):
        return "the angles are not positions times frequencies"
    return None


def _check_x(found: Match) -> str | None:
    x = found["x"].tensor
    if x.rank != 3 or not isinstance(x.shape[2], int) or x.shape[2] % 2:
        return f"x {x} is not [heads, T, head_dim]"
    return None


def _check_tables(found: Match, names: str, *shape: DimLike) -> str | None:
    if any(found[name].tensor.shape != shape for name in names.split()):
        return "the tables do not turn position t of every head by the angles of position t"
    return None


def _check_half_split(found: Match) -> str | None:
    if reason := _check_x(found):
        return reason
    _, tokens, h = found["x"].tensor.shape
    assert isinstance(h, int)
    if _bounds(found.op("first")) != (0, h // 2) or _bounds(found.op("second")) != (h // 2, h):
        return "the slices are not the two halves"
    if not _last(found.op("doubled")):
        return "the angles are not doubled along the last axis"
    return _check_common(found, tokens, h) or _check_tables(found, "cos_table sin_table", 1, tokens, h)


def _check_interleaved(found: Match) -> str | None:
    if reason := _check_x(found):
        return reason
    x = found["x"].tensor
    _, tokens, h = x.shape
    assert isinstance(h, int)
    if found["joined"].tensor.shape != x.shape:
        return "x is not reshaped to pairs and back"
    return _check_pairs(found, x.shape, tokens, h) or _check_tables(found, EVERY_TABLE, 1, tokens, h // 2, 1)


def _check_before_moving(found: Match) -> str | None:
    shape = found["joined"].tensor.shape
    if len(shape) != 3 or found.op("moved").attributes["permutation"] != (1, 0, 2):
        return "the heads are not moved to the front"
    tokens, _, h = shape
    if not isinstance(h, int) or h % 2 or found["x"].tensor.shape not in (shape, (tokens, shape[1] * h)):
        return f"x {found['x'].tensor} is not [T, heads, head_dim]"
    return _check_pairs(found, shape, tokens, h) or _check_tables(found, EVERY_TABLE, tokens, 1, h // 2, 1)


EVERY_TABLE = "cos_table sin_table cos_again sin_again"


def _check_pairs(found: Match, shape: tuple[DimLike, ...], tokens: DimLike, h: int) -> str | None:
    if found["pairs"].tensor.shape != (*shape[:-1], h // 2, 2):
        return "x is not reshaped to pairs and back"
    if _bounds(found.op("first")) != (0, 1) or _bounds(found.op("second")) != (1, 2):
        return "the slices are not the two elements of a pair"
    return _check_common(found, tokens, h)


def _rewrite(style: str, found: Match, rewriter: Rewriter) -> Value:
    rewriter.at(found.root, found.op("row").location)
    angles = rewriter.multi("rope_angles", found["positions"], found["frequencies"])
    rewriter.at(found.root)
    x = found["x"]
    if found.root.opcode == "transpose":
        rows = x if x.tensor.rank == 3 else rewriter.op("reshape", x, shape=found["joined"].tensor.shape)
        x = rewriter.op("transpose", rows, permutation=(1, 0, 2))
    result = rewriter.op("rope", x, *angles.results, style=style)
    for dtype in _casts(found) if style == "interleaved" else ():
        result = rewriter.op("cast", result, dtype=dtype)
    return result


def _casts(found: Match) -> list[DType]:
    """The dtypes that the rotated pairs are cast to, one after the other, before they are reshaped."""
    dtypes: list[DType] = []
    op = found.op("joined").operands[0].producer
    while op is not None and op.opcode == "cast":
        dtypes.insert(0, op.result.tensor.dtype)
        op = op.operands[0].producer
    return dtypes


MOVED = Rule("rope", _before_moving(), lambda f, r: _rewrite("interleaved", f, r), _check_before_moving, near=6)
INTERLEAVED = Rule("rope", _interleaved(), lambda f, r: _rewrite("interleaved", f, r), _check_interleaved, near=5)
HALF_SPLIT = Rule("rope", _half_split(), lambda f, r: _rewrite("half_split", f, r), _check_half_split, near=3)


@dataclass(frozen=True)
class FuseRope(Pass):
    """Textbook rotary embedding -> rope_angles and rope."""

    name = "fuse-rope"
    requires = (CAPTURED, RAISING)
    produces = RAISING

    def run(self, module: Module, context: PassContext) -> PassResult:
        # Interleaved first: its sums of products look like half-split ones that went wrong.
        return PassResult(*apply_in_turn(module, (MOVED, INTERLEAVED, HALF_SPLIT)))
