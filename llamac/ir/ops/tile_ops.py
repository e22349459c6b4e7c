"""Pictures of several tiles (Llama 3.2 Vision): what tiles add by their place, padding, the cache of vision tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I1, I32, round_to
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import TensorType, Type
from .cache_ops import CacheState
from .weights import fixed, same_rows

ONE = TensorType((1,), I32)


def _infer_lookup(s: Signature) -> Sequence[Type]:
    _, columns = fixed(s.tensor(0))
    if s.tensor(0).dtype is not I32 or s.tensor(1) != ONE:
        raise OpError(f"needs an i32 table and the number of a row, i32 [1], got {s.tensor(0)} and {s.tensor(1)}")
    return [TensorType((columns,), I32)]


def _infer_tile_rows(s: Signature) -> Sequence[Type]:
    if s.tensor(0) != ONE:
        raise OpError(f"the number of the picture's shape must be i32 [1], got {s.tensor(0)}")
    return [TensorType((s.positive("tiles"),), I32)]


def _infer_add_places(s: Signature) -> Sequence[Type]:
    x, table, gate, tiles = s.ranked(0, 2), s.tensor(1), s.tensor(2), s.positive("tiles")
    rows, columns = fixed(table)
    tokens, width = x.shape
    if not isinstance(tokens, int) or not isinstance(width, int) or tokens % tiles or not x.dtype.is_float:
        raise OpError(f"{x} does not hold the tokens of {tiles} tiles")
    each = s.positive("each")
    if each not in (width, tokens // tiles * width) or rows * columns % each or not table.dtype.is_float:
        raise OpError(f"{table} does not hold {each} values a place, one for each channel of {x}, or of a tile of it")
    if gate.shape != (1,) or not gate.dtype.is_float:
        raise OpError(f"the gate {gate} is not one number")
    if len(s.types) > 3 and s.tensor(3) != TensorType((tiles,), I32):
        raise OpError(f"the places {s.tensor(3)} must be i32 [{tiles}]")
    return [x]


def _evaluate_add_places(e: Evaluation) -> Sequence[Any]:
    x, table, gate, *index = e.inputs
    tiles, each, width = e.integer("tiles"), e.integer("each"), x.shape[1]
    factor = np.tanh(gate)
    if e.attributes["complement"]:
        factor = 1 - factor
    rows = table.reshape(-1, each)
    places = index[0].astype(np.int64) if index else np.zeros(tiles, np.int64)
    values = np.where(places[:, None] < 0, 0, rows[np.maximum(places, 0)]) * factor
    added = x.reshape(tiles, -1, width) + values.reshape(tiles, -1, width)
    return [e.rounded(added.reshape(x.shape))]


def _infer_pad(s: Signature) -> Sequence[Type]:
    x, tiles, padded = s.ranked(0, 2), s.positive("tiles"), s.positive("padded")
    tokens, width = x.shape
    if not isinstance(tokens, int) or tokens % tiles or tokens // tiles > padded or not x.dtype.is_float:
        raise OpError(f"{x} does not hold the tokens of {tiles} tiles, at most {padded} each")
    return [x.with_shape(tiles * padded, width)]


def _evaluate_pad(e: Evaluation) -> Sequence[Any]:
    x, tiles = e.inputs[0], e.integer("tiles")
    split = x.reshape(tiles, -1, x.shape[1])
    return [np.pad(split, ((0, 0), (0, e.integer("padded") - split.shape[1]), (0, 0))).reshape(e.result_shape())]


def _tokens(s: Signature) -> int:
    """How many tokens the tiles of `slots` have, padding counted."""
    slots = s.ranked(0, 1)
    tiles, padded = slots.shape[0], s.positive("padded")
    if slots.dtype is not I32 or not isinstance(tiles, int) or s.positive("tokens") > padded:
        raise OpError(f"slots {slots} must be i32, a fixed number of tiles, of at most {padded} tokens each")
    return tiles * padded


def _is_padding(e: Evaluation) -> Array:
    late = np.arange(e.integer("padded")) >= e.integer("tokens")
    return np.asarray(((e.inputs[0][:, None] < 0) | late[None, :]).reshape(-1))


def _infer_order(s: Signature) -> Sequence[Type]:
    return [TensorType((_tokens(s),), I32), ONE]


def _evaluate_order(e: Evaluation) -> Sequence[Any]:
    padding = _is_padding(e)
    return [np.argsort(padding, kind="stable").astype(np.int32), np.array([(~padding).sum()], np.int32)]


def _infer_take_rows(s: Signature) -> Sequence[Type]:
    x, rows = s.ranked(0, 2), s.ranked(1, 1)
    if not x.dtype.is_float or not isinstance(x.shape[0], int):
        raise OpError(f"{x} is not a fixed number of float rows")
    return [x.with_shape(rows.shape[0], x.shape[1])]


def _infer_append_tokens(s: Signature) -> Sequence[Type]:
    cache, kv, positions, pages = s.cache(0), s.ranked(1, 2), s.tensor(2), s.tensor(3)
    layer = s.attributes["layer"]
    if kv != TensorType((kv.shape[0], 2 * cache.kv_heads * cache.head_dim), F32) or not cache.cross:
        raise OpError(f"{kv} does not hold the k and v heads of vision tokens for {cache}")
    if positions != TensorType((kv.shape[0],), I32) or pages.rank != 2 or pages.dtype is not I32:
        raise OpError(f"positions {positions} must be i32 [{kv.shape[0]}], page tables {pages} i32 [1, pages]")
    if isinstance(layer, int) and not 0 <= layer < cache.layers:
        raise OpError(f"layer {layer} is outside {cache}")
    return [cache]


def _evaluate_append_tokens(e: Evaluation) -> Sequence[Any]:
    state, kv, positions, pages = e.inputs
    kind, layer = state.type, e.integer("layer")
    new = CacheState(kind, state.keys.copy(), state.values.copy())
    k, v = kv.reshape(len(kv), 2, kind.kv_heads, kind.head_dim).swapaxes(0, 1)
    for t, position in enumerate(positions):
        page, slot = pages[0, position // kind.page], position % kind.page
        for store, row in ((new.keys, k[t]), (new.values, v[t])):
            store[page, layer, :, slot] = row if e.exact else round_to(row, kind.dtype)
    return [new]


def _infer_columns(s: Signature) -> Sequence[Type]:
    _, columns = fixed(s.tensor(0))
    first, parts = s.integer("first"), s.positive("parts")
    if not 0 <= first <= columns or (columns - first) % parts:
        raise OpError(f"the columns of {s.tensor(0)} after the first {first} are not those of {parts} parts")
    return [s.tensor(0)]


def _evaluate_columns(e: Evaluation) -> Sequence[Any]:
    weight, first = e.inputs[0], e.integer("first")
    mixed = weight[:, first:].reshape(len(weight), -1, e.integer("parts"))
    return [np.concatenate([weight[:, :first], mixed.swapaxes(1, 2).reshape(len(weight), -1)], axis=1)]


_PADDED = {"tokens": "int", "padded": "int"}

OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "lookup_row",
        frozenset({MODEL, KERNEL}),
        ("table", "index"),
        {},
        _infer_lookup,
        lambda e: [e.inputs[0][e.inputs[1][0]]],
        "One row of a table of integers.",
    ),
    OpDefinition(
        "tile_rows",
        frozenset({MODEL, KERNEL}),
        ("shape",),
        {"tiles": "int"},
        _infer_tile_rows,
        lambda e: [(e.inputs[0][0] * e.integer("tiles") + np.arange(e.integer("tiles"))).astype(np.int32)],
        "The rows that hold what each tile adds, in a table of `tiles` rows for each shape of a picture.",
    ),
    OpDefinition(
        "add_places",
        frozenset({MODEL, KERNEL}),
        ("x", "table", "gate", "index?"),
        {"tiles": "int", "each": "int", "complement": "bool"},
        _infer_add_places,
        _evaluate_add_places,
        "x plus tanh(gate) (or 1 less that) times row index[tile] of a table, of `each` values; nothing for index -1.",
    ),
    OpDefinition(
        "pad_tiles",
        frozenset({MODEL, KERNEL}),
        ("x",),
        {"tiles": "int", "padded": "int"},
        _infer_pad,
        _evaluate_pad,
        "The tokens of each tile, and zeros up to `padded` of them.",
    ),
    OpDefinition(
        "tile_padding",
        frozenset({MODEL}),
        ("slots",),
        _PADDED,
        lambda s: [TensorType((_tokens(s),), I1)],
        lambda e: [_is_padding(e)],
        "Whether each token is padding: of a tile without a slot, or beyond the first `tokens` of its tile.",
    ),
    OpDefinition(
        "order_tokens",
        frozenset({KERNEL}),
        ("slots",),
        _PADDED,
        _infer_order,
        _evaluate_order,
        "The tokens with padding last, each kind in its order, and how many are no padding (see tile_padding).",
    ),
    OpDefinition(
        "take_rows",
        frozenset({KERNEL}),
        ("x", "rows"),
        {},
        _infer_take_rows,
        lambda e: [e.inputs[0][: len(e.inputs[1])]],
        "As many of the first rows of x as `rows` is long.",
    ),
    OpDefinition(
        "append_tokens",
        frozenset({KERNEL}),
        ("cache", "kv", "positions", "page_tables"),
        {"layer": "dim"},
        _infer_append_tokens,
        _evaluate_append_tokens,
        "Writes k and v of vision tokens into the cache of one sequence.",
    ),
    OpDefinition(
        "columns_to_parts",
        frozenset({CAPTURED, MODEL, KERNEL}),
        ("weight",),
        {"first": "int", "parts": "int"},
        _infer_columns,
        _evaluate_columns,
        "The columns after the first ones, which alternate between `parts`, part by part.",
        rows=same_rows,
    ),
)
