"""Kernels that project q, k and v, change their heads, and append keys and values to the cache: one op a layer.

The same meaning as `qkv_rows16`, over weights in panels. A row's heads are normed, tempered and rotated in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dims import DimLike
from ..dtypes import F32
from ..levels import KERNEL
from ..types import TensorType, Type
from .cache_ops import CacheState, check_rows, query_heads, split_heads, written
from .normalization import normalized
from .quantized import check_inputs, inputs_of, packed_shape, unpacked, widened_inputs
from .rotary import rotate
from .temperature import check_floor, temperatures

_WEIGHT = {"qkv_dense": 2, "qkv_grouped": 4}
"""Opcode -> the operand that is the weight; positions, sequences and page tables follow, then cos and sin."""


def heads_of(
    e: Evaluation, product: Array, state: CacheState, positions: Array, angles: Sequence[Array]
) -> list[Array]:
    """q, k and v [T, heads, head_dim] of a projection; q and k normed, q tempered, both rotated, where asked."""
    q, k, v = split_heads(e, product, state.type)
    if "qk_eps" in e.attributes:
        q, k = normalized(q, e.number("qk_eps")), normalized(k, e.number("qk_eps"))
    if "floor" in e.attributes:
        q = q * temperatures(positions, e)[:, None, None]
    if angles:
        cos, sin = (table[:, None] for table in angles)
        q, k = rotate(q, cos, sin, "half_split"), rotate(k, cos, sin, "half_split")
    return [q, k, v]


def _infer(s: Signature, opcode: str, tokens: DimLike) -> Sequence[Type]:
    at, cache = _WEIGHT[opcode], s.cache(0)
    _, rows, _ = packed_shape(s, at)
    heads = query_heads(s, cache)
    if rows != (heads + 2 * cache.kv_heads) * cache.head_dim:
        raise OpError(f"{rows} rows do not hold {heads} q, {cache.kv_heads} k and v heads of {cache.head_dim}")
    check_rows(s, at + 1, tokens)
    angles = [s.tensor(i) for i in range(at + 4, len(s.types))]
    table = TensorType((tokens, cache.head_dim // 2), F32)
    if angles not in ([], [table, table]):
        raise OpError(f"cos and sin come together and must be {table}")
    if "floor" in s.attributes:
        check_floor(s)
    return [cache, TensorType((tokens, heads * cache.head_dim), F32)]


def _infer_dense(s: Signature) -> Sequence[Type]:
    fmt, _, columns = packed_shape(s, 2)
    x = s.ranked(1, 2)
    if not fmt.is_dense or x.shape[1] != columns or x.dtype is not F32:
        raise OpError(f"x {x} does not fit a dense weight with {columns} columns in {fmt.name}")
    return _infer(s, "qkv_dense", x.shape[0])


def _infer_grouped(s: Signature) -> Sequence[Type]:
    fmt, _, columns = packed_shape(s, 4)
    return _infer(s, "qkv_grouped", check_inputs(s, 1, fmt, columns))


def _evaluate(e: Evaluation, product: Array, at: int) -> Sequence[Any]:
    state, (positions, sequences, pages, *angles) = e.inputs[0], e.inputs[at + 1 :]
    q, k, v = heads_of(e, product, state, positions, angles)
    return [written(e, state, k, v, [positions, sequences, pages]), e.rounded(q.reshape(len(q), -1), 1)]


def _evaluate_dense(e: Evaluation) -> Sequence[Any]:
    return _evaluate(e, inputs_of(e, e.inputs[1]) @ unpacked(e, 2).T, 2)


def _evaluate_grouped(e: Evaluation) -> Sequence[Any]:
    x = widened_inputs(e, e.inputs[1], e.inputs[2])
    return _evaluate(e, x @ unpacked(e, 4).T, 4)


_ATTRIBUTES = {"format": "str", "rows": "int", "columns": "int", "layer": "dim", "heads": "int"}
_ATTRIBUTES |= {"qk_eps": "float?", "floor": "float?", "scale": "float?"}
_PLACES = ("positions", "sequence_of_token", "page_tables", "cos?", "sin?")

OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "qkv_dense",
        frozenset({KERNEL}),
        ("cache", "x", "weight", *_PLACES),
        _ATTRIBUTES,
        _infer_dense,
        _evaluate_dense,
        "x times q, k and v; norm of q and k, tempering of q, rotation; k and v cached; results: cache, q.",
    ),
    OpDefinition(
        "qkv_grouped",
        frozenset({KERNEL}),
        ("cache", "quants", "scales", "sums", "weight", *_PLACES),
        _ATTRIBUTES,
        _infer_grouped,
        _evaluate_grouped,
        "The same of int8 activations times a packed integer weight.",
    ),
)
