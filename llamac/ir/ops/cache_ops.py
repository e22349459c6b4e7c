"""The paged key/value cache and calls of outlined layers: what turns one sequence's graph into the ragged step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I32, round_to
from ..levels import KERNEL
from ..types import CacheType, TensorType, Type
from .attention import softmax_rows
from .rotary import rotate


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


def _check_rows(s: Signature, first: int, tokens: object) -> None:
    positions, sequences, pages = s.tensor(first), s.tensor(first + 1), s.tensor(first + 2)
    if positions != TensorType((tokens,), I32) or sequences != positions:  # type: ignore[arg-type]
        raise OpError(f"positions {positions} and sequence numbers {sequences} must be i32 [{tokens}]")
    if pages.rank != 2 or pages.dtype is not I32:
        raise OpError(f"page tables {pages} must be i32 [sequences, pages]")


def _heads(s: Signature, cache: CacheType) -> int:
    heads = s.integer("heads")
    if heads <= 0 or heads % cache.kv_heads:
        raise OpError(f"{heads} query heads do not share {cache.kv_heads} kv heads evenly")
    layer = s.attributes["layer"]
    if isinstance(layer, int) and not 0 <= layer < cache.layers:
        raise OpError(f"layer {layer} is outside {cache}")
    return heads


def _infer_append(s: Signature) -> Sequence[Type]:
    cache, qkv, cos, sin = s.cache(0), s.ranked(1, 2), s.tensor(2), s.tensor(3)
    heads, tokens = _heads(s, cache), qkv.shape[0]
    if qkv != TensorType((tokens, (heads + 2 * cache.kv_heads) * cache.head_dim), F32):
        raise OpError(f"qkv {qkv} does not hold {heads} q, {cache.kv_heads} k and v heads of {cache.head_dim}")
    if cos != TensorType((tokens, cache.head_dim // 2), F32) or sin != cos:
        raise OpError(f"cos {cos} and sin {sin} must be f32 [{tokens}, {cache.head_dim // 2}]")
    _check_rows(s, 4, tokens)
    return [cache, TensorType((tokens, heads * cache.head_dim), F32)]


def _evaluate_append(e: Evaluation) -> Sequence[Any]:
    state, qkv, cos, sin, positions, sequences, pages = e.inputs
    kind, heads, layer = state.type, e.integer("heads"), e.integer("layer")
    rows = qkv.reshape(len(qkv), -1, kind.head_dim)
    q, k, v = np.split(rows, [heads, heads + kind.kv_heads], axis=1)
    q = rotate(q, cos[:, None], sin[:, None], "half_split")
    k = rotate(k, cos[:, None], sin[:, None], "half_split")
    new = CacheState(kind, state.keys.copy(), state.values.copy())
    for t, position in enumerate(positions):
        page, slot = pages[sequences[t], position // kind.page], position % kind.page
        for store, row in ((new.keys, k[t]), (new.values, v[t])):
            store[page, layer, :, slot] = row if e.exact else round_to(row, kind.dtype)
    return [new, e.rounded(q.reshape(len(qkv), -1), 1)]


def _infer_attend(s: Signature) -> Sequence[Type]:
    cache, q = s.cache(1), s.ranked(0, 2)
    heads = _heads(s, cache)
    if q != TensorType((q.shape[0], heads * cache.head_dim), F32):
        raise OpError(f"q {q} does not hold {heads} heads of {cache.head_dim}")
    _check_rows(s, 2, q.shape[0])
    return [q]


def _evaluate_attend(e: Evaluation) -> Sequence[Any]:
    q, state, positions, sequences, pages = e.inputs
    kind, heads, layer = state.type, e.integer("heads"), e.integer("layer")
    group = heads // kind.kv_heads
    out = np.empty_like(q)
    for t, position in enumerate(positions):
        mine = pages[sequences[t], : position // kind.page + 1]
        # [pages, kv_heads, page, head_dim] -> [kv_heads, position + 1, head_dim]
        keys, values = (
            store[mine, layer].transpose(1, 0, 2, 3).reshape(kind.kv_heads, -1, kind.head_dim)[:, : position + 1]
            for store in (state.keys, state.values)
        )
        query = q[t].reshape(kind.kv_heads, group, kind.head_dim)
        scores = query @ keys.transpose(0, 2, 1) * q.dtype.type(e.number("scale"))
        out[t] = (softmax_rows(scores) @ values).reshape(-1)
    return [e.rounded(out)]


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
        ("cache", "qkv", "cos", "sin", "positions", "sequence_of_token", "page_tables"),
        {"layer": "dim", "heads": "int"},
        _infer_append,
        _evaluate_append,
        "Rotates q and k of qkv [T, (H + 2K) h] (half-split), writes k and v into the cache; results: cache, q.",
    ),
    OpDefinition(
        "attend",
        frozenset({KERNEL}),
        ("q", "cache", "positions", "sequence_of_token", "page_tables"),
        {"layer": "dim", "heads": "int", "scale": "float"},
        _infer_attend,
        _evaluate_attend,
        "Attention of each row over its sequence's cached keys up to its own position.",
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
