"""Grouped-query attention of one sequence (Ainslie et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import I32
from ..levels import MODEL
from ..types import Type


def softmax_rows(scores: Array) -> Array:
    """Softmax over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _infer(s: Signature) -> Sequence[Type]:
    q, k, v, positions = s.ranked(0, 3), s.ranked(1, 3), s.tensor(2), s.tensor(3)
    fits = k == v and q.shape[2] == k.shape[2] and q.dtype is k.dtype and q.dtype.is_float
    heads, kv_heads = q.shape[0], k.shape[0]
    shared = isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads == 0
    if not fits or not shared:
        raise OpError(f"q {q}, k {k}, v {v}: expected [H, T, h], [K, S, h], [K, S, h] with H a multiple of K")
    if positions.dtype is not I32 or positions.shape != (q.shape[1],):
        raise OpError(f"positions {positions} must be i32 [{q.shape[1]}]")
    if "chunk" in s.attributes:
        s.positive("chunk")
    return [q]


def _evaluate(e: Evaluation) -> Sequence[Any]:
    q, k, v, positions = e.inputs
    group = q.shape[0] // k.shape[0]
    keys, values = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scores = e.rounded(e.rounded(q @ keys.transpose(0, 2, 1)) * q.dtype.type(e.number("scale")))
    keys_at, queries_at = np.arange(k.shape[1])[None, :], positions[:, None]
    hidden = keys_at > queries_at
    if "chunk" in e.attributes:
        hidden |= keys_at // e.integer("chunk") != queries_at // e.integer("chunk")
    scores = np.where(hidden[None], -np.inf, scores)
    return [e.rounded(e.rounded(softmax_rows(scores)) @ values)]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "attention",
        frozenset({MODEL}),
        ("q", "k", "v", "positions"),
        {"scale": "float", "chunk": "int?"},
        _infer,
        _evaluate,
        "softmax(q k^T * scale, keys after positions[t], or in another chunk, hidden) v; head i reads kv head i K / H.",
    ),
)
