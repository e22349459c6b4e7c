"""Working without a leading axis of 1 that a reshape added: the batch axis of torch."""

from __future__ import annotations

from llamac.ir.graph import Attribute, Op, Value, Weight

from .rewriter import Rewriter

UNARY = frozenset("cast neg rsqrt reciprocal sin cos sigmoid".split())
BROADCASTING = frozenset("add sub mul div pow less less_equal select".split())
ROW_WISE = frozenset({"softmax", "reduce_mean", "concat", "slice"})
_SQUEEZED = BROADCASTING | ROW_WISE | UNARY | {"matmul", "transpose", "broadcast"}


def made_by(value: Value, opcode: str) -> Op | None:
    """The op of a graph that made `value`, when it is an `opcode`."""
    op = value.producer
    return op if op is not None and op.opcode == opcode and not isinstance(value, Weight) else None


def front_axis(op: Op, rank: int) -> int:
    """The attribute `axis` counted from the front."""
    axis = op.attributes["axis"]
    assert isinstance(axis, int)
    return axis % rank


def squeeze(op: Op, rewriter: Rewriter) -> Value | None:
    """op(reshape x, reshape y) with a leading 1 that the reshapes added -> reshape(op(x, y)); None for other ops.

    Operands of lower rank stay: broadcasting does not reach past their own axes.
    """
    rank = op.results[0].tensor.rank if op.opcode in _SQUEEZED else 0
    full = [v for v in op.operands if v.tensor.rank == rank]
    if rank < (3 if op.opcode == "matmul" else 2) or not full or not all(_gained_axis(v) for v in full):
        return None
    attributes = _without_first_axis(op, rank)
    if attributes is None or op.result.tensor.shape[0] != 1:
        return None
    operands = [_squeezed(v, rewriter) if v.tensor.rank == rank else v for v in op.operands]
    return rewriter.op("reshape", rewriter.op(op.opcode, *operands, **attributes), shape=op.result.tensor.shape)


def _gained_axis(value: Value) -> bool:
    inner = made_by(value, "reshape")
    return inner is not None and _leading_ones(value) > _leading_ones(inner.operands[0])


def _leading_ones(value: Value) -> int:
    shape = value.tensor.shape
    return next((i for i, d in enumerate(shape) if d != 1), len(shape))


def _squeezed(value: Value, rewriter: Rewriter) -> Value:
    inner = made_by(value, "reshape")
    assert inner is not None
    before, shape = inner.operands[0], value.tensor.shape[1:]
    return before if before.tensor.shape == shape else rewriter.op("reshape", before, shape=shape)


def _without_first_axis(op: Op, rank: int) -> dict[str, Attribute] | None:
    """The attributes of the op on operands without their first axis; None when it works on that axis."""
    if "axis" in op.attributes:
        axis = front_axis(op, rank)
        return {**op.attributes, "axis": axis - 1} if axis else None
    if op.opcode == "transpose":
        order = op.attributes["permutation"]
        assert isinstance(order, tuple)
        places = [i for i in order if isinstance(i, int)]
        return {"permutation": tuple(i - 1 for i in places[1:])} if places[0] == 0 else None
    if op.opcode == "broadcast":
        return {"shape": op.result.tensor.shape[1:]}
    return dict(op.attributes)
