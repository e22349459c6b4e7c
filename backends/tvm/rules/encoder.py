"""Image encoders: norms, activations, attention among all tokens, places of tiles, padding, rearranged pixels."""

from __future__ import annotations

import math
from functools import partial

from tvm import tirx

from llamac.ir.layouts import PANEL
from llamac.ir.ops.encoder_kernels import PAGE

from ..kernel import Kernel
from ..loops import Expression, index
from ..values import f32, i32, to_index
from .attention import OnlineSoftmax


def layer_norm(k: Kernel) -> None:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""
    width = k.width()
    with k.code.each(k.rows()) as t:
        total = k.code.filled(1, 0.0)
        with k.code.loop(width) as i:
            k.code.add_to(total, 0, k.load(0, t, i))
        mean = k.code.kept(total[index(0)] / f32(float(width)))
        squares = k.code.filled(1, 0.0)
        with k.code.loop(width) as i:
            centered = k.load(0, t, i) - mean
            k.code.add_to(squares, 0, centered * centered)
        inverse = k.code.kept(f32(1.0) / tirx.sqrt(squares[index(0)] / f32(float(width)) + f32(k.number("eps"))))
        with k.code.loop(width) as i:
            k.store(0, [t, i], (k.load(0, t, i) - mean) * inverse * k.load(1, i) + k.load(2, i))


def gelu(k: Kernel) -> None:
    """x * (1 + erf(x / sqrt(2))) / 2."""
    with k.code.each(k.rows()) as t, k.code.loop(k.width()) as i:
        x = k.code.kept(k.load(0, t, i))
        k.store(0, [t, i], x * f32(0.5) * (f32(1.0) + tirx.erf(x * f32(math.sqrt(0.5)))))


def rearrange(k: Kernel) -> None:
    """The elements x[offset + i . strides] for every index i of shape, as rows."""
    shape, strides, columns = k.integers("shape"), k.integers("strides"), k.integer("columns")
    source = k.op.operands[0].shape
    with k.code.each(math.prod(shape) // columns) as row, k.code.loop(columns) as column:
        place: Expression = index(k.integer("offset"))
        left = row * columns + column
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            place = place + tirx.floormod(left, index(size)) * stride
            left = tirx.floordiv(left, index(size))
        at = k.code.kept_index(place)
        indices = []
        for dim in reversed(source):
            indices.append(tirx.floormod(at, index(int(str(dim)))))
            at = tirx.floordiv(at, index(int(str(dim))))
        k.store(0, [row, column], k.load(0, *reversed(indices)))


def add_class_token(k: Kernel) -> None:
    """Each tile's rows, and a row more before or after them."""
    tiles = k.integer("tiles")
    own = int(str(k.op.operands[0].shape[0])) // tiles
    late = k.text("place") == "last"
    with k.code.each(tiles * (own + 1)) as row, k.code.loop(k.width()) as i:
        tile, inside = tirx.floordiv(row, index(own + 1)), tirx.floormod(row, index(own + 1))
        is_token = inside == (own if late else 0)
        source = tirx.Max(tirx.Min(inside if late else inside - 1, index(own - 1)), index(0))
        value = tirx.if_then_else(is_token, k.load(1, i), k.load(0, tile * own + source, i))
        k.store(0, [row, i], value)


def add_places(k: Kernel) -> None:
    """x plus tanh(gate), or 1 less that, times row index[tile] of a table; nothing for index -1."""
    tiles, each, width = k.integer("tiles"), k.integer("each"), k.width()
    rows = int(str(k.op.operands[0].shape[0]))
    columns = k.width(1)
    with k.code.each(rows) as row:
        tile, inside = tirx.floordiv(row, index(rows // tiles)), tirx.floormod(row, index(rows // tiles))
        gate = tirx.tanh(k.load(2, 0))
        factor = k.code.kept(f32(1.0) - gate if k.op.attributes["complement"] else gate)
        place = k.code.kept(k.load(3, tile) if k.has(3) else i32(0), "int32")
        first = k.code.kept_index(to_index(tirx.Max(place, i32(0))) * each)
        with k.code.loop(width) as i:
            at = first + (i if each == width else inside * width + i)
            value = k.load(1, tirx.floordiv(at, index(columns)), tirx.floormod(at, index(columns)))
            shown = tirx.if_then_else(place < i32(0), f32(0.0), value * factor)
            k.store(0, [row, i], k.load(0, row, i) + shown)


def tile_rows(k: Kernel) -> None:
    """The rows that hold what each tile adds."""
    with k.code.each(k.integer("tiles")) as tile:
        k.store(0, [tile], k.load(0, 0) * i32(k.integer("tiles")) + tirx.Cast("int32", tile))


def pad_tiles(k: Kernel) -> None:
    """The tokens of each tile, and zeros up to `padded` of them."""
    tiles, padded = k.integer("tiles"), k.integer("padded")
    own = int(str(k.op.operands[0].shape[0])) // tiles
    with k.code.each(tiles * padded) as row, k.code.loop(k.width()) as i:
        tile, inside = tirx.floordiv(row, index(padded)), tirx.floormod(row, index(padded))
        source = k.load(0, tile * own + tirx.Min(inside, index(own - 1)), i)
        k.store(0, [row, i], tirx.if_then_else(inside < own, source, f32(0.0)))


def order_tokens(k: Kernel) -> None:
    """The tokens with padding last, each kind in its order, and how many are no padding."""
    tiles, tokens, padded = int(str(k.op.operands[0].shape[0])), k.integer("tokens"), k.integer("padded")
    with k.code.once():
        count = k.code.filled(1, 0, "int32")
        for wants_padding in (False, True):
            with k.code.loop(tiles) as tile, k.code.loop(padded) as inside:
                real = tirx.all(k.load(0, tile) >= i32(0), inside < tokens)
                with k.code.when(tirx.Not(real) if wants_padding else real):
                    k.store(0, [to_index(count[index(0)])], tirx.Cast("int32", tile * padded + inside))
                    k.code.store(count, [0], count[index(0)] + 1)
            if not wants_padding:
                k.store(1, [0], count[index(0)])


def rope_pairs(k: Kernel) -> None:
    """q and k of joined rows rotated in adjacent pairs; v as it is."""
    heads, width = k.integer("heads"), k.integer("head_dim")
    with k.code.each(k.rows()) as t:
        with k.code.loop(2 * heads) as head, k.code.loop(width // 2) as pair:
            at = head * width + 2 * pair
            even, odd = k.code.kept(k.load(0, t, at)), k.code.kept(k.load(0, t, at + 1))
            cos, sin = k.load(1, t, pair), k.load(2, t, pair)
            k.store(0, [t, at], even * cos - odd * sin)
            k.store(0, [t, at + 1], odd * cos + even * sin)
        with k.code.loop(heads * width) as i:
            k.store(0, [t, 2 * heads * width + i], k.load(0, t, 2 * heads * width + i))


def token_pages(k: Kernel) -> None:
    """k and v of joined rows as pages of 256 tokens, in the given order, keys 16 by 16; zeros behind the last token."""
    heads, width = k.integer("heads"), k.integer("head_dim")
    tokens = int(str(k.op.operands[0].shape[0]))
    pages = -(-tokens // PAGE)
    with k.code.each(pages * heads * PAGE) as n:
        slot = tirx.floormod(n, index(PAGE))
        row = tirx.floordiv(n, index(PAGE))
        page, head = tirx.floordiv(row, index(heads)), tirx.floormod(row, index(heads))
        at = page * PAGE + slot
        known = tirx.Min(at, index(tokens - 1))
        source = k.code.kept_index(k.row_number(1, known) if k.has(1) else known)
        panel, lane = tirx.floordiv(slot, index(PANEL)), tirx.floormod(slot, index(PANEL))
        with k.code.loop(width) as i:
            for part, place in ((1, panel * width * PANEL + i * PANEL + lane), (2, (PAGE + slot) * width + i)):
                value = k.load(0, source, (part * heads + head) * width + i)
                k.store(0, [row, place], tirx.if_then_else(at < tokens, value, f32(0.0)))


def attend_tokens(k: Kernel) -> None:
    """Attention of q to every token in pages; rows order[real:], which are padding, see the first `real` only."""
    heads, width = k.integer("heads"), k.integer("head_dim")
    tokens = int(str(k.op.operands[0].shape[0]))
    with k.code.each(tokens * heads) as n:
        number, head = tirx.floordiv(n, index(heads)), tirx.floormod(n, index(heads))
        # Rows in the order of the pages: which of them are padding is known by their number then.
        t = k.code.kept_index(k.row_number(2, number) if k.has(2) else number)
        stop: Expression = index(tokens)
        if k.has(3):
            real = k.row_number(3, 0)
            stop = k.code.kept_index(tirx.Select(number >= real, real, index(tokens)))
        query = k.code.local(width)
        with k.code.loop(width) as i:
            k.code.store(query, [i], k.load(0, t, head * width + i) * f32(k.number("scale")))
        sums = OnlineSoftmax(k, width)
        sums.see(query, stop, partial(_paged, k, head))
        sums.finish(lambda i, value: k.store(0, [t, head * width + i], value))


def _paged(k: Kernel, head: Expression, side: int, at: Expression, i: Expression) -> Expression:
    """Element i of the key (side 0) or the value (1) of a head at a place in the pages."""
    heads, width = k.integer("heads"), k.integer("head_dim")
    row = tirx.floordiv(at, index(PAGE)) * heads + head
    slot = tirx.floormod(at, index(PAGE))
    panel, lane = tirx.floordiv(slot, index(PANEL)), tirx.floormod(slot, index(PANEL))
    return k.load(1, row, (PAGE + slot) * width + i if side else (panel * width + i) * PANEL + lane)


def append_tokens(k: Kernel) -> None:
    """(past keys, past values, kv, ...) -> keys and values of vision tokens, in their order."""
    kv_heads, width = (int(str(k.op.results[0].shape[n])) for n in (0, 2))
    with k.code.each(k.rows(2)) as t, k.code.loop(kv_heads) as head, k.code.loop(width) as i:
        for side in (0, 1):
            k.store(side, [head, t, i], k.load(2, t, (side * kv_heads + head) * width + i))


RULES = {
    "layer_norm": layer_norm,
    "gelu": gelu,
    "rearrange": rearrange,
    "add_class_token": add_class_token,
    "add_places": add_places,
    "tile_rows": tile_rows,
    "pad_tiles": pad_tiles,
    "order_tokens": order_tokens,
    "rope_pairs": rope_pairs,
    "token_pages": token_pages,
    "attend_tokens": attend_tokens,
    "append_tokens": append_tokens,
}
"""Opcode -> rule."""
