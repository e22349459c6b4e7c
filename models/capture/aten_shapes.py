"""ATen's views, slices and joins as captured ops; results have the shapes that torch inferred."""

from __future__ import annotations

from collections.abc import Sequence

from llamac.ir.graph import Value

from .call import Call, Importer


def _view(call: Call) -> Value:
    return call.reshape(call.tensor("self"), call.shape())


def _expand(call: Call) -> Value:
    return call.broadcast(call.tensor("self"), call.shape())


def _permute(call: Call) -> Value:
    x = call.tensor("self")
    return _transposed(call, x, [int(i) % x.tensor.rank for i in call.raw["dims"]])


def _transpose(call: Call) -> Value:
    x = call.tensor("self")
    order = list(range(x.tensor.rank))
    a, b = call.axis("dim0", len(order)), call.axis("dim1", len(order))
    order[a], order[b] = order[b], order[a]
    return _transposed(call, x, order)


def _matrix_transpose(call: Call) -> Value:
    """`t`, `mT` and `numpy_T`: the order of all axes turned for rank 2 and less, of the last two for `mT`."""
    x = call.tensor("self")
    order = list(range(x.tensor.rank))
    if call.node.target._opname == "numpy_T":
        return _transposed(call, x, order[::-1])
    return _transposed(call, x, [*order[:-2], *order[-2:][::-1]])


def _transposed(call: Call, x: Value, order: list[int]) -> Value:
    return x if order == sorted(order) else call.b.transpose(x, *order)


def _slice(call: Call) -> Value:
    x = call.tensor("self")
    axis = call.axis("dim", x.tensor.rank)
    if call.integer("step") != 1:
        return _every(call, x, axis, call.integer("step"))
    return _part(call, x, axis, call.raw["start"], call.raw["end"])


def _every(call: Call, x: Value, axis: int, step: int) -> Value:
    """Every `step`th element of an axis that is so many of them long: one column of its elements in rows of `step`."""
    length, (start, stop) = x.tensor.shape[axis], (call.raw["start"] or 0, call.raw["end"])
    whole = stop is None or stop == length or (isinstance(stop, int) and stop >= 2**62)
    if not isinstance(length, int) or length % step or not isinstance(start, int) or not 0 <= start < step or not whole:
        raise call.unsupported(f"elements {start} to {stop} in steps of {step} of an axis of length {length}")
    before, after = x.tensor.shape[:axis], x.tensor.shape[axis + 1 :]
    shape = (*before, length // step, step, *after)
    made = (user.results[0] for user in x.users if user.opcode == "reshape" and user.results[0].tensor.shape == shape)
    rows = next(made, None) or call.reshape(x, shape)  # the other elements of the rows are cut from the same ones
    return call.reshape(call.op("slice", rows, axis=axis + 1, start=start, stop=start + 1), call.shape())


def _part(call: Call, x: Value, axis: int, start: object, stop: object) -> Value:
    """x[start:stop] of an axis, torch's rule: negative from the end, past the end is the end."""
    length = x.tensor.shape[axis]
    low, high = call.dim(0 if start is None else start), call.dim(2**63 - 1 if stop is None else stop)
    if low == 0 and (high == length or (isinstance(high, int) and high >= 2**62)):
        return x
    if not (isinstance(length, int) and isinstance(low, int) and isinstance(high, int)):
        raise call.unsupported(f"elements {low} to {high} of an axis of length {length}: only fixed axes can be cut")
    low, high = (max(0, min(n + length if n < 0 else n, length)) for n in (low, high))
    if low >= high:
        raise call.unsupported("an empty slice")
    return x if (low, high) == (0, length) else call.op("slice", x, axis=axis, start=low, stop=high)


def _split(call: Call) -> Sequence[Value]:
    """split, split_with_sizes and chunk: as many parts along the axis as torch found."""
    x = call.tensor("self")
    axis = call.axis("dim", x.tensor.rank)
    parts, start = [], 0
    for index in range(len(call.result())):
        width = call.shape(index)[axis]
        if not isinstance(width, int):
            raise call.unsupported("only fixed axes can be split")
        parts.append(_part(call, x, axis, start, start + width))
        start += width
    return parts


def _select(call: Call) -> Value:
    x = call.tensor("self")
    axis, index = call.axis("dim", x.tensor.rank), call.integer("index")
    stop = None if index == -1 else index + 1
    kept = x if x.tensor.shape[axis] == 1 else _part(call, x, axis, index, stop)
    return call.reshape(kept, call.shape())


def _unbind(call: Call) -> Sequence[Value]:
    x = call.tensor("self")
    axis = call.axis("dim", x.tensor.rank)
    count = len(call.result())
    return [call.reshape(_part(call, x, axis, i, i + 1), call.shape(i)) for i in range(count)]


def _concatenate(call: Call) -> Value:
    # torch lets empty vectors join anything: the empty cache of a first step.
    parts = [x for x in call.tensors("tensors") if x.tensor.shape != (0,)]
    axis = call.axis("dim", parts[0].tensor.rank)
    return parts[0] if len(parts) == 1 else call.op("concat", *(call.cast(x, call.dtype) for x in parts), axis=axis)


def _stack(call: Call) -> Value:
    shape = call.shape()
    axis = call.axis("dim", len(shape))
    parts = [call.reshape(x, (*shape[:axis], 1, *shape[axis + 1 :])) for x in call.tensors("tensors")]
    return call.op("concat", *parts, axis=axis)


def _outer(call: Call) -> Value:
    a, b = call.cast(call.tensor("self"), call.dtype), call.cast(call.tensor("vec2"), call.dtype)
    return call.op("mul", call.reshape(a, (*a.tensor.shape, 1)), call.reshape(b, (1, *b.tensor.shape)))


def _repeat_interleave(call: Call) -> Value:
    """Every element of an axis repeated in place: how KV heads are shared."""
    x, count = call.tensor("self"), call.integer("repeats")
    if call.raw["dim"] is None:
        raise call.unsupported("dim must be given")
    axis = call.axis("dim", x.tensor.rank)
    before, after = x.tensor.shape[: axis + 1], x.tensor.shape[axis + 1 :]
    wide = call.broadcast(call.reshape(x, (*before, 1, *after)), (*before, count, *after))
    return call.reshape(wide, call.shape())


_VIEWS = "view reshape _unsafe_view _reshape_alias unsqueeze squeeze flatten unflatten view_copy ravel".split()

SHAPES: dict[str, Importer] = {
    **dict.fromkeys(_VIEWS, _view),
    "expand": _expand,
    "expand_as": _expand,
    "broadcast_to": _expand,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "t": _matrix_transpose,
    "mT": _matrix_transpose,
    "numpy_T": _matrix_transpose,
    "slice": _slice,
    "narrow": lambda call: _part(
        call,
        call.tensor("self"),
        call.axis("dim", call.tensor("self").tensor.rank),
        call.raw["start"],
        call.integer("start") + call.integer("length"),
    ),
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "select": _select,
    "unbind": _unbind,
    "cat": _concatenate,
    "concat": _concatenate,
    "stack": _stack,
    "outer": _outer,
    "repeat_interleave": _repeat_interleave,
}
"""ATen name -> what imports it."""
