"""Rules for image encoders in standard operators; the batch in front is one of tiles, or of whole pictures."""

from __future__ import annotations

import math

import numpy as np

from llamac.ir.graph import DataSource, Op, Value, Weight

from .attention_rules import bias_of
from .emitter import Emitter, Rule


def _count(op: Op, name: str) -> int:
    value = op.attributes[name]
    assert isinstance(value, int)
    return value


def _width(value: Value) -> int:
    width = value.tensor.shape[-1]
    assert isinstance(width, int)
    return width


def layer_norm(e: Emitter, op: Op) -> None:
    """ONNX has it as it is."""
    epsilon = op.attributes["eps"]
    scales = [e.weights.vector(weight) for weight in op.operands[1:]]
    e.node("LayerNormalization", e.name(op.operands[0]), *scales, of=op.result, axis=-1, epsilon=epsilon)


def gelu(e: Emitter, op: Op) -> None:
    """x * (1 + erf(x / sqrt(2))) / 2, in the form that ONNX Runtime knows how to fuse."""
    w, x = e.writer, e.name(op.operands[0])
    error = w.op("Erf", w.op("Div", x, w.number(math.sqrt(2))))
    e.node("Mul", w.op("Mul", x, w.op("Add", error, w.number(1.0))), w.number(0.5), of=op.result)


def cos_sin(e: Emitter, op: Op) -> None:
    """Tables of fixed angles, the same for the whole batch: [1, tokens, head_dim / 2]."""
    w, (angles,) = e.writer, op.operands
    assert isinstance(angles, Weight)
    table = w.op("Unsqueeze", e.weights.floats(angles, False), w.constant([0]))
    e.node("Cos", table, of=op.results[0])
    e.node("Sin", table, of=op.results[1])


def full_attention(e: Emitter, op: Op) -> None:
    """Every token sees every token, but padding no padding."""
    w = e.writer
    q, k, v, *padding = (e.name(value) for value in op.operands)
    scale = op.attributes["scale"]
    assert isinstance(scale, float)
    scores = w.op("MatMul", w.op("Mul", q, w.number(scale)), w.op("Transpose", k, perm=[0, 1, 3, 2]))
    if padding:
        scores = w.op("Add", scores, w.once(("padding", padding[0]), lambda: _padding_bias(e, padding[0])))
    e.node("MatMul", w.op("Softmax", scores, axis=-1), v, of=op.result)


def _padding_bias(e: Emitter, padding: str) -> str:
    """[batch, 1, tokens, tokens]: hidden where both are padding."""
    w = e.writer
    both = w.op("And", *(w.op("Unsqueeze", padding, w.constant([axis])) for axis in (1, 2)))
    return w.op("Unsqueeze", bias_of(e, w.op("Not", both)), w.constant([1]))


def add_class_token(e: Emitter, op: Op) -> None:
    """A row more for each tile, before its others or after them."""
    w, (x, token), tiles = e.writer, op.operands, _count(op, "tiles")
    width = _width(x)
    split = w.op("Reshape", e.name(x), w.constant([0, tiles, -1, width]))
    shape = w.op("Concat", w.op("Shape", split, start=0, end=2), w.constant([1, width]), axis=0)
    row = w.op("Expand", e.weights.vector(token), shape)
    parts = (split, row) if op.attributes["place"] == "last" else (row, split)
    e.node("Reshape", w.op("Concat", *parts, axis=2), w.constant([0, -1, width]), of=op.result)


def lookup_row(e: Emitter, op: Op) -> None:
    """One row of a table of integers, which is part of the graph."""
    w, (table, index) = e.writer, op.operands
    assert isinstance(table, Weight) and isinstance(table.source, DataSource)
    values = np.frombuffer(table.source.data, "<i4").reshape(table.tensor.shape)  # type: ignore[arg-type]
    rows = w.op("Gather", w.constant(values), e.name(index))
    e.node("Squeeze", rows, w.constant([1]), of=op.result)


def tile_rows(e: Emitter, op: Op) -> None:
    """The rows of the tiles of a shape, in a table of `tiles` rows for each: [batch, tiles]."""
    w, tiles = e.writer, _count(op, "tiles")
    first = w.op("Mul", e.name(op.operands[0]), w.constant(tiles))
    e.node("Add", first, w.constant(np.arange(tiles)), of=op.result)


def add_places(e: Emitter, op: Op) -> None:
    """x plus a gated row of a table for each tile; nothing for a tile without a place."""
    w, (x, table, gate, *index), tiles = e.writer, op.operands, _count(op, "tiles")
    assert isinstance(table, Weight)
    factor = w.op("Tanh", e.weights.vector(gate))
    if op.attributes["complement"]:
        factor = w.op("Sub", w.number(1.0), factor)
    rows = w.op("Reshape", e.weights.floats(table, False), w.constant([-1, _count(op, "each")]))
    values = w.op("Mul", _of_places(e, rows, index), factor)
    split = w.op("Reshape", e.name(x), w.constant([0, tiles, -1, _width(x)]))
    shape = w.constant([0, tiles if index else 1, -1, _width(x)])
    total = w.op("Add", split, w.op("Reshape", values, shape))
    e.node("Reshape", total, w.constant([0, -1, _width(x)]), of=op.result)


def _of_places(e: Emitter, rows: str, index: list[Value]) -> str:
    """The row of each tile, [batch, tiles, each]; without places the first row, for all of them."""
    w = e.writer
    if not index:
        return w.op("Gather", rows, w.constant([[0]]))
    places = e.name(index[0])
    found = w.op("Gather", rows, w.op("Max", places, w.constant(0)))
    missing = w.op("Unsqueeze", w.op("Less", places, w.constant(0)), w.constant([2]))
    return w.op("Where", missing, w.number(0.0), found)


def pad_tiles(e: Emitter, op: Op) -> None:
    """Zeros behind the tokens of each tile."""
    w, (x,), tiles = e.writer, op.operands, _count(op, "tiles")
    tokens, width = x.tensor.shape
    assert isinstance(tokens, int) and isinstance(width, int)
    split = w.op("Reshape", e.name(x), w.constant([0, tiles, -1, width]))
    behind = w.constant([0, 0, 0, 0, 0, 0, _count(op, "padded") - tokens // tiles, 0])
    e.node("Reshape", w.op("Pad", split, behind), w.constant([0, -1, width]), of=op.result)


def tile_padding(e: Emitter, op: Op) -> None:
    """Whether each token is padding: [batch, tiles * padded]."""
    w, slots = e.writer, e.name(op.operands[0])
    late = w.constant(np.arange(_count(op, "padded")) >= _count(op, "tokens"), np.bool_)
    empty = w.op("Unsqueeze", w.op("Less", slots, w.constant(0)), w.constant([2]))
    e.node("Flatten", w.op("Or", empty, late), of=op.result, axis=1)


ENCODER_RULES: dict[str, Rule] = {
    "layer_norm": layer_norm,
    "gelu": gelu,
    "cos_sin": cos_sin,
    "full_attention": full_attention,
    "add_class_token": add_class_token,
    "lookup_row": lookup_row,
    "tile_rows": tile_rows,
    "add_places": add_places,
    "pad_tiles": pad_tiles,
    "tile_padding": tile_padding,
}
