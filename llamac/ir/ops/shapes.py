"""Ops that move elements without computing: reshape, transpose, broadcast, slice, concat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..definition import Evaluation, OpDefinition, OpError, Signature
from ..dims import DimLike
from ..graph import Attribute
from ..levels import CAPTURED, MODEL
from ..types import LARGEST_RANK, TensorType, Type

_UNFUSED = frozenset({CAPTURED, MODEL})


def element_count(shape: Sequence[DimLike]) -> DimLike:
    """The product of the dimensions."""
    if len(shape) > LARGEST_RANK:
        raise OpError(f"a shape of {len(shape)} axes is over the limit of {LARGEST_RANK}")
    total: DimLike = 1
    for dim in shape:
        total = total * dim
    return total


def _infer_reshape(s: Signature) -> Sequence[Type]:
    t, shape = s.tensor(0), s.dims("shape")
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise OpError(f"cannot reshape {t} to {list(shape)}: a dimension is negative")
    if element_count(t.shape) != element_count(shape):
        raise OpError(f"cannot reshape {t} to {list(shape)}: {element_count(t.shape)} against {element_count(shape)}")
    return [t.with_shape(*shape)]


def _infer_transpose(s: Signature) -> Sequence[Type]:
    t, order = s.tensor(0), [i for i in s.dims("permutation") if isinstance(i, int)]
    if sorted(order) != list(range(t.rank)):
        raise OpError(f"permutation {order} does not fit {t}")
    return [t.with_shape(*(t.shape[i] for i in order))]


def _infer_broadcast(s: Signature) -> Sequence[Type]:
    t, shape = s.tensor(0), s.dims("shape")
    if len(shape) != t.rank or any(a not in (1, b) for a, b in zip(t.shape, shape, strict=True)):
        raise OpError(f"cannot broadcast {t} to {list(shape)}")
    return [t.with_shape(*shape)]


def _infer_slice(s: Signature) -> Sequence[Type]:
    t = s.tensor(0)
    axis, start, stop = s.axis("axis", t.rank), s.integer("start"), s.integer("stop")
    length = t.shape[axis]
    if not 0 <= start < stop or (isinstance(length, int) and stop > length):
        raise OpError(f"slice [{start}, {stop}) is outside axis {axis} of {t}")
    if not isinstance(length, int):
        raise OpError(f"axis {axis} of {t} is symbolic; only fixed axes can be sliced")
    return [t.with_shape(*t.shape[:axis], stop - start, *t.shape[axis + 1 :])]


def _evaluate_slice(e: Evaluation) -> Sequence[Any]:
    index = [slice(None)] * e.inputs[0].ndim
    index[e.integer("axis")] = slice(e.integer("start"), e.integer("stop"))
    return [e.inputs[0][tuple(index)]]


def _infer_concat(s: Signature) -> Sequence[Type]:
    types = s.tensors()
    if not types:
        raise OpError("needs at least one operand")
    first = types[0]
    axis = s.axis("axis", first.rank)
    total: DimLike = 0
    for t in types:
        others = [d for i, d in enumerate(t.shape) if i != axis]
        if (
            t.rank != first.rank
            or t.dtype is not first.dtype
            or others != [d for i, d in enumerate(first.shape) if i != axis]
        ):
            raise OpError(f"cannot concatenate {', '.join(map(str, types))} on axis {axis}")
        total = total + t.shape[axis]
    return [first.with_shape(*first.shape[:axis], total, *first.shape[axis + 1 :])]


def _concat_rows(
    attributes: Mapping[str, Attribute], types: Sequence[TensorType], lo: int, hi: int
) -> list[tuple[int, int] | None]:
    if attributes["axis"] not in (0, -types[0].rank):
        return [(lo, hi)] * len(types)
    needed: list[tuple[int, int] | None] = []
    start = 0
    for t in types:
        rows = t.shape[0]
        assert isinstance(rows, int)
        first, last = max(lo - start, 0), min(hi - start, rows)
        needed.append((first, max(first, last)) if first < rows else (0, 0))
        start += rows
    return needed


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "reshape",
        _UNFUSED,
        ("x",),
        {"shape": "dims"},
        _infer_reshape,
        lambda e: [e.inputs[0].reshape(e.result_shape())],
        "The same elements in row-major order under another shape.",
    ),
    OpDefinition(
        "transpose",
        _UNFUSED,
        ("x",),
        {"permutation": "ints"},
        _infer_transpose,
        lambda e: [e.inputs[0].transpose(e.integers("permutation"))],
        "Axes reordered: result axis i is operand axis permutation[i].",
    ),
    OpDefinition(
        "broadcast",
        _UNFUSED,
        ("x",),
        {"shape": "dims"},
        _infer_broadcast,
        lambda e: [np.broadcast_to(e.inputs[0], e.result_shape())],
        "Axes of length 1 repeated to the given shape.",
    ),
    OpDefinition(
        "slice",
        _UNFUSED,
        ("x",),
        {"axis": "int", "start": "int", "stop": "int"},
        _infer_slice,
        _evaluate_slice,
        "Elements [start, stop) of one axis.",
    ),
    OpDefinition(
        "concat",
        _UNFUSED | {"kernel"},
        ("parts*",),
        {"axis": "int"},
        _infer_concat,
        lambda e: [np.concatenate(e.inputs, axis=e.integer("axis"))],
        "Tensors joined along one axis.",
        rows=_concat_rows,
    ),
)
