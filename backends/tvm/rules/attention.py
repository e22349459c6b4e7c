"""Attention of one sequence: what a layer adds to the keys and values, and what each row makes of those it sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from llamac.ir.dtypes import F16, I8

from ..kernel import Kernel
from ..loops import Buffer, Expression, index
from ..values import exp, f32, rounded
from .rows import folded, lanes_of

KEYS, VALUES = 0, 1
"""The first operands and results of an op that appends, where a cache stood."""


def append(k: Kernel) -> None:
    """(past keys, past values, qkv, ...) -> keys, values, q."""
    _append(k, rotated=False)


def rope_append(k: Kernel) -> None:
    """(past keys, past values, qkv, cos, sin, ...) -> keys, values, q, with q and the new keys rotated."""
    _append(k, rotated=True)


def _append(k: Kernel, rotated: bool) -> None:
    kv_heads, width = (int(str(k.op.operands[KEYS].shape[n])) for n in (0, 2))
    heads = k.integer("heads")
    past = k.size(k.op.operands[KEYS].shape[1])
    for side in (KEYS, VALUES):
        stored = k.operand(side)
        with k.code.each(past * kv_heads) as n, k.code.loop(width) as i:
            at = [tirx.floordiv(n, past), tirx.floormod(n, past), i]
            k.code.store(k.result(side), at, stored[tuple(at)])
    with k.code.each(k.rows(2) * (heads + 2 * kv_heads)) as n:
        t, head = (f(n, index(heads + 2 * kv_heads)) for f in (tirx.floordiv, tirx.floormod))
        row = k.code.local(width)
        with k.code.loop(width) as i:
            k.code.store(row, [i], k.load(2, t, head * width + i))
        with k.code.when(head < heads):
            _write_head(k, row, t, width, rotated, lambda i, value: k.store(2, [t, head * width + i], value))
        with k.code.when(tirx.all(head >= heads, head < heads + kv_heads)):
            _write_kept(k, KEYS, row, t, past, head - heads, rotated)
        with k.code.when(head >= heads + kv_heads):
            _write_kept(k, VALUES, row, t, past, head - heads - kv_heads, False)


def _write_head(
    k: Kernel, row: Buffer, t: Expression, width: int, rotated: bool, write: Callable[[Expression, Expression], None]
) -> None:
    """Hand the elements of a head to `write`, rotated in pairs (i, i + width / 2) where that is wanted."""
    if not rotated:
        with k.code.loop(width) as i:
            write(i, row[i])
        return
    half = width // 2
    with k.code.loop(half) as i:
        cos, sin = k.load(3, t, i), k.load(4, t, i)
        write(i, row[i] * cos - row[i + half] * sin)
        write(i + half, row[i + half] * cos + row[i] * sin)


def _write_kept(
    k: Kernel, side: int, row: Buffer, t: Expression, past: Expression, head: Expression, rotated: bool
) -> None:
    """Write a head of a key or a value as the cache keeps it: of integers, the multiples of a scale that they are."""
    width = int(str(k.op.operands[side].shape[2]))
    if k.op.attributes.get("stored") != I8.name:
        _write_head(k, row, t, width, rotated, lambda i, value: k.store(side, [head, past + t, i], value))
        return
    wide = k.code.local(width)
    _write_head(k, row, t, width, rotated, lambda i, value: k.code.store(wide, [i], value))
    largest = k.code.filled(1, 0.0)
    with k.code.loop(width) as i:
        k.code.store(largest, [0], tirx.Max(largest[index(0)], tirx.abs(wide[i])))
    scale = k.code.kept(rounded(largest[index(0)] / f32(127.0), F16))
    inverse = k.code.kept(tirx.Select(scale > f32(0.0), f32(1.0) / scale, f32(0.0)))
    with k.code.loop(width) as i:
        bounded = tirx.Max(f32(-127.0), tirx.Min(f32(127.0), wide[i] * inverse))
        k.store(side, [head, past + t, i], tirx.nearbyint(bounded) * scale)


def attend(k: Kernel) -> None:
    """(q, keys, values, positions, ...): each row over the keys up to its own position, from its chunk's first on."""
    chunk = int(str(k.op.attributes.get("chunk", 0)))

    def seen(t: Expression) -> tuple[Expression, Expression]:
        position = k.code.kept_index(k.row_number(3, t))
        first = tirx.floordiv(position, index(chunk)) * chunk if chunk else index(0)
        return first, position + 1

    attend_each(k, seen)


def attend_range(k: Kernel) -> None:
    """(q, keys, values, start, stop, ...): each row over the vision tokens start[t] .. stop[t] - 1; else zeros."""
    attend_each(k, lambda t: (k.row_number(3, t), k.row_number(4, t)))


def attend_each(k: Kernel, seen: Callable[[Expression], tuple[Expression, Expression]]) -> None:
    """softmax(q k^T * scale) v of every row and head, over the keys that `seen` says, in one pass over them."""
    keys = k.op.operands[1]
    width, heads = int(str(keys.shape[2])), k.integer("heads")
    group = heads // int(str(keys.shape[0]))
    with k.code.each(k.rows(0) * heads) as n:
        t, head = tirx.floordiv(n, index(heads)), tirx.floormod(n, index(heads))
        own = tirx.floordiv(head, index(group))
        first, stop = seen(t)
        query = k.code.local(width)
        with k.code.loop(width) as i:
            k.code.store(query, [i], k.load(0, t, head * width + i) * f32(k.number("scale")))
        sums = OnlineSoftmax(k, width)
        sums.see(query, tirx.Max(stop - first, index(0)), partial(_element, k, own, first))
        sums.finish(lambda i, value: k.store(0, [t, head * width + i], value))


def _element(k: Kernel, head: Expression, first: Expression, side: int, s: Expression, i: Expression) -> Expression:
    """Element i of the key (side 0) or value (1) of a head, s positions after the first."""
    return k.load(1 + side, head, first + s, i)


Load = Callable[[int, Expression, Expression], Expression]
"""(side, s, i) -> element i of the s-th key (side 0) or value (1)."""

TOGETHER = 16
"""Keys that are weighed together."""

NOTHING = -3.0e38
"""The score of no key."""


class OnlineSoftmax:
    """A row's answer while its keys are seen, some at a time (Milakov and Gimelshein 2018)."""

    def __init__(self, k: Kernel, width: int) -> None:
        self._k, self._width, self._lanes = k, width, lanes_of(width)
        self._answer = k.code.local(width)
        with k.code.loop(width // self._lanes) as block, k.code.lanes(self._lanes) as lane:
            k.code.store(self._answer, [block * self._lanes + lane], f32(0.0))
        self._largest = k.code.filled(1, NOTHING)
        self._total = k.code.filled(1, 0.0)

    def see(self, query: Buffer, count: Expression, load: Load) -> None:
        """The next `count` keys and values."""
        code, lanes = self._k.code, self._lanes
        with code.loop(tirx.floordiv(count + (TOGETHER - 1), index(TOGETHER))) as block:
            weights = self._weights(query, count, block * TOGETHER, load)
            with code.loop(TOGETHER) as n, code.when(block * TOGETHER + n < count):
                weight = code.kept(weights[n])
                with code.loop(self._width // lanes) as part, code.lanes(lanes) as lane:
                    at = part * lanes + lane
                    code.add_to(self._answer, at, weight * load(1, block * TOGETHER + n, at))

    def _weights(self, query: Buffer, count: Expression, first: Expression, load: Load) -> Buffer:
        """What the keys from `first` on count for; what was seen before is made as small as it is beside them."""
        code, lanes = self._k.code, self._lanes
        scores = code.filled(TOGETHER, NOTHING)
        with code.loop(TOGETHER) as n, code.when(first + n < count):
            parts = code.filled(lanes, 0.0)
            with code.loop(self._width // lanes) as part, code.lanes(lanes) as lane:
                at = part * lanes + lane
                code.add_to(parts, lane, query[at] * load(0, first + n, at))
            code.store(scores, [n], folded(self._k, parts, lanes))
        before = code.kept(self._largest[index(0)])
        with code.loop(TOGETHER) as n:
            code.store(self._largest, [0], tirx.Max(self._largest[index(0)], scores[n]))
        largest = code.kept(self._largest[index(0)])
        shrink = code.kept(exp(before - largest, code.on_gpu))
        weights, summed = code.local(TOGETHER), code.local(TOGETHER)
        with code.lanes(TOGETHER) as n:
            weight = code.kept(exp(scores[n] - largest, code.on_gpu))
            shown = tirx.Select(scores[n] > f32(NOTHING), weight, f32(0.0))
            code.store(weights, [n], shown)
            code.store(summed, [n], shown)
        code.store(self._total, [0], self._total[index(0)] * shrink + folded(self._k, summed, TOGETHER))
        with code.loop(self._width // lanes) as part, code.lanes(lanes) as lane:
            at = part * lanes + lane
            code.store(self._answer, [at], self._answer[at] * shrink)
        return weights

    def finish(self, write: Callable[[Expression, Expression], None]) -> None:
        """Hand the answer to `write`; zeros where no key was seen."""
        code = self._k.code
        total = self._total[index(0)]
        inverse = code.kept(tirx.Select(total > f32(0.0), f32(1.0) / total, f32(0.0)))
        with code.loop(self._width) as i:
            write(i, self._answer[i] * inverse)


RULES = {"append": append, "rope_append": rope_append, "attend": attend, "attend_range": attend_range}
"""Opcode -> rule."""
