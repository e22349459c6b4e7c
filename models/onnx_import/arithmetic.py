"""ONNX's elementwise ops, comparisons and reductions as captured ops, or evaluated where all is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from llamac.ir.dims import DimLike
from llamac.ir.dtypes import F32, I1, DType
from llamac.ir.graph import Value

from . import table_rows
from .call import DTYPES, Call, Found, Grouped, Importer, Root
from .casts import cast
from .grouped import with_mask
from .known import (
    Known,
    Literal,
    NotKnown,
    Ramp,
    as_literal,
    broadcast_shape,
    combine,
    expanded,
    literal,
    the_number,
    uniform,
)
from .minima import added, group_sums, scaled
from .stored import Stored

_OPCODES = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
_COMPARISONS = {"Less": ("less", False), "Greater": ("less", True), "LessOrEqual": ("less_equal", False),
                "GreaterOrEqual": ("less_equal", True)}  # fmt: skip


def _both_known(call: Call, op: str, dtype: DType | None = None) -> Known | None:
    """The result where both operands are known."""
    a, b = call.known(0), call.known(1)
    if a is None or b is None:
        return None
    try:
        return combine(op, a, b, dtype or a.dtype)
    except NotKnown as error:
        raise call.unsupported(str(error)) from None


def _common(call: Call) -> DType:
    """The dtype of an op: that of its operand which is no plain number."""
    for found in call.raws():
        if isinstance(found, Literal | Ramp):
            continue
        is_known = isinstance(found, Stored) and found.used_type in DTYPES
        return DTYPES[found.used_type] if is_known else call.value(found).tensor.dtype  # type: ignore[union-attr]
    return F32


def _binary(op: str) -> Importer:
    def run(call: Call) -> Found:
        known = _both_known(call, op)
        if known is not None:
            return known
        if (of_integers := _of_integers(call, op)) is not None:
            return of_integers
        if op == "Add" and (masked := _masked(call)) is not None:
            return masked
        if op == "Div" and (inverse := _inverse_root(call)) is not None:
            return inverse
        dtype = _common(call)
        return call.op(_OPCODES[op], call.operand(0, dtype), call.operand(1, dtype))

    return run


def _of_integers(call: Call, op: str) -> Found | None:
    """A step on the way to a matrix of integers with scales and minima."""
    if op == "Mul" and (minima := scaled(call)) is not None:
        return minima
    if op == "Add" and (total := added(call)) is not None:
        return total
    return table_rows.combined(call, op)


def _masked(call: Call) -> Found | None:
    """Scores of grouped heads and their mask."""
    a, b = call.raw(0), call.raw(1)
    return with_mask(call, a, call.value(b)) if isinstance(a, Grouped) and a.is_split else None


def _inverse_root(call: Call) -> Value | None:
    """1 / sqrt(x), and y / sqrt(x) as y * rsqrt(x)."""
    below = call.raw(1)
    if not isinstance(below, Root):
        return None
    inverse = call.op("rsqrt", below.x)
    above = call.known(0)
    if above is not None and the_number(above) == 1:
        return inverse
    return call.op("mul", call.operand(0, inverse.tensor.dtype), inverse)


def _fewest(op: str) -> Importer:
    """Max and Min of known numbers; the larger of two index tensors only has to have their common shape."""

    def run(call: Call) -> Found:
        known = [call.known(index) for index in range(len(call.node.inputs))]
        found = known[0]
        for other in known[1:]:
            if found is None or other is None:
                raise call.unsupported("it is imported for sizes and positions only")
            try:
                found = combine(op, found, other, found.dtype)
            except NotKnown:
                found = _shape_alone(call, found, other)
        if found is None:
            raise call.unsupported("it is imported for sizes and positions only")
        return found

    return run


def _shape_alone(call: Call, a: Known, b: Known) -> Known:
    """The larger of two index ramps, whose numbers nobody may use: exporters take only its shape."""
    try:
        return Ramp(broadcast_shape(a.shape, b.shape), math.nan, (0,) * max(len(a.shape), len(b.shape)), a.dtype)
    except NotKnown as error:
        raise call.unsupported(str(error)) from None


def _unary(opcode: str) -> Importer:
    return lambda call: call.op(opcode, call.tensor(0))


def _negative(call: Call) -> Found:
    known = call.known(0)
    if known is None:
        return call.op("neg", call.tensor(0))
    try:
        return combine("Sub", literal(0, known.dtype), known, known.dtype)
    except NotKnown as error:
        raise call.unsupported(str(error)) from None


def _reciprocal(call: Call) -> Found:
    found = call.raw(0)
    return call.op("rsqrt", found.x) if isinstance(found, Root) else call.op("reciprocal", call.tensor(0))


def _square_root(call: Call) -> Found:
    known = call.known(0)
    number = None if known is None else the_number(known)
    if known is not None and isinstance(number, int | float) and number >= 0:
        return uniform(known.shape, math.sqrt(number), known.dtype)
    return Root(call.tensor(0))


def _power(call: Call) -> Found:
    exponent = call.known(1)
    number = None if exponent is None else the_number(exponent)
    x = call.tensor(0)
    if number == 2:
        return call.op("mul", x, x)
    if number == 0.5:
        return Root(x)
    if number == -0.5:
        return call.op("rsqrt", x)
    return call.op("pow", x, call.operand(1, x.tensor.dtype))


def _silu(call: Call) -> Found:
    call.expect("alpha", 1.0)
    x = call.tensor(0)
    return call.op("mul", x, call.op("sigmoid", x))


def _comparison(op: str) -> Importer:
    def run(call: Call) -> Found:
        a, b = call.known(0), call.known(1)
        if a is not None and b is not None:
            try:
                return combine(op, a, b, I1)
            except NotKnown:
                pass  # the comparison of two ramps is a mask
        opcode, swapped = _COMPARISONS[op]
        dtype = _common(call) if a is None or b is None else a.dtype
        operands = [call.operand(index, dtype) for index in (0, 1)]
        return call.op(opcode, *(operands[::-1] if swapped else operands))

    return run


def _equal(call: Call) -> Found:
    known = _both_known(call, "Equal", I1)
    if known is None:
        dtype = _common(call)
        return call.op("equal", call.operand(0, dtype), call.operand(1, dtype))
    return known


def _and(call: Call) -> Found:
    known = _both_known(call, "And", I1)
    if known is not None:
        return known
    for this, other in ((0, 1), (1, 0)):
        side = call.known(this)
        if side is not None and the_number(side) in (True, 1):
            value = call.tensor(other)
            return call.broadcast(value, broadcast_shape(value.tensor.shape, side.shape))
    return call.op("logical_and", call.tensor(0), call.tensor(1))


def _not(call: Call) -> Found:
    known = call.known(0)
    if known is not None:
        try:
            return combine("Equal", known, literal(False, I1), I1)
        except NotKnown as error:
            raise call.unsupported(str(error)) from None
    op = call.tensor(0).producer
    swapped = {"less": "less_equal", "less_equal": "less"}
    if op is None or op.opcode not in swapped or op.operands[0].tensor.dtype.is_float:
        raise call.unsupported("only a comparison of integers can be negated")
    return call.op(swapped[op.opcode], *op.operands[::-1])


def _is_nan(call: Call) -> Found:
    """What guards rows that see no key at all; every row of a causal mask sees its own."""
    x = call.tensor(0)
    if x.producer is None or x.producer.opcode != "softmax":
        raise call.unsupported("it is imported behind a softmax only")
    return uniform(x.tensor.shape, False, I1)


def _where(call: Call) -> Found:
    condition = call.known(0)
    if condition is not None:
        return _known_where(call, condition)
    sides = [call.raw(index) for index in (1, 2)]
    found = next((s for s in sides if not isinstance(s, Literal | Ramp)), None)
    known = next((s.dtype for s in sides if isinstance(s, Literal | Ramp)), F32)
    dtype = known if found is None else call.value(found).tensor.dtype
    return call.op("select", call.tensor(0), call.operand(1, dtype), call.operand(2, dtype))


def _known_where(call: Call, condition: Known) -> Found:
    number = the_number(condition)
    if number is None:
        a, b = call.known(1), call.known(2)
        if a is None or b is None:
            raise call.unsupported("a known condition chooses element by element between tensors")
        return _chosen(call, condition, a, b)
    taken, other = call.raw(1 if number else 2), call.raw(2 if number else 1)
    shapes = [condition.shape, *(_shape(call, side) for side in (taken, other))]
    try:
        shape = broadcast_shape(*shapes)
        if isinstance(taken, Literal | Ramp):
            return expanded(taken, shape)
    except NotKnown as error:
        raise call.unsupported(str(error)) from None
    return call.broadcast(call.value(taken), shape)


def _shape(call: Call, found: Found) -> tuple[DimLike, ...]:
    return found.shape if isinstance(found, Literal | Ramp) else call.value(found).tensor.shape


def _chosen(call: Call, condition: Known, a: Known, b: Known) -> Literal:
    try:
        shape = broadcast_shape(condition.shape, a.shape, b.shape)
        parts = [as_literal(expanded(x, shape)) for x in (condition, a, b)]
    except NotKnown as error:
        raise call.unsupported(str(error)) from None
    found = np.empty(parts[0].values.shape, object)
    for index in np.ndindex(*found.shape):
        found[index] = parts[1 if parts[0].values[index] else 2].values[index]
    return Literal(found, a.dtype)


def _mean(call: Call) -> Found:
    x = call.tensor(0)
    axes = call.axes(1, x.tensor.rank)
    if axes != [x.tensor.rank - 1] or call.attribute("keepdims", 1) != 1:
        raise call.unsupported("a mean over another axis than the last, or without keeping it")
    return call.op("reduce_mean", x, axis=x.tensor.rank - 1)


def _sum(call: Call) -> Found:
    """Of one number everywhere: how many tokens an attention mask shows."""
    known = call.known(0)
    if (sums := group_sums(call)) is not None:
        return sums
    if known is None or (number := the_number(known)) is None:
        raise call.unsupported("it is imported for the attention mask, and for sums over groups of columns")
    axes = call.axes(1, len(known.shape))
    axes = list(range(len(known.shape))) if axes is None else axes
    for axis in axes:
        number = number * known.shape[axis]  # type: ignore[operator]
    keep = call.attribute("keepdims", 1)
    sizes = [1 if i in axes else n for i, n in enumerate(known.shape) if keep or i not in axes]
    return uniform(sizes, number, known.dtype)


def _running_sum(call: Call) -> Found:
    """Of ones: 1, 2, 3 ... along an axis, how exporters count positions."""
    known = call.known(0)
    number = None if known is None else the_number(known)
    if known is None or not isinstance(number, int) or call.attribute("exclusive", 0) or call.attribute("reverse", 0):
        raise call.unsupported("it is imported for the attention mask only")
    (axis,) = [n % len(known.shape) for n in call.integers(1)]
    return Ramp(
        known.shape, int(number), tuple(int(number) * (i == axis) for i in range(len(known.shape))), known.dtype
    )


def _softmax(call: Call) -> Found:
    found = call.raw(0)
    if isinstance(found, Grouped) and call.axis(len(found.shape), -1) == len(found.shape) - 1:
        return replace(found, heads=call.op("softmax", found.heads, axis=3))
    x = call.tensor(0)
    if call.axis(x.tensor.rank, -1 if call.around.version() >= 13 else 1) != x.tensor.rank - 1:
        raise call.unsupported("a softmax over another axis than the last")
    return call.op("softmax", x, axis=x.tensor.rank - 1)


def _same(call: Call) -> Found:
    return call.raw(0)


ARITHMETIC: dict[str, Importer] = {
    **{op: _binary(op) for op in _OPCODES},
    **{op: _comparison(op) for op in _COMPARISONS},
    "Max": _fewest("Max"),
    "Min": _fewest("Min"),
    "Equal": _equal,
    "And": _and,
    "Not": _not,
    "IsNaN": _is_nan,
    "Where": _where,
    "Neg": _negative,
    "Cos": _unary("cos"),
    "Sin": _unary("sin"),
    "Sigmoid": _unary("sigmoid"),
    "Swish": _silu,
    "com.microsoft.QuickGelu": _silu,
    "Reciprocal": _reciprocal,
    "Sqrt": _square_root,
    "Pow": _power,
    "Cast": cast,
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "CumSum": _running_sum,
    "Softmax": _softmax,
    "Identity": _same,
    "BitwiseAnd": table_rows.low_half,
    "BitShift": table_rows.high_half,
}
"""Op -> what imports it."""
