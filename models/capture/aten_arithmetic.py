"""ATen's elementwise arithmetic, comparisons, constants and reductions as captured ops."""

from __future__ import annotations

from collections.abc import Sequence

from llamac.ir.dims import DimLike
from llamac.ir.dtypes import I1, I32, DType
from llamac.ir.graph import Value

from .call import Call, Importer

_UNARY = "neg rsqrt reciprocal cos sin sigmoid".split()


def _unary(opcode: str) -> Importer:
    return lambda call: call.op(opcode, call.cast(call.tensor("self"), call.dtype))


def _binary(opcode: str) -> Importer:
    return lambda call: in_columns(call, opcode, call.operand("self", call.dtype), call.operand("other", call.dtype))


def in_columns(call: Call, opcode: str, a: Value, b: Value) -> Value:
    """An op on two values; where one has lost a last axis of 1, as one number of each pair has, on both with that axis.

    So the pairs of a rotation stay pairs until they are joined, as the textbook writes them.
    """
    if not (_is_column(a) or _is_column(b)):
        return call.op(opcode, a, b)
    wide = [_with_column(call, value) for value in (a, b)]
    found = call.op(opcode, *wide)
    return call.reshape(found, found.tensor.shape[:-1])


def _is_column(value: Value) -> bool:
    op = value.producer
    inner = op.operands[0].tensor.shape if op is not None and op.opcode == "reshape" else ()
    return bool(inner) and inner == (*value.tensor.shape, 1)


def _with_column(call: Call, value: Value) -> Value:
    if not value.tensor.rank:
        return value
    return value.producer.operands[0] if _is_column(value) else call.reshape(value, (*value.tensor.shape, 1))  # type: ignore[union-attr]


def _add(call: Call) -> Value:
    call.expect("alpha", 1)
    if call.is_size("other"):
        return call.positions(call.tensor("self"), call.dim(call.raw["other"]))
    return _binary("add")(call)  # type: ignore[return-value]


def _subtract(call: Call) -> Value:
    call.expect("alpha", 1)
    return _binary("sub")(call)  # type: ignore[return-value]


def _reversed_subtract(call: Call) -> Value:
    call.expect("alpha", 1)
    return call.op("sub", call.operand("other", call.dtype), call.operand("self", call.dtype))


def _divide(call: Call) -> Value:
    call.expect("rounding_mode", None)
    return _binary("div")(call)  # type: ignore[return-value]


def _power(call: Call) -> Value:
    """x * x for a square, as the textbook writes it; `pow` for anything else."""
    if not call.is_tensor("exponent") and call.number("exponent") == 2:
        x = call.cast(call.tensor("self"), call.dtype)
        return call.op("mul", x, x)
    return call.op("pow", call.operand("self", call.dtype), call.operand("exponent", call.dtype))


def _silu(call: Call) -> Value:
    x = call.tensor("self")
    return call.op("mul", x, call.op("sigmoid", x))


def _compare(opcode: str, swapped: bool) -> Importer:
    def run(call: Call) -> Value:
        dtype = _common(call)
        operands = [call.operand(name, dtype) for name in ("self", "other")]
        return call.op(opcode, *(operands[::-1] if swapped else operands))

    return run


def _common(call: Call) -> DType:
    """The dtype in which two operands are compared: the float one, the wider one."""
    found = [call.tensor(name).tensor.dtype for name in ("self", "other") if call.is_tensor(name)]
    return max(found, key=lambda dtype: (dtype.is_float, dtype.bits))


def _not(call: Call) -> Value:
    """`not (a <= b)` on integers is `b < a`."""
    op = call.tensor("self").producer
    swapped = {"less": "less_equal", "less_equal": "less"}
    if op is None or op.opcode not in swapped or op.operands[0].tensor.dtype.is_float:
        raise call.unsupported("only a comparison of integers can be negated")
    return call.op(swapped[op.opcode], *op.operands[::-1])


def _and(call: Call) -> Value:
    a, b = _truth(call)
    if call.is_one(b):
        return call.broadcast(a, call.shape())
    return call.broadcast(b, call.shape()) if call.is_one(a) else call.op("select", a, b, call.b.constant(0.0, I1))


def _or(call: Call) -> Value:
    a, b = _truth(call)
    return call.op("select", a, call.b.constant(1.0, I1), b)


def _truth(call: Call) -> tuple[Value, Value]:
    a, b = call.tensor("self"), call.tensor("other")
    if a.tensor.dtype is not I1 or b.tensor.dtype is not I1:
        raise call.unsupported("only truth values can be joined")
    return a, b


def _where(call: Call) -> Value:
    return call.op(
        "select", call.tensor("condition"), call.operand("self", call.dtype), call.operand("other", call.dtype)
    )


def _masked_fill(call: Call) -> Value:
    return call.op("select", call.tensor("mask"), call.operand("value", call.dtype), call.tensor("self"))


def _full(value: float | None) -> Importer:
    def run(call: Call) -> Value:
        number = call.number("fill_value" if "fill_value" in call.raw else "s") if value is None else value
        return call.broadcast(call.b.constant(number, call.dtype), call.shape())

    return run


def _arange(call: Call) -> Value:
    (length,) = call.shape()
    start: DimLike = call.dim(call.raw.get("start", 0))
    ramp = call.op("iota", length=length, dtype=call.dtype)
    if not isinstance(start, int):
        return call.positions(ramp, start)
    step = call.integer("step") if call.raw.get("step") is not None else 1
    ramp = ramp if step == 1 else call.op("mul", ramp, call.b.constant(step, call.dtype))
    return ramp if start == 0 else call.op("add", ramp, call.b.constant(start, call.dtype))


def _mean(call: Call) -> Value:
    x = call.cast(call.tensor("self"), call.dtype)
    return call.reshape(call.op("reduce_mean", x, axis=call.axis("dim", x.tensor.rank)), call.shape())


def _softmax(call: Call) -> Value:
    x = call.cast(call.tensor("self"), call.dtype)
    return call.op("softmax", x, axis=call.axis("dim", x.tensor.rank))


def _cast(call: Call) -> Value:
    return call.cast(call.tensor("self"), call.dtype)


def _triangle(upper: bool) -> Importer:
    """tril and triu of the last two axes: the other half becomes 0."""

    def run(call: Call) -> Value:
        x, diagonal = call.tensor("self"), call.integer("diagonal")
        rows, columns = (call.op("iota", length=n, dtype=I32) for n in x.tensor.shape[-2:])
        rows, columns = call.reshape(rows, (*rows.tensor.shape, 1)), call.reshape(columns, (1, *columns.tensor.shape))
        edge = call.op("add", rows, call.b.constant(diagonal, I32)) if diagonal else rows
        kept = call.op("less_equal", *((edge, columns) if upper else (columns, edge)))
        return call.op("select", kept, x, call.b.constant(0.0, x.tensor.dtype))

    return run


def _same(call: Call) -> Value:
    return call.tensor("self")


def _dropout(call: Call) -> Value:
    if call.raw["train"] and call.number("p"):
        raise call.unsupported("dropout is on: call module.eval() first")
    return call.tensor("input")


def _nothing(call: Call) -> Sequence[Value]:
    return []


ARITHMETIC: dict[str, Importer] = {
    **{name: _unary(name) for name in _UNARY},
    "mul": _binary("mul"),
    "add": _add,
    "sub": _subtract,
    "rsub": _reversed_subtract,
    "div": _divide,
    "true_divide": _divide,
    "pow": _power,
    "square": lambda call: call.op("mul", call.tensor("self"), call.tensor("self")),
    "silu": _silu,
    "lt": _compare("less", False),
    "le": _compare("less_equal", False),
    "gt": _compare("less", True),
    "ge": _compare("less_equal", True),
    "logical_not": _not,
    "bitwise_not": _not,
    "logical_and": _and,
    "bitwise_and": _and,
    "__and__": _and,
    "logical_or": _or,
    "bitwise_or": _or,
    "__or__": _or,
    "where": _where,
    "masked_fill": _masked_fill,
    "full": _full(None),
    "full_like": _full(None),
    "new_full": _full(None),
    "scalar_tensor": _full(None),
    "zeros": _full(0.0),
    "zeros_like": _full(0.0),
    "new_zeros": _full(0.0),
    "ones": _full(1.0),
    "ones_like": _full(1.0),
    "new_ones": _full(1.0),
    "arange": _arange,
    "mean": _mean,
    "softmax": _softmax,
    "_softmax": _softmax,
    "to": _cast,
    "_to_copy": _cast,
    "type_as": _cast,
    "tril": _triangle(False),
    "triu": _triangle(True),
    "clone": _same,
    "contiguous": _same,
    "alias": _same,
    "detach": _same,
    "detach_": _same,
    "lift_fresh_copy": _same,
    "dropout": _dropout,
    "_assert_tensor_metadata": _nothing,
    "_assert_scalar": _nothing,
    "sym_constrain_range": _nothing,
    "sym_constrain_range_for_size": _nothing,
}
"""ATen name -> what imports it."""
