"""Products of two computed tensors, with a scale behind them that an exporter has put before."""

from __future__ import annotations

import math

from llamac.ir.graph import Value

from .call import Call


def product(call: Call, a: Value, b: Value) -> Value:
    """a b; where an exporter has put the square root of a scale on each side, the scale follows the product."""
    left, right = _scaled(a), _scaled(b)
    if left is not None:
        (a, first), (b, second) = left, right or (b, 1.0)
        width = a.tensor.shape[-1]
        scale = first * second
        usual = float(width) ** -0.5 if isinstance(width, int) else scale
        scale = usual if math.isclose(scale, usual, rel_tol=1e-6) else scale
        return call.op("mul", _product(call, a, b), call.b.constant(scale, a.tensor.dtype))
    return _product(call, a, b)


def _product(call: Call, a: Value, b: Value) -> Value:
    if a.tensor.rank < 2 or b.tensor.rank < 2:
        raise call.unsupported(f"a product of {a.type} and {b.type}")
    return call.op("matmul", a, b)


def _scaled(x: Value) -> tuple[Value, float] | None:
    """(y, c) where x is y * c."""
    op = x.producer
    if op is None or op.opcode != "mul" or x.tensor.rank < 3:
        return None
    factor = op.operands[1].producer
    if factor is None or factor.opcode != "constant":
        return None
    value = factor.attributes["value"]
    assert isinstance(value, float)
    return op.operands[0], value
