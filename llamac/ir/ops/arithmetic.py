"""Elementwise arithmetic, comparison, casts and reductions: the captured level's plain vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dims import DimLike
from ..dtypes import I1, DType
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import TensorType, Type

_ANYWHERE = frozenset({CAPTURED, MODEL, KERNEL})
_UNFUSED = frozenset({CAPTURED, MODEL})


def broadcast_shapes(shapes: Sequence[tuple[DimLike, ...]]) -> tuple[DimLike, ...]:
    """numpy's broadcasting rule on symbolic shapes: equal dimensions, or one of them is 1."""
    rank = max(len(s) for s in shapes)
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    result: list[DimLike] = []
    for dims in zip(*padded, strict=True):
        wide = {d for d in dims if d != 1}
        if len(wide) > 1:
            raise OpError(f"shapes do not broadcast: {', '.join(str(list(s)) for s in shapes)}")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def _same_dtype(types: Sequence[TensorType]) -> DType:
    if len({t.dtype for t in types}) != 1:
        raise OpError(f"operands must share one dtype, got {', '.join(str(t.dtype) for t in types)}")
    return types[0].dtype


def _infer_elementwise(s: Signature) -> Sequence[Type]:
    types = s.tensors()
    return [TensorType(broadcast_shapes([t.shape for t in types]), _same_dtype(types))]


def _infer_float(s: Signature) -> Sequence[Type]:
    _float(s)
    return _infer_elementwise(s)


def _infer_integer(s: Signature) -> Sequence[Type]:
    for t in s.tensors():
        if t.dtype.is_float or t.dtype is I1:
            raise OpError(f"needs integer operands, got {t}")
    return _infer_elementwise(s)


def _infer_logical(s: Signature) -> Sequence[Type]:
    for t in s.tensors():
        if t.dtype is not I1:
            raise OpError(f"needs i1 operands, got {t}")
    return _infer_elementwise(s)


def floor_quotient(a: Array, b: Array) -> Array:
    """a / b rounded down; 0 where b is 0."""
    return np.asarray(np.floor_divide(a, b))


def _infer_compare(s: Signature) -> Sequence[Type]:
    types = s.tensors()
    _same_dtype(types)
    return [TensorType(broadcast_shapes([t.shape for t in types]), I1)]


def _elementwise(
    name: str,
    operands: str,
    function: Callable[..., Array],
    infer: Callable[[Signature], Sequence[Type]] = _infer_elementwise,
    levels: frozenset[str] = _UNFUSED,
    commutative: bool = False,
) -> OpDefinition:
    def evaluate(e: Evaluation) -> Sequence[Any]:
        with np.errstate(all="ignore"):
            return [e.rounded(function(*e.inputs))]

    names = tuple(operands.split())
    summary = f"Elementwise {name}({', '.join(names)}), broadcasting."
    return OpDefinition(name, levels, names, {}, infer, evaluate, summary, commutative=commutative)


def _one(x: Array) -> Any:
    return x.dtype.type(1)


def exact_power(base: Array, exponent: Array) -> Array:
    """base ** exponent as f64, from 40-digit decimal arithmetic: the same bits on every machine."""
    base, exponent = np.broadcast_arrays(base, exponent)
    out = np.empty(base.shape, np.float64)
    with localcontext() as context:
        context.prec = 40
        context.clear_traps()
        for index in np.ndindex(*base.shape):
            b, e = float(base[index]), float(exponent[index])
            # IEEE defines x**0 as 1 for every x, where decimal gives NaN for 0**0.
            out[index] = 1.0 if e == 0 else float(Decimal(b) ** Decimal(e))
    return out


def _infer_constant(s: Signature) -> Sequence[Type]:
    dtype = s.attributes["dtype"]
    assert isinstance(dtype, DType)
    return [TensorType((), dtype)]


def _infer_cast(s: Signature) -> Sequence[Type]:
    dtype = s.attributes["dtype"]
    assert isinstance(dtype, DType)
    return [s.tensor(0).with_dtype(dtype)]


def _evaluate_cast(e: Evaluation) -> Sequence[Any]:
    return [e.rounded(e.inputs[0])]


def _float(s: Signature) -> TensorType:
    t = s.tensor(0)
    if not t.dtype.is_float:
        raise OpError(f"needs a float operand, got {t}")
    return t


def _infer_mean(s: Signature) -> Sequence[Type]:
    t = _float(s)
    axis = s.axis("axis", t.rank)
    return [t.with_shape(*t.shape[:axis], 1, *t.shape[axis + 1 :])]


def _infer_softmax(s: Signature) -> Sequence[Type]:
    t = _float(s)
    s.axis("axis", t.rank)
    return [t]


def _evaluate_softmax(e: Evaluation) -> Sequence[Any]:
    x = e.inputs[0]
    weights = np.exp(x - x.max(axis=e.integer("axis"), keepdims=True))
    return [e.rounded(weights / weights.sum(axis=e.integer("axis"), keepdims=True))]


def _infer_select(s: Signature) -> Sequence[Type]:
    condition, yes, no = s.tensors()
    if condition.dtype is not I1:
        raise OpError(f"the condition must be i1, got {condition}")
    return [TensorType(broadcast_shapes([condition.shape, yes.shape, no.shape]), _same_dtype([yes, no]))]


def _evaluate_constant(e: Evaluation) -> Sequence[Any]:
    # In exact mode the number itself, as the fused ops read it from their attributes: 80**-0.5 in bf16 is 1e-4 off.
    value = np.asarray(e.number("value"), np.float64)
    return [e.rounded(value)]


def silu(x: Array) -> Array:
    """x * sigmoid(x), without overflow."""
    return np.asarray(x * sigmoid(x))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + small), small / (1 + small)))


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "constant",
        _UNFUSED,
        (),
        {"value": "float", "dtype": "dtype"},
        _infer_constant,
        _evaluate_constant,
        "A scalar.",
    ),
    OpDefinition(
        "cast",
        _ANYWHERE,
        ("x",),
        {"dtype": "dtype"},
        _infer_cast,
        _evaluate_cast,
        "x rounded to another dtype.",
        rows=lambda attributes, types, lo, hi: [(lo, hi)],
    ),
    _elementwise("add", "a b", np.add, levels=_ANYWHERE, commutative=True),
    _elementwise("sub", "a b", np.subtract),
    _elementwise("mul", "a b", np.multiply, commutative=True),
    _elementwise("div", "a b", np.divide, _infer_float),
    _elementwise("neg", "x", np.negative),
    _elementwise("rsqrt", "x", lambda x: _one(x) / np.sqrt(x), _infer_float),
    _elementwise("reciprocal", "x", lambda x: _one(x) / x, _infer_float),
    _elementwise("pow", "base exponent", exact_power, _infer_float),
    _elementwise("sin", "x", np.sin, _infer_float),
    _elementwise("cos", "x", np.cos, _infer_float),
    _elementwise("sigmoid", "x", sigmoid, _infer_float),
    _elementwise("floor", "x", np.floor, _infer_float),
    _elementwise("log1p", "x", np.log1p, _infer_float),
    _elementwise("floor_divide", "a b", floor_quotient, _infer_integer),
    _elementwise("less", "a b", np.less, _infer_compare),
    _elementwise("less_equal", "a b", np.less_equal, _infer_compare),
    _elementwise("equal", "a b", np.equal, _infer_compare, commutative=True),
    _elementwise("logical_and", "a b", np.logical_and, _infer_logical, commutative=True),
    OpDefinition(
        "select",
        _UNFUSED,
        ("condition", "yes", "no"),
        {},
        _infer_select,
        lambda e: [e.rounded(np.where(e.inputs[0], e.inputs[1], e.inputs[2]))],
        "yes where condition holds, else no, broadcasting.",
    ),
    OpDefinition(
        "reduce_mean",
        _UNFUSED,
        ("x",),
        {"axis": "int"},
        _infer_mean,
        lambda e: [e.rounded(e.inputs[0].mean(axis=e.integer("axis"), keepdims=True))],
        "Mean over one axis, kept with length 1.",
    ),
    OpDefinition(
        "reduce_sum",
        _UNFUSED,
        ("x",),
        {"axis": "int"},
        _infer_mean,
        lambda e: [e.rounded(e.inputs[0].sum(axis=e.integer("axis"), keepdims=True))],
        "Sum over one axis, kept with length 1.",
    ),
    OpDefinition(
        "softmax",
        _UNFUSED,
        ("x",),
        {"axis": "int"},
        _infer_softmax,
        _evaluate_softmax,
        "exp(x - max) / sum over one axis.",
    ),
)
