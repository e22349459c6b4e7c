"""The rule for attention in standard operators, and the masks that layers share."""

from __future__ import annotations

import numpy as np

from llamac.ir.graph import Op

from .emitter import MASK, POSITIONS, Emitter, Rule

HIDDEN = float(np.finfo(np.float32).min)
"""Added to hidden scores. Finite: the row of a padding token, which sees nothing, must have a softmax."""


def length(e: Emitter, of: str) -> str:
    """The length of the second axis of an input, [1]."""
    w = e.writer
    return w.once(("length", of), lambda: w.op("Shape", of, start=1, end=2))


def _scalar(e: Emitter, vector: str) -> str:
    return e.writer.op("Squeeze", vector, e.writer.constant([0]))


def causal(e: Emitter) -> str:
    """Whether a key comes no later than a query, by its place in the cache: [tokens, total]."""
    w = e.writer

    def make() -> str:
        total, tokens = _scalar(e, length(e, MASK)), _scalar(e, length(e, e.rows))
        zero, one = w.constant(0), w.constant(1)
        keys = w.op("Range", zero, total, one)
        queries = w.op("Unsqueeze", w.op("Range", w.op("Sub", total, tokens), total, one), w.constant([1]))
        return w.op("LessOrEqual", keys, queries)

    return w.once("causal", make)


def same_chunk(e: Emitter, chunk: int) -> str:
    """Whether key and query lie in one block of `chunk` positions, padding not counted: [batch, 1, tokens, total]."""
    w = e.writer

    def make() -> str:
        size = w.constant(chunk)
        place = w.op("Sub", w.op("CumSum", MASK, w.constant(1)), w.constant(1))
        # The place of padding before the text is -1; it is hidden anyway, but division rounds it up to block 0.
        keys = w.op("Unsqueeze", w.op("Div", place, size), w.constant([1, 2]))
        queries = w.op("Unsqueeze", w.op("Div", POSITIONS, size), w.constant([1, 3]))
        return w.op("Equal", keys, queries)

    return w.once(("chunk", chunk), make)


def bias_of(e: Emitter, visible: str) -> str:
    """0 where `visible` holds, else a number that makes a weight of 0."""
    w = e.writer
    return w.op("Where", visible, w.number(0.0), w.number(HIDDEN))


def _mask(e: Emitter, chunk: int) -> str:
    """What is added to the scores of a layer: [batch, 1, 1, tokens, total]."""
    w = e.writer

    def make() -> str:
        kept = w.op("Unsqueeze", w.op("Cast", MASK, to=9), w.constant([1, 2]))
        visible = w.op("And", causal(e), kept)
        if chunk:
            visible = w.op("And", visible, same_chunk(e, chunk))
        return w.op("Unsqueeze", bias_of(e, visible), w.constant([1]))

    return w.once(("mask", chunk), make)


def attention(e: Emitter, op: Op) -> None:
    """Grouped-query attention; the queries that share a key head are rows of one product, so no key is repeated."""
    w = e.writer
    q, k, v = (e.name(value) for value in op.operands[:3])
    heads, _, head_dim = op.operands[0].tensor.shape
    kv_heads = op.operands[1].tensor.shape[0]
    scale, chunk = op.attributes["scale"], op.attributes.get("chunk", 0)
    assert isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(head_dim, int)
    assert isinstance(scale, float) and isinstance(chunk, int)
    grouped = w.op("Reshape", w.op("Mul", q, w.number(scale)), w.constant([0, kv_heads, -1, head_dim]))
    scores = w.op("MatMul", grouped, w.op("Transpose", k, perm=[0, 1, 3, 2]))
    place, w.place = w.place, "mask"
    mask, by_head, together = _mask(e, chunk), _shape(e, heads, kv_heads), _shape(e, kv_heads, 0)
    w.place = place
    scores = w.op("Add", w.op("Reshape", scores, by_head), mask)
    weights = w.op("Reshape", w.op("Softmax", scores, axis=-1), together)
    mixed = w.op("MatMul", weights, v)
    e.node("Reshape", mixed, w.constant([0, heads, -1, head_dim]), of=op.result)


def _shape(e: Emitter, heads: int, kv_heads: int) -> str:
    """Scores by head, [batch, kv_heads, heads of each, tokens, total]; or with kv_heads 0 those of a group together."""
    w = e.writer
    total = length(e, MASK)

    def make() -> str:
        if not kv_heads:
            return w.op("Concat", w.constant([0, heads, -1]), total, axis=0)
        return w.op("Concat", w.constant([0, kv_heads, heads // kv_heads, -1]), total, axis=0)

    return w.once(("scores", heads, kv_heads), make)


ATTENTION_RULES: dict[str, Rule] = {"attention": attention}
