"""Rotary embedding written with halves: `[a cos - b sin, b cos + a sin]` of x = [a, b], an angle for each pair."""

from __future__ import annotations

from collections.abc import Sequence

from llamac.ir.graph import Op, Value

from ..capture.parameters import FREQUENCIES
from .call import Call

_MOVES = ("reshape", "cast")


def behind(value: Value) -> Value:
    """The value before it was reshaped or cast."""
    while value.producer is not None and value.producer.opcode in _MOVES:
        value = value.producer.operands[0]
    return value


def angle_of(value: Value, opcode: str) -> Value | None:
    """What `value` is the cosine (or sine) of, when it is positions times the frequencies: the factor beside these."""
    op = behind(value).producer
    angles = behind(op.operands[0]).producer if op is not None and op.opcode == opcode else None
    if angles is None or angles.opcode != "mul":
        return None
    a, b = (behind(operand) for operand in angles.operands)
    if FREQUENCIES not in (a.name, b.name):
        return None
    return a if b.name == FREQUENCIES else b


def rotated_halves(call: Call, parts: Sequence[Value], axis: int) -> Value | None:
    """x rotated in the textbook's form, where two joined halves are a rotation of x; None where they are not."""
    if len(parts) != 2 or axis != parts[0].tensor.rank - 1 or parts[0].type != parts[1].type:
        return None
    minus, plus = (part.producer for part in parts)
    if minus is None or plus is None or (minus.opcode, plus.opcode) != ("sub", "add"):
        return None
    first, second = (_factors(v) for v in minus.operands)
    third, fourth = (_factors(v) for v in plus.operands)
    if first is None or second is None or third is None or fourth is None:
        return None
    a, cosine, b, sine = *first, *second
    x = _joined(a, b)
    if (b, cosine) != third or (a, sine) != fourth or x is None or x.tensor.rank != 4:
        return None
    if not all(_is_of_positions(call, value, op) for value, op in ((cosine, "cos"), (sine, "sin"))):
        return None
    return call.reshape(call.around.rotated(call.reshape(x, x.tensor.shape[1:])), x.tensor.shape)


def _factors(value: Value) -> tuple[Value, Value] | None:
    """(half of x, cosine or sine) of a product."""
    op = value.producer
    if op is None or op.opcode != "mul":
        return None
    a, b = op.operands
    return (a, b) if _slice_of(a) is not None else (b, a)


def _slice_of(value: Value) -> Op | None:
    op = value.producer
    return op if op is not None and op.opcode == "slice" else None


def _joined(a: Value, b: Value) -> Value | None:
    """x, where a and b are its first and its second half."""
    first, second = _slice_of(a), _slice_of(b)
    if first is None or second is None or first.operands != second.operands:
        return None
    x = first.operands[0]
    width = x.tensor.shape[-1]
    bounds = [(op.attributes["axis"], op.attributes["start"], op.attributes["stop"]) for op in (first, second)]
    assert isinstance(width, int)
    last, half = x.tensor.rank - 1, width // 2
    return x if bounds == [(last, 0, half), (last, half, width)] else None


def _is_of_positions(call: Call, value: Value, opcode: str) -> bool:
    factor = angle_of(value, opcode)
    graph = call.b.graph
    return factor is not None and graph is not None and factor is graph.argument("positions")
