"""Fuses rotary position embedding into `rope`, in both conventions.

Before (half_split):  `add(mul(x, C), mul(concat(neg(x[h/2:]), x[:h/2]), S))`, C and S from doubled angles
Before (interleaved): `reshape(concat(sub(mul(e, C), mul(o, S)), add(mul(o, C), mul(e, S))))`, e and o the pairs of x
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


def _table(function: str, angles: Pattern) -> Pattern:
    return Node("reshape", Optional("cast", Node(function, angles)), name=f"{function}_table")


def _tables(angles: Pattern) -> tuple[Pattern, Pattern]:
    return _table("cos", angles), _table("sin", angles)


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
    pairs = Node("reshape", Any("x"), name="pairs")
    even, odd = Node("slice", pairs, name="first"), Node("slice", pairs, name="second")
    new_even = Node("sub", Node("mul", even, cos), Node("mul", odd, sin))
    new_odd = Node("add", Node("mul", odd, cos), Node("mul", even, sin))
    # Where x was widened to be rotated, casts come before the reshape: canonicalize moves it behind them.
    turned = Node("concat", new_even, new_odd, name="turned")
    return Node("reshape", Optional("cast", Optional("cast", turned)))


def _bounds(op: Op) -> tuple[Attribute, Attribute]:
    return op.attributes["start"], op.attributes["stop"]


def _last(op: Op) -> bool:
    return op.attributes["axis"] in (-1, op.results[0].tensor.rank - 1)


def _check_common(found: Match) -> str | None:
    x, positions, frequencies = (found[name].tensor for name in ("x", "positions", "frequencies"))
    if not all(_last(found.op(n)) for n in ("first", "second", "turned")):
        return "the halves are not taken from the last axis"
    (_, tokens, h) = x.shape
    if frequencies != tensor(h // 2 if isinstance(h, int) else h, F32):
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


def _check_tables(found: Match, *shape: DimLike) -> str | None:
    if any(found[f"{name}_table"].tensor.shape != shape for name in ("cos", "sin")):
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
    return _check_common(found) or _check_tables(found, 1, tokens, h)


def _check_interleaved(found: Match) -> str | None:
    if reason := _check_x(found):
        return reason
    x = found["x"].tensor
    _, tokens, h = x.shape
    assert isinstance(h, int)
    if found["pairs"].tensor.shape != (*x.shape[:-1], h // 2, 2) or found.root.result.tensor.shape != x.shape:
        return "x is not reshaped to pairs and back"
    if _bounds(found.op("first")) != (0, 1) or _bounds(found.op("second")) != (1, 2):
        return "the slices are not the two elements of a pair"
    return _check_common(found) or _check_tables(found, 1, tokens, h // 2, 1)


def _rewrite(style: str, found: Match, rewriter: Rewriter) -> Value:
    rewriter.at(found.root, found.op("row").location)
    angles = rewriter.multi("rope_angles", found["positions"], found["frequencies"])
    rewriter.at(found.root)
    result = rewriter.op("rope", found["x"], *angles.results, style=style)
    for dtype in _casts(found) if style == "interleaved" else ():
        result = rewriter.op("cast", result, dtype=dtype)
    return result


def _casts(found: Match) -> list[DType]:
    """The dtypes that the rotated pairs are cast to, one after the other, before they are reshaped."""
    dtypes: list[DType] = []
    op = found.root.operands[0].producer
    while op is not None and op.opcode == "cast":
        dtypes.insert(0, op.result.tensor.dtype)
        op = op.operands[0].producer
    return dtypes


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
        return PassResult(*apply_in_turn(module, (INTERLEAVED, HALF_SPLIT)))
