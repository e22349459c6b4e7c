"""The paged key/value cache and calls of outlined layers: what turns one sequence's graph into the ragged step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import E4M3FN, F32, I32, round_to
from ..levels import KERNEL
from ..types import CacheType, TensorType, Type
from .attention import softmax_rows
from .normalization import normalized
from .rotary import rotate
from .temperature import check_floor, temperatures


@dataclass
class CacheState:
    """The interpreter's cache: keys and values [pages, layers, kv_heads, page, head_dim]."""

    type: CacheType
    keys: Array
    values: Array

    @classmethod
    def empty(cls, type: CacheType, pages: int, exact: bool) -> CacheState:
        """A zeroed cache of `pages` pages."""
        shape = (pages, type.layers, type.kv_heads, type.page, type.head_dim)
        kind = np.float64 if exact else np.float32
        return cls(type, np.zeros(shape, kind), np.zeros(shape, kind))


def check_rows(s: Signature, first: int, tokens: object) -> None:
    """Operands from `first` on are positions, sequence numbers and page tables of `tokens` rows."""
    positions, sequences, pages = s.tensor(first), s.tensor(first + 1), s.tensor(first + 2)
    if positions != TensorType((tokens,), I32) or sequences != positions:  # type: ignore[arg-type]
        raise OpError(f"positions {positions} and sequence numbers {sequences} must be i32 [{tokens}]")
    if pages.rank != 2 or pages.dtype is not I32:
        raise OpError(f"page tables {pages} must be i32 [sequences, pages]")


def check_kv_scales(s: Signature, index: int, cache: CacheType) -> None:
    """Operand `index`, if there is one, holds what keys and values of each head of the cache are multiplied with."""
    if index < len(s.types) and s.tensor(index) != TensorType((2 * cache.kv_heads,), F32):
        raise OpError(f"{s.tensor(index)} must hold f32 scales of the keys and values of {cache.kv_heads} heads")


def query_heads(s: Signature, cache: CacheType) -> int:
    """The attribute `heads`, which must fit the cache, as must `layer`."""
    heads = s.integer("heads")
    if heads <= 0 or heads % cache.kv_heads:
        raise OpError(f"{heads} query heads do not share {cache.kv_heads} kv heads evenly")
    layer = s.attributes["layer"]
    if isinstance(layer, int) and not 0 <= layer < cache.layers:
        raise OpError(f"layer {layer} is outside {cache}")
    return heads


def _qkv(s: Signature, index: int, cache: CacheType) -> TensorType:
    """The joined q, k and v rows that fit a cache."""
    qkv, heads = s.ranked(index, 2), query_heads(s, cache)
    if qkv != TensorType((qkv.shape[0], (heads + 2 * cache.kv_heads) * cache.head_dim), F32):
        raise OpError(f"qkv {qkv} does not hold {heads} q, {cache.kv_heads} k and v heads of {cache.head_dim}")
    return qkv


def _infer_rope_append(s: Signature) -> Sequence[Type]:
    cache, cos, sin = s.cache(0), s.tensor(2), s.tensor(3)
    tokens = _qkv(s, 1, cache).shape[0]
    if cos != TensorType((tokens, cache.head_dim // 2), F32) or sin != cos:
        raise OpError(f"cos {cos} and sin {sin} must be f32 [{tokens}, {cache.head_dim // 2}]")
    check_rows(s, 4, tokens)
    check_kv_scales(s, 7, cache)
    return [cache, TensorType((tokens, s.integer("heads") * cache.head_dim), F32)]


def _infer_append(s: Signature) -> Sequence[Type]:
    cache = s.cache(0)
    tokens = _qkv(s, 1, cache).shape[0]
    check_rows(s, 2, tokens)
    check_kv_scales(s, 5, cache)
    return [cache, TensorType((tokens, s.integer("heads") * cache.head_dim), F32)]


def split_heads(e: Evaluation, qkv: Array, kind: CacheType) -> list[Array]:
    """q, k and v as [T, heads, head_dim]."""
    heads = e.integer("heads")
    return np.split(qkv.reshape(len(qkv), -1, kind.head_dim), [heads, heads + kind.kv_heads], axis=1)


LARGEST_E4M3 = 448.0
"""The largest e4m3fn: what is larger is stored as it."""


def stored(heads: Array, kind: CacheType) -> Array:
    """Heads [K, h] as the cache gives them back: rounded, integers to multiples of the head's scale max|x| / 127."""
    if kind.dtype is E4M3FN:
        return round_to(np.clip(heads, -LARGEST_E4M3, LARGEST_E4M3), E4M3FN)
    if kind.scale is None:
        return round_to(heads, kind.dtype)
    scale = round_to(np.abs(heads).max(axis=1, keepdims=True) / heads.dtype.type(127), kind.scale)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.asarray(np.rint(np.clip(heads * inverse, -127, 127)) * scale)


def written(e: Evaluation, state: CacheState, k: Array, v: Array, rows: Sequence[Array]) -> CacheState:
    """The cache after rows k and v went to their places; `rows` may end in scales, by which they are divided."""
    positions, sequences, pages, *scales = rows
    kind, layer = state.type, e.integer("layer")
    new = CacheState(kind, state.keys.copy(), state.values.copy())
    if scales:
        k_scale, v_scale = kv_scales(kind, scales[0])
        k, v = k / k_scale, v / v_scale
    for t, position in enumerate(positions):
        page, slot = pages[sequences[t], position // kind.page], position % kind.page
        for store, row in ((new.keys, k[t]), (new.values, v[t])):
            store[page, layer, :, slot] = row if e.exact else stored(row, kind)
    return new


def kv_scales(kind: CacheType, scales: Array) -> list[Array]:
    """The scales of the keys and of the values, [kv_heads, 1] each."""
    return list(scales.reshape(2, kind.kv_heads, 1))


def _evaluate_rope_append(e: Evaluation) -> Sequence[Any]:
    state, qkv, cos, sin, *rows = e.inputs
    q, k, v = split_heads(e, qkv, state.type)
    q = rotate(q, cos[:, None], sin[:, None], "half_split")
    k = rotate(k, cos[:, None], sin[:, None], "half_split")
    return [written(e, state, k, v, rows), e.rounded(q.reshape(len(qkv), -1), 1)]


def _evaluate_append(e: Evaluation) -> Sequence[Any]:
    state, qkv, *rows = e.inputs
    q, k, v = split_heads(e, qkv, state.type)
    return [written(e, state, k, v, rows), q.reshape(len(qkv), -1)]


def _infer_heads(s: Signature) -> Sequence[Type]:
    qkv, heads, width = s.ranked(0, 2), s.positive("heads"), s.positive("head_dim")
    columns = qkv.shape[1]
    if qkv.dtype is not F32 or not isinstance(columns, int) or heads * width > columns:
        raise OpError(f"{qkv} does not begin with {heads} f32 heads of {width}")
    return [qkv]


def _infer_norm_heads(s: Signature) -> Sequence[Type]:
    width = s.integer("head_dim")
    if len(s.types) > 1 and (s.tensor(1).shape != (width,) or not s.tensor(1).dtype.is_float):
        raise OpError(f"the weight {s.tensor(1)} does not scale heads of {width}")
    return _infer_heads(s)


def _infer_temper_heads(s: Signature) -> Sequence[Type]:
    positions, tokens = s.tensor(1), s.ranked(0, 2).shape[0]
    if positions != TensorType((tokens,), I32):
        raise OpError(f"positions {positions} must be i32 [{tokens}]")
    check_floor(s)
    return _infer_heads(s)


def _on_heads(e: Evaluation, change: Callable[[Array], Array]) -> Sequence[Any]:
    qkv = e.inputs[0].copy()
    width = e.integer("heads") * e.integer("head_dim")
    first = qkv[:, :width].reshape(len(qkv), e.integer("heads"), -1)
    qkv[:, :width] = change(first).reshape(len(qkv), width)
    return [e.rounded(qkv)]


def _evaluate_norm_heads(e: Evaluation) -> Sequence[Any]:
    weight = e.inputs[1] if len(e.inputs) > 1 else None

    def norm(heads: Array) -> Array:
        normal = normalized(heads, e.number("eps"))
        return normal if weight is None else normal * weight

    return _on_heads(e, norm)


def _evaluate_temper_heads(e: Evaluation) -> Sequence[Any]:
    factors = temperatures(e.inputs[1], e)
    return _on_heads(e, lambda heads: heads * factors[:, None, None])


def _infer_attend(s: Signature) -> Sequence[Type]:
    cache, q = s.cache(1), s.ranked(0, 2)
    if cache.cross:
        raise OpError(f"{cache} holds vision tokens, which rows see by ranges")
    heads = query_heads(s, cache)
    if q.shape[1] != heads * cache.head_dim or not q.dtype.is_float:
        raise OpError(f"q {q} does not hold {heads} heads of {cache.head_dim}")
    check_rows(s, 2, q.shape[0])
    check_kv_scales(s, 5, cache)
    return [q]


def _evaluate_attend(e: Evaluation) -> Sequence[Any]:
    q, state, positions, sequences, pages, *scales = e.inputs
    out = np.empty_like(q)
    for t, position in enumerate(positions):
        first = state.type.first_visible(int(position))
        out[t] = attended(e, q[t], state, pages[sequences[t]], first, int(position) + 1, scales)
    return [e.rounded(out)]


def attended(
    e: Evaluation, row: Array, state: CacheState, pages: Array, first: int, stop: int, scales: Sequence[Array] = ()
) -> Array:
    """Attention of one row of heads over the cached positions [first, stop) of a sequence with these pages.

    scales: those of the cache, if it has any (`kv_scales`).
    """
    kind, layer = state.type, e.integer("layer")
    skipped = first // kind.page
    mine = pages[skipped : -(-stop // kind.page)]
    seen = slice(first - skipped * kind.page, stop - skipped * kind.page)
    # [pages, kv_heads, page, head_dim] -> [kv_heads, visible positions, head_dim]
    keys, values = (
        store[mine, layer].transpose(1, 0, 2, 3).reshape(kind.kv_heads, -1, kind.head_dim)[:, seen]
        for store in (state.keys, state.values)
    )
    if scales:
        k_scale, v_scale = (scale[:, None].astype(row.dtype) for scale in kv_scales(kind, scales[0]))
        keys, values = keys * k_scale, values * v_scale
    query = row.reshape(kind.kv_heads, e.integer("heads") // kind.kv_heads, kind.head_dim)
    scores = query @ keys.transpose(0, 2, 1) * row.dtype.type(e.number("scale"))
    return np.asarray((softmax_rows(scores) @ values).reshape(-1))


_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""What a scale may be: it is stored as f32, and what it divides stays finite."""


def _infer_cache_scales(s: Signature) -> Sequence[Type]:
    values = [s.attributes[name] for name in ("key", "value")]
    if not all(isinstance(v, float) and _LEAST <= v <= _MOST for v in values):
        raise OpError(f"scales of a cache must be positive numbers, not {values[0]} and {values[1]}")
    return [TensorType((2 * s.positive("heads"),), F32)]


def _evaluate_cache_scales(e: Evaluation) -> Sequence[Any]:
    both = np.array([e.number("key"), e.number("value")], np.float32)
    return [np.repeat(both, e.integer("heads"))]


def _infer_call(s: Signature) -> Sequence[Type]:
    carried = s.integer("carried")
    if not 0 < carried <= len(s.types):
        raise OpError(f"cannot carry {carried} of {len(s.types)} operands")
    return list(s.types[:carried])


def _evaluate_call(e: Evaluation) -> Sequence[Any]:
    assert e.call is not None
    return e.call(e.text("callee"), e.inputs, {"layer": e.integer("layer")})


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "rope_append",
        frozenset({KERNEL}),
        ("cache", "qkv", "cos", "sin", "positions", "sequence_of_token", "page_tables", "kv_scales?"),
        {"layer": "dim", "heads": "int"},
        _infer_rope_append,
        _evaluate_rope_append,
        "Rotates q and k of qkv [T, (H + 2K) h] (half-split), writes k and v into the cache; results: cache, q.",
    ),
    OpDefinition(
        "append",
        frozenset({KERNEL}),
        ("cache", "qkv", "positions", "sequence_of_token", "page_tables", "kv_scales?"),
        {"layer": "dim", "heads": "int"},
        _infer_append,
        _evaluate_append,
        "Writes k and v of qkv [T, (H + 2K) h] into the cache as they are; results: cache, q.",
    ),
    OpDefinition(
        "norm_heads",
        frozenset({KERNEL}),
        ("qkv", "weight?"),
        {"heads": "int", "head_dim": "int", "eps": "float"},
        _infer_norm_heads,
        _evaluate_norm_heads,
        "The first heads of each row over their root mean square, head by head, times a weight; the rest as it is.",
    ),
    OpDefinition(
        "temper_heads",
        frozenset({KERNEL}),
        ("qkv", "positions"),
        {"heads": "int", "head_dim": "int", "floor": "float", "scale": "float"},
        _infer_temper_heads,
        _evaluate_temper_heads,
        "The first heads of each row times 1 + scale ln(1 + floor((position + 1) / floor)); the rest as it is.",
    ),
    OpDefinition(
        "attend",
        frozenset({KERNEL}),
        ("q", "cache", "positions", "sequence_of_token", "page_tables", "kv_scales?"),
        {"layer": "dim", "heads": "int", "scale": "float"},
        _infer_attend,
        _evaluate_attend,
        "Attention of each row over its sequence's cached keys up to its own position, from its chunk's first on.",
    ),
    OpDefinition(
        "cache_scales",
        frozenset({KERNEL}),
        (),
        {"key": "float", "value": "float", "heads": "int"},
        _infer_cache_scales,
        _evaluate_cache_scales,
        "What keys and values of a layer are divided by before they are cached, once for each of `heads` kv heads.",
        rows=lambda attributes, types, first, last: [],
    ),
    OpDefinition(
        "call",
        frozenset({KERNEL}),
        ("operands*",),
        {"callee": "str", "carried": "int", "layer": "int"},
        _infer_call,
        _evaluate_call,
        "Runs another graph of the module; its results have the types of the first `carried` operands.",
    ),
)
