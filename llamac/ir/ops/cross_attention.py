"""Attention to vision tokens (Llama 3.2 Vision): each row sees a range [start, stop) of them, some rows see nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I32
from ..levels import KERNEL, MODEL
from ..types import TensorType, Type
from .attention import softmax_rows
from .cache_ops import attended, check_rows, query_heads


def _check_ranges(s: Signature, first: int, tokens: object) -> None:
    start, stop = s.tensor(first), s.tensor(first + 1)
    if start != TensorType((tokens,), I32) or stop != start:  # type: ignore[arg-type]
        raise OpError(f"start {start} and stop {stop} must be i32 [{tokens}]")


def _infer_cross_attention(s: Signature) -> Sequence[Type]:
    q, k, v = s.ranked(0, 3), s.ranked(1, 3), s.tensor(2)
    fits = k == v and q.shape[2] == k.shape[2] and q.dtype is k.dtype and q.dtype.is_float
    heads, kv_heads = q.shape[0], k.shape[0]
    shared = isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads == 0
    if not fits or not shared:
        raise OpError(f"q {q}, k {k}, v {v}: expected [H, T, h], [K, M, h], [K, M, h] with H a multiple of K")
    _check_ranges(s, 3, q.shape[1])
    return [q]


def _evaluate_cross_attention(e: Evaluation) -> Sequence[Any]:
    q, k, v, start, stop = e.inputs
    group = q.shape[0] // k.shape[0]
    keys, values = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scores = e.rounded(e.rounded(q @ keys.transpose(0, 2, 1)) * q.dtype.type(e.number("scale")))
    at, nothing = np.arange(k.shape[1])[None, :], stop <= start
    hidden = ((at < start[:, None]) | (at >= stop[:, None])) & ~nothing[:, None]
    weights = e.rounded(softmax_rows(np.where(hidden[None], -np.inf, scores)))
    return [np.where(nothing[None, :, None], q.dtype.type(0), e.rounded(weights @ values))]


def _infer_attend_range(s: Signature) -> Sequence[Type]:
    cache, q = s.cache(1), s.ranked(0, 2)
    if not cache.cross:
        raise OpError(f"{cache} does not hold vision tokens")
    if q != TensorType((q.shape[0], query_heads(s, cache) * cache.head_dim), F32):
        raise OpError(f"q {q} does not hold {s.integer('heads')} heads of {cache.head_dim}")
    _check_ranges(s, 2, q.shape[0])
    check_rows(s, 3, q.shape[0])
    return [q]


def _evaluate_attend_range(e: Evaluation) -> Sequence[Any]:
    q, state, start, stop, sequences, pages = e.inputs
    out = np.zeros_like(q)
    for t in np.flatnonzero(start < stop):
        out[t] = attended(e, q[t], state, pages[sequences[t]], int(start[t]), int(stop[t]))
    return [e.rounded(out)]


def _infer_gated_add(s: Signature) -> Sequence[Type]:
    x, residual, gate = s.ranked(0, 2), s.tensor(1), s.tensor(2)
    if x != residual or not x.dtype.is_float:
        raise OpError(f"x {x} and residual {residual} must be floats of one type")
    if gate.shape != (1,) or not gate.dtype.is_float:
        raise OpError(f"the gate {gate} is not one number")
    if len(s.types) == 4:
        raise OpError("has a start and no stop")
    if len(s.types) > 3:
        _check_ranges(s, 3, x.shape[0])
    return [x]


def _evaluate_gated_add(e: Evaluation) -> Sequence[Any]:
    x, residual, gate, *ranges = e.inputs
    total: Array = e.rounded(residual + e.rounded(x * e.rounded(np.tanh(gate))))
    if not ranges:
        return [total]
    start, stop = ranges
    return [np.where((start < stop)[:, None], total, residual)]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "cross_attention",
        frozenset({MODEL}),
        ("q", "k", "v", "start", "stop"),
        {"scale": "float"},
        _infer_cross_attention,
        _evaluate_cross_attention,
        "softmax(q k^T * scale over the keys start[t] .. stop[t] - 1) v; zeros where that is empty.",
    ),
    OpDefinition(
        "attend_range",
        frozenset({KERNEL}),
        ("q", "cache", "start", "stop", "sequence_of_token", "page_tables"),
        {"layer": "dim", "heads": "int", "scale": "float"},
        _infer_attend_range,
        _evaluate_attend_range,
        "Attention of each row over the cached vision tokens start[t] .. stop[t] - 1 of its sequence; else zeros.",
    ),
    OpDefinition(
        "gated_add",
        frozenset({MODEL, KERNEL}),
        ("x", "residual", "gate", "start?", "stop?"),
        {},
        _infer_gated_add,
        _evaluate_gated_add,
        "residual + tanh(gate) x, gate one number; with ranges, the residual alone in rows whose range is empty.",
    ),
)
