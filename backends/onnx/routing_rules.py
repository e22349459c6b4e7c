"""Rules for mixtures of experts in standard operators: rows sorted by expert, each expert's rows multiplied alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llamac.ir.graph import Op, Weight

from .emitter import Emitter, Rule
from .product_rules import product
from .weight_parts import matrix_shape
from .weights import Rows

Product = Callable[[Emitter, str, Weight, Rows], str]
"""(emitter, x, matrix, rows of it) -> x times those rows."""


def _count(op: Op, name: str) -> int:
    value = op.attributes[name]
    assert isinstance(value, int)
    return value


def route(e: Emitter, op: Op) -> None:
    """Slots sorted by expert, stably: TopK gives the lower index first where values are equal."""
    w, k = e.writer, _count(op, "top_k")
    experts = op.operands[0].tensor.shape[1]
    assert isinstance(experts, int)
    logits = w.op("Reshape", e.name(op.operands[0]), w.constant([-1, experts]))
    best, chosen = w.ops("TopK", (logits, w.constant([k])), ("", ""), axis=1)
    slots = w.op("Reshape", chosen, w.constant([-1]))
    count = w.op("Shape", slots)
    order = _argsort(e, slots, count)
    place = _argsort(e, order, count)
    scores = w.op("Gather", w.op("Reshape", w.op("Sigmoid", best), w.constant([-1])), order)
    chose = w.op("Equal", w.op("Unsqueeze", slots, w.constant([0])), w.constant(np.arange(experts)[:, None]))
    ends = w.op("CumSum", w.op("ReduceSum", w.op("Cast", chose, to=7), w.constant([1]), keepdims=0), w.constant(0))
    offsets = w.op("Concat", w.constant([0]), ends, axis=0)
    for result, name in zip(op.results, (order, place, scores, offsets), strict=True):
        e.bind(result, name)


def _argsort(e: Emitter, values: str, count: str) -> str:
    """The stable order of integers."""
    return e.writer.ops("TopK", (values, count), ("", ""), largest=0)[1]


def gather_routed(e: Emitter, op: Op) -> None:
    """The token of each routed row, times its score: [slots, d]."""
    w, (x, order, scores) = e.writer, op.operands
    width = x.tensor.shape[1]
    assert isinstance(width, int)
    rows = w.op("Reshape", e.name(x), w.constant([-1, width]))
    tokens = w.op("Div", e.name(order), w.constant(_count(op, "top_k")))
    e.node("Mul", w.op("Gather", rows, tokens), w.op("Unsqueeze", e.name(scores), w.constant([1])), of=op.result)


def expert_linear(e: Emitter, op: Op, times: Product = product) -> None:
    """Each expert's rows times its matrix, one below the other; `times` makes the products."""
    x, weight, offsets = op.operands
    assert isinstance(weight, Weight)
    experts = offsets.tensor.shape[0]
    assert isinstance(experts, int)
    rows = matrix_shape(weight)[0] // (experts - 1)
    parts = []
    for expert in range(experts - 1):
        mine = expert_rows(e, e.name(x), e.name(offsets), expert)
        parts.append(times(e, mine, weight, (expert * rows, (expert + 1) * rows)))
    e.node("Concat", *parts, of=op.result, axis=0)


def expert_rows(e: Emitter, x: str, offsets: str, expert: int) -> str:
    """The routed rows of one expert."""
    w = e.writer

    def end(index: int) -> str:
        places = (w.constant([index]), w.constant([index + 1]), w.constant([0]))
        return w.once(("offset", offsets, index), lambda: w.op("Slice", offsets, *places))

    start, stop = end(expert), end(expert + 1)
    return w.once(("rows", x, offsets, expert), lambda: w.op("Slice", x, start, stop, w.constant([0])))


def scatter_routed(e: Emitter, op: Op) -> None:
    """The answers of its experts added to each row, the best expert's first."""
    w, (y, place, base) = e.writer, op.operands
    k, width = _count(op, "top_k"), base.tensor.shape[1]
    assert isinstance(width, int)
    shape = w.op("Shape", e.name(base))
    answers = w.op("Gather", e.name(y), w.op("Reshape", e.name(place), w.constant([-1, k])))
    total = e.name(base)
    for choice in range(k):
        answer = w.op("Gather", answers, w.constant(choice), axis=1)
        total = w.op("Add", total, w.op("Reshape", answer, shape))
    e.bind(op.result, total)


ROUTING_RULES: dict[str, Rule] = {
    "route": route,
    "gather_routed": gather_routed,
    "expert_linear": expert_linear,
    "scatter_routed": scatter_routed,
}
