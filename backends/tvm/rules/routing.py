"""Mixtures of experts: sorting tokens by the experts that they chose, and the way there and back."""

from __future__ import annotations

from tvm import tirx

from ..kernel import Kernel
from ..loops import Expression, index
from ..values import f32, i32, sigmoid, to_index

LOWEST = -3.4028234663852886e38


def route(k: Kernel) -> None:
    """Slots sorted by expert, stably: order, place, scores, offsets. Slot t * top_k + i is token t's i-th best expert.

    `place` holds the expert of each slot first, and what it is for once the order stands.
    """
    experts, top_k = k.width(), k.integer("top_k")
    order, place, scores, offsets = 0, 1, 2, 3
    with k.code.each(k.rows()) as t, k.code.loop(experts) as expert:
        rank = k.code.filled(1, 0, "int32")
        own = k.code.kept(_ordered(k, t, expert))
        with k.code.loop(experts) as other:
            value = k.code.kept(_ordered(k, t, other))
            better = tirx.any(value > own, tirx.all(value == own, other < expert))
            k.code.store(rank, [0], rank[index(0)] + tirx.Select(better, i32(1), i32(0)))
        with k.code.when(rank[index(0)] < top_k):
            k.store(place, [t * top_k + to_index(rank[index(0)])], tirx.Cast("int32", expert))
    with k.code.once():
        count = k.code.filled(1, 0, "int32")
        with k.code.loop(experts) as expert:
            k.store(offsets, [expert], count[index(0)])
            with k.code.loop(k.rows() * top_k) as slot, k.code.when(to_index(k.result(place)[slot]) == expert):
                at = to_index(count[index(0)])
                k.store(order, [at], tirx.Cast("int32", slot))
                logit = k.code.kept(k.load(0, tirx.floordiv(slot, index(top_k)), expert))
                k.store(scores, [at], sigmoid(logit, k.code.on_gpu))
                k.code.store(count, [0], count[index(0)] + 1)
        k.store(offsets, [experts], count[index(0)])
    with k.code.each(k.rows() * top_k) as row:
        k.store(place, [to_index(k.result(order)[row])], tirx.Cast("int32", row))


def _ordered(k: Kernel, t: Expression, expert: Expression) -> Expression:
    """A logit; what is no number comes last."""
    value = k.load(0, t, expert)
    return tirx.if_then_else(value == value, value, f32(LOWEST))


def gather_routed(k: Kernel) -> None:
    """The token of each routed row, times its score."""
    with k.code.each(k.rows(1)) as row:
        token = k.code.kept_index(tirx.floordiv(k.row_number(1, row), index(k.integer("top_k"))))
        with k.code.loop(k.width(0)) as i:
            k.store(0, [row, i], k.load(0, token, i) * k.load(2, row))


def scatter_routed(k: Kernel) -> None:
    """base plus the routed rows of each token, best expert first."""
    with k.code.each(k.rows(2)) as t, k.code.loop(k.width(2)) as i:
        total = k.code.filled(1, 0.0)
        k.code.store(total, [0], k.load(2, t, i))
        for choice in range(k.integer("top_k")):
            row = k.row_number(1, t * k.integer("top_k") + choice)
            k.code.store(total, [0], total[index(0)] + k.load(0, row, i))
        k.store(0, [t, i], total[index(0)])


RULES = {"route": route, "gather_routed": gather_routed, "scatter_routed": scatter_routed}
"""Opcode -> rule."""
