"""ONNX's views, slices, joins and everything about shapes: evaluated where known, captured ops where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from llamac.ir.dims import DimLike, divide
from llamac.ir.dtypes import F32, I32
from llamac.ir.graph import Value

from . import table_rows
from .call import DTYPES, TOKENS, Call, Found, Grouped, GroupSums, Importer, LastToken, Minima, Product, Rows
from .grouped import regrouped
from .halves import rotated_halves
from .known import (
    MOST_KNOWN,
    Indices,
    Known,
    Literal,
    NotKnown,
    Ramp,
    as_literal,
    as_ramp,
    broadcast_shape,
    expanded,
    listed_sizes,
    literal,
    plus,
    sign,
    the_number,
    uniform,
)
from .packed import Packed
from .proto import BOOL, INT32, INT64, TensorProto
from .stored import Stored, locate, small_values
from .wire import meant

INT64_END = 1 << 62
"""Bounds of slices from here on are the end of an axis."""


def shape_of(call: Call, index: int) -> tuple[DimLike, ...]:
    """The shape of an input, without making it."""
    found = call.raw(index)
    if isinstance(found, Stored):
        return found.seen
    if isinstance(found, Literal | Ramp | Grouped | GroupSums | LastToken | Packed | Rows):
        return found.shape
    return call.value(found).tensor.shape


def _shape(call: Call) -> Found:
    shape = shape_of(call, 0)
    start, end = call.attribute("start", 0), call.attribute("end", len(shape))
    return _sizes(list(shape)[slice(start, end)])


def _sizes(sizes: Sequence[DimLike]) -> Literal:
    values = np.empty(len(sizes), object)
    values[:] = list(sizes)
    return Literal(values, I32)


def known_or_stored(tensor: TensorProto, file: Path) -> Found:
    """Sizes, flags and single numbers are known; everything else stays where it is."""
    dtype = DTYPES.get(tensor.type, I32)
    if tensor.count == 0:
        return Literal(np.empty(tensor.shape, object), dtype)
    is_size = tensor.type in (INT32, INT64, BOOL) and tensor.count <= MOST_KNOWN
    if tensor.count == 1 or is_size:
        found = small_values(tensor, file, MOST_KNOWN)
        return literal(np.array(meant(found.item())).reshape(found.shape) if dtype.is_float else found, dtype)
    return locate(tensor, file)


def _constant(call: Call) -> Found:
    attributes = call.node.attributes
    if isinstance(value := attributes.get("value"), TensorProto):
        return known_or_stored(value, call.around.file)
    for name in ("value_float", "value_int", "value_floats", "value_ints"):
        if name in attributes and isinstance(attributes[name], int | float | list):
            return literal(attributes[name], F32 if "float" in name else I32)
    raise call.unsupported("its value is of a kind that is not read")


def _constant_of_shape(call: Call) -> Found:
    value = call.node.attributes.get("value")
    if value is None:
        return uniform(call.numbers(0), 0.0, F32)
    if not isinstance(value, TensorProto) or value.count != 1:
        raise call.unsupported("its value is no single number")
    number = small_values(value, call.around.file, 1).reshape(-1).tolist()[0]
    return uniform(call.numbers(0), number, DTYPES[value.type])


def _range(call: Call) -> Found:
    ((start,), (stop,), (step,)) = (call.numbers(index) for index in range(3))
    if step != 1:
        raise call.unsupported(f"a range in steps of {step}")
    return Ramp((stop - start,), start, (1,), I32)


def moved(call: Call, known: Known, shape: Sequence[DimLike]) -> Known:
    """A known tensor under another shape."""
    number = the_number(known)
    if number is not None:
        return uniform(shape, number, known.dtype)
    if isinstance(known, Literal):
        sizes = [size for size in shape if isinstance(size, int)]
        if len(sizes) == len(shape) and math.prod(sizes) == known.values.size:
            return Literal(known.values.reshape(sizes), known.dtype)
        raise call.unsupported(f"{known.values.size} numbers in the shape {list(shape)}")
    kept = [(size, step) for size, step in zip(known.shape, known.steps, strict=True) if size != 1]
    steps, left = [], list(kept)
    for size in shape:
        if left and size == left[0][0]:
            steps.append(left.pop(0)[1])
        elif size == 1:
            steps.append(0)
        else:
            raise call.unsupported(f"a ramp of shape {list(known.shape)} in the shape {list(shape)}")
    if left:
        raise call.unsupported(f"a ramp of shape {list(known.shape)} in the shape {list(shape)}")
    return Ramp(tuple(shape), known.start, tuple(steps), known.dtype)


def _view(call: Call, shape: Sequence[DimLike]) -> Found:
    found = call.raw(0)
    if isinstance(found, Literal | Ramp):
        return moved(call, found, shape)
    if isinstance(found, Stored) and not found.transposed and all(isinstance(size, int) for size in shape):
        sizes = tuple(int(str(size)) for size in shape)
        if min(sizes, default=0) < 0 or math.prod(sizes) != found.count:
            raise call.unsupported(f"{found.count} stored numbers in the shape {list(sizes)[:8]}")
        return replace(found, shape=sizes)
    if isinstance(found, LastToken):
        if _product(shape) != _product(found.shape):
            raise call.unsupported(f"{list(found.shape)} in the shape {list(shape)}")
        return replace(found, shape=tuple(shape))
    if isinstance(found, Rows) and (rows := table_rows.reshaped(found, shape)) is not None:
        return table_rows.joined(call, rows) or rows
    if isinstance(found, Grouped | Value) and (other := regrouped(call, found, shape)) is not None:
        return other
    return call.reshape(call.value(found), shape)


def _reshape(call: Call) -> Found:
    before, wanted = shape_of(call, 0), call.numbers(1)
    keeps_zero = call.attribute("allowzero", 0)
    shape = [before[i] if size == 0 and not keeps_zero and i < len(before) else size for i, size in enumerate(wanted)]
    if -1 in shape:
        found = _remaining(before, [size for size in shape if size != -1])
        if found is None or shape.count(-1) > 1:
            raise call.unsupported(f"{list(before)} in the shape {wanted}")
        shape[shape.index(-1)] = found
    return _view(call, shape)


def _remaining(before: Sequence[DimLike], given: Sequence[DimLike]) -> DimLike | None:
    """The size that is left of a shape when the given ones are taken out."""
    left, rest = list(before), []
    for size in given:
        if size in left:
            left.remove(size)
        else:
            rest.append(size)
    return divide(_product(left), _product(rest))


def _product(sizes: Sequence[DimLike]) -> DimLike:
    total: DimLike = 1
    for size in sizes:
        total = total * size
    return total


def _unsqueeze(call: Call) -> Found:
    before = shape_of(call, 0)
    given = call.integers(1) if call.has(1) else call.integer_list("axes") or []
    rank = len(before) + len(given)
    if any(not -rank <= axis < rank for axis in given):
        raise call.unsupported(f"axes {given} of a tensor of rank {rank}")
    places, left = {axis % rank for axis in given}, list(before)
    return _view(call, [1 if axis in places else left.pop(0) for axis in range(rank)])


def _squeeze(call: Call) -> Found:
    before = shape_of(call, 0)
    axes = call.axes(1, len(before))
    axes = [axis for axis, size in enumerate(before) if size == 1] if axes is None else axes
    if any(before[axis] != 1 for axis in axes):
        raise call.unsupported(f"axes {axes} of the shape {list(before)} are not 1")
    return _view(call, [size for axis, size in enumerate(before) if axis not in axes])


def _flatten(call: Call) -> Found:
    before = shape_of(call, 0)
    axis = call.attribute("axis", 1)
    axis = axis + len(before) if axis < 0 else axis
    sizes: list[DimLike] = [1, 1]
    for index, size in enumerate(before):
        sizes[index >= axis] = sizes[index >= axis] * size
    return _view(call, sizes)


def _transpose(call: Call) -> Found:
    found = call.raw(0)
    if isinstance(found, Minima) and call.integer_list("perm") in (None, [1, 0]):
        return found.turned()
    rank = len(shape_of(call, 0))
    order = call.integer_list("perm") or list(range(rank))[::-1]
    if sorted(order) != list(range(rank)):
        raise call.unsupported(f"the permutation {order} of rank {rank}")
    if isinstance(found, Stored | Packed) and rank == 2:
        return found.turned() if order == [1, 0] else found
    if isinstance(found, Rows) and (rows := table_rows.turned(call, found, order)) is not None:
        return rows
    if isinstance(found, Literal):
        return Literal(found.values.transpose(order), found.dtype)
    if isinstance(found, Ramp):
        shape, steps = (tuple(part[i] for i in order) for part in (found.shape, found.steps))
        return Ramp(shape, found.start, steps, found.dtype)  # type: ignore[arg-type]
    x = call.value(found)
    return x if order == sorted(order) else call.b.transpose(x, *order)


def _expand(call: Call) -> Found:
    found, wanted = call.raw(0), call.numbers(1)
    try:
        shape = broadcast_shape(shape_of(call, 0), wanted)
        if isinstance(found, Literal | Ramp):
            return expanded(found, shape)
    except NotKnown as error:
        raise call.unsupported(str(error)) from None
    return call.broadcast(call.value(found), shape)


def _slice(call: Call) -> Found:
    shape = shape_of(call, 0)
    starts, stops = _bounds(call, 1, "starts"), _bounds(call, 2, "ends")
    axes = call.integers(3) if call.has(3) else call.integer_list("axes") or list(range(len(starts)))
    steps = call.integers(4) if call.has(4) else [1] * len(starts)
    if not len(starts) == len(stops) == len(axes) == len(steps) or set(steps) - {1}:
        raise call.unsupported(f"slices in steps of {steps}")
    found = call.raw(0)
    for axis, start, stop in zip(axes, starts, stops, strict=True):
        if not -len(shape) <= axis < len(shape):
            raise call.unsupported(f"axis {axis} of a tensor of rank {len(shape)}")
        found = part_of(call, found, axis % len(shape), start, stop)
    return found


def _bounds(call: Call, index: int, name: str) -> list[DimLike]:
    return call.numbers(index) if call.has(index) else list(call.integer_list(name) or [])


def part_of(call: Call, found: Found, axis: int, start: DimLike, stop: DimLike) -> Found:
    """[start, stop) of an axis: negative from the end, past the end is the end."""
    shape = found.shape if isinstance(found, Literal | Ramp | LastToken) else call.value(found).tensor.shape
    length = shape[axis]
    low, high = (_bound(call, bound, length) for bound in (start, stop))
    if low == 0 and high == length:
        return found
    if (low, high, length) == (TOKENS - 1, TOKENS, TOKENS) and not isinstance(found, Literal | Ramp):
        return LastToken(call.value(found), (*shape[:axis], 1, *shape[axis + 1 :]))
    if isinstance(found, Ramp):
        begin = plus(found.start, low * found.steps[axis])
        sizes = (*shape[:axis], high - low, *shape[axis + 1 :])
        return Ramp(sizes, begin, found.steps, found.dtype)
    if not (isinstance(low, int) and isinstance(high, int) and isinstance(length, int)):
        raise call.unsupported(f"elements {low} to {high} of an axis of length {length}")
    if isinstance(found, Literal):
        return Literal(np.take(found.values, range(low, high), axis), found.dtype)
    if low >= high:
        raise call.unsupported("an empty slice")
    if isinstance(found, Product) and axis == found.x.tensor.rank - 1:
        return Product(found.x, found.matrix.part(low, high))
    return call.op("slice", call.value(found), axis=axis, start=low, stop=high)


def _bound(call: Call, bound: DimLike, length: DimLike) -> DimLike:
    try:
        if isinstance(bound, int) and abs(bound) >= INT64_END:
            return length if bound > 0 else 0
        if sign(bound) < 0:
            bound = bound + length
        if isinstance(bound, int) and isinstance(length, int):
            return max(0, min(bound, length))
        return length if sign(bound - length) > 0 else bound
    except NotKnown as error:
        raise call.unsupported(str(error)) from None


def _split(call: Call) -> Sequence[Found]:
    found, shape = call.raw(0), shape_of(call, 0)
    axis, count = call.axis(len(shape), 0), len(call.node.outputs)
    length = shape[axis]
    sizes = call.integers(1) if call.has(1) else call.integer_list("split")
    if sizes is None:
        if not isinstance(length, int):
            raise call.unsupported(f"an axis of length {length}")
        each = -(-length // count)
        sizes = [min(each, length - index * each) for index in range(count)]
    if len(sizes) != count or sum(sizes) != length:
        raise call.unsupported(f"parts {sizes} of an axis of length {length}")
    ends = list(accumulate(sizes))
    return [part_of(call, found, axis, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _concat(call: Call) -> Found:
    found = call.raws()
    if all(isinstance(part, Literal | Ramp) for part in found):
        known = [part for part in found if isinstance(part, Literal | Ramp)]
        if all(part.shape == () or len(part.shape) == 1 for part in known):
            try:
                parts = [as_literal(part).values.reshape(-1) for part in known]
                listed_sizes([sum(map(len, parts))])
                return Literal(np.concatenate(parts), known[0].dtype)
            except NotKnown as error:
                raise call.unsupported(str(error)) from None
        return _one_ramp(call, known) or _indices_side_by_side(call, known)
    values = [call.value(part) for part in found]
    axis = call.axis(values[0].tensor.rank, 0)
    if (rotated := rotated_halves(call, values, axis)) is not None:
        return rotated
    return values[0] if len(values) == 1 else call.op("concat", *values, axis=axis)


def _one_ramp(call: Call, parts: Sequence[Known]) -> Ramp | None:
    """Ramps in steps of 1 that go on where the one before ends: positions, and what is put before the first."""
    axis = call.axis(len(parts[0].shape), 0)
    try:
        ramps = [as_ramp(part) for part in parts]
    except NotKnown:
        return None
    total: DimLike = 0
    for ramp in ramps:
        steps = [step for step, size in zip(ramp.steps, ramp.shape, strict=True) if size != 1]
        wanted = [int(i == axis) for i, size in enumerate(ramp.shape) if size != 1]
        goes_on = len(ramp.shape) == len(parts[0].shape) and steps == wanted
        if not goes_on or isinstance(ramp.start, float) or ramp.start != ramps[0].start + total:  # type: ignore[operator]
            return None
        total = total + ramp.shape[axis]
    shape = tuple(total if i == axis else size for i, size in enumerate(ramps[0].shape))
    return Ramp(shape, ramps[0].start, tuple(int(i == axis) for i in range(len(shape))), ramps[0].dtype)


def _indices_side_by_side(call: Call, parts: Sequence[Known]) -> Known:
    """Index tensors joined along a last axis of one each: what GatherND takes."""
    if call.axis(len(parts[0].shape), 0) != len(parts[0].shape) - 1 or any(p.shape[-1] != 1 for p in parts):
        raise call.unsupported("known tensors of symbolic shape")
    shape = (*parts[0].shape[:-1], len(parts))
    try:
        return Indices(shape, math.nan, (0,) * len(shape), I32, tuple(as_ramp(part) for part in parts))
    except NotKnown as error:
        raise call.unsupported(str(error)) from None


def _size_as_value(call: Call) -> Found:
    return uniform((), _product(shape_of(call, 0)), I32)


SHAPES: dict[str, Importer] = {
    "Shape": _shape,
    "Size": _size_as_value,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Expand": _expand,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
}
"""Op -> what imports it."""
