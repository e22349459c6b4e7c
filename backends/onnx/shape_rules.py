"""Rules for ops that move elements, and for plain arithmetic."""

from __future__ import annotations

from llamac.ir.dtypes import BF16, F16, F32
from llamac.ir.graph import Op, Value, Weight

from .emitter import Emitter, Rule, with_batch
from .graph_writer import GraphWriter

_FLOATS = {F32: 1, F16: 10, BF16: 16}


def reshape(e: Emitter, op: Op) -> None:
    """The batch stays in front."""
    shape = e.writer.constant(with_batch(op.result.tensor))
    e.node("Reshape", e.name(op.operands[0]), shape, of=op.result)


def transpose(e: Emitter, op: Op) -> None:
    """Every axis moves one back."""
    permutation = op.attributes["permutation"]
    assert isinstance(permutation, tuple)
    axes = [0, *(axis + 1 for axis in permutation if isinstance(axis, int))]
    e.node("Transpose", e.name(op.operands[0]), of=op.result, perm=axes)


def slice_axis(e: Emitter, op: Op) -> None:
    """Elements [start, stop) of one axis."""
    e.bind(op.result, sliced(e.writer, e.name(op.operands[0]), _axis(op), *_span(op)))


def _axis(op: Op) -> int:
    axis = op.attributes["axis"]
    assert isinstance(axis, int)
    return axis if axis < 0 else axis + 1


def _span(op: Op) -> tuple[int, int]:
    start, stop = op.attributes["start"], op.attributes["stop"]
    assert isinstance(start, int) and isinstance(stop, int)
    return start, stop


def sliced(w: GraphWriter, x: str, axis: int, start: int, stop: int) -> str:
    """Elements [start, stop) of an axis of an ONNX value."""
    return w.op("Slice", x, *(w.constant([value]) for value in (start, stop, axis)))


def concat(e: Emitter, op: Op) -> None:
    """Joined along one axis."""
    e.node("Concat", *e.operands(op), of=op.result, axis=_axis(op))


def cast(e: Emitter, op: Op) -> None:
    """A cast; ONNX values are f32, so that only what is stored narrower changes."""
    e.node("Cast", e.name(op.operands[0]), of=op.result, to=_FLOATS[op.result.tensor.dtype])


def add(e: Emitter, op: Op) -> None:
    """A sum; of a weight, which is the same for the whole batch."""
    e.node("Add", *(_added(e, value) for value in op.operands), of=op.result)


def _added(e: Emitter, value: Value) -> str:
    if not isinstance(value, Weight):
        return e.name(value)
    return e.weights.vector(value) if value.tensor.rank == 1 else e.weights.floats(value, False)


SHAPE_RULES: dict[str, Rule] = {
    "reshape": reshape,
    "transpose": transpose,
    "slice": slice_axis,
    "concat": concat,
    "cast": cast,
    "add": add,
}
