"""Rules for pictures in a text model, in standard operators: rows of them, and attention to vision tokens.

Who sees which vision tokens is an input of the graph.
"""

from __future__ import annotations

from llamac.ir.graph import Op

from .attention_rules import bias_of
from .emitter import Emitter, Rule
from .interfaces import CROSS_MASK


def visible(e: Emitter, keys: str) -> str:
    """What each token sees of the vision tokens of `keys`, as many for every tile: [batch, tokens, vision_tokens]."""
    w = e.writer

    def make() -> str:
        # No -1 and no 0 that copies: there may be no pictures, so that lengths are 0.
        first = w.op("Shape", CROSS_MASK, start=0, end=2)
        tiles = w.op("ReduceProd", w.op("Shape", CROSS_MASK, start=2), keepdims=1)
        count = w.op("Shape", keys, start=2, end=3)
        each = w.op("Div", count, w.op("Max", tiles, w.constant([1])))
        by_tile = w.op("Reshape", _seen(e), w.op("Concat", first, tiles, w.constant([1]), axis=0), allowzero=1)
        spread = w.op("Expand", by_tile, w.op("Concat", first, tiles, each, axis=0))
        return w.op("Reshape", spread, w.op("Concat", first, count, axis=0), allowzero=1)

    return w.once("visible", make)


def _seen(e: Emitter) -> str:
    w = e.writer
    return w.once("seen tiles", lambda: w.op("Cast", CROSS_MASK, to=9))


def sees_something(e: Emitter) -> str:
    """Whether a token sees any tile: [batch, tokens, 1]."""
    w = e.writer

    def make() -> str:
        count = w.op("ReduceSum", CROSS_MASK, w.constant([2, 3]), keepdims=0)
        return w.op("Unsqueeze", w.op("Greater", count, w.constant(0)), w.constant([2]))

    return w.once("sees something", make)


def cross_attention(e: Emitter, op: Op) -> None:
    """Each token over the vision tokens that it sees, heads that share keys side by side; zeros where it sees none."""
    w = e.writer
    q, k, v = (e.name(value) for value in op.operands[:3])
    heads, _, size = op.operands[0].tensor.shape
    kv_heads, scale = op.operands[1].tensor.shape[0], op.attributes["scale"]
    assert isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(size, int) and isinstance(scale, float)
    place, w.place = w.place, "cross_mask"
    bias = w.once("cross bias", lambda: w.op("Unsqueeze", bias_of(e, visible(e, k)), w.constant([1, 2])))
    seen = w.once("rows that see", lambda: w.op("Unsqueeze", sees_something(e), w.constant([1])))
    w.place = place
    shape = w.constant([0, kv_heads, heads // kv_heads, -1, size])
    grouped = w.op("Reshape", w.op("Mul", q, w.number(scale)), shape)
    keys, values = (w.op("Unsqueeze", part, w.constant([2])) for part in (k, v))
    scores = w.op("MatMul", grouped, w.op("Transpose", keys, perm=[0, 1, 2, 4, 3]))
    weights = w.op("Softmax", w.op("Add", scores, bias), axis=-1)
    mixed = w.op("Reshape", w.op("MatMul", weights, values), w.constant([0, heads, -1, size]))
    e.node("Where", seen, mixed, w.number(0.0), of=op.result)


def gated_add(e: Emitter, op: Op) -> None:
    """residual + tanh(gate) x; the residual alone where a token sees nothing."""
    w, (x, residual, gate, *ranges) = e.writer, op.operands
    added = w.op("Mul", e.name(x), w.op("Tanh", e.weights.vector(gate)))
    if not ranges:
        e.node("Add", e.name(residual), added, of=op.result)
        return
    total = w.op("Add", e.name(residual), added)
    e.node("Where", sees_something(e), total, e.name(residual), of=op.result)


def merge_rows(e: Emitter, op: Op) -> None:
    """Rows of image embeddings where tokens have one, the embedded text elsewhere."""
    w = e.writer
    hidden, images, rows = (e.name(value) for value in op.operands)
    is_text = w.op("Unsqueeze", w.op("Less", rows, w.constant(0)), w.constant([2]))
    found = w.op("Gather", images, w.op("Max", rows, w.constant(0)))
    e.node("Where", is_text, hidden, found, of=op.result)


CROSS_RULES: dict[str, Rule] = {
    "cross_attention": cross_attention,
    "gated_add": gated_add,
    "merge_rows": merge_rows,
}
