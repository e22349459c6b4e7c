"""Attention temperature by position, for layers without rotation (Nakanishi 2025; Llama 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import I32
from ..levels import MODEL
from ..types import TensorType, Type


def temperatures(positions: Array, e: Evaluation) -> Array:
    """1 + scale * ln(1 + floor((position + 1) / floor)) of each position, in the width of the evaluation.

    The quotient is formed in f32, as the references do, so that the steps lie where theirs do.
    """
    kind = e.float_type.type
    blocks = np.floor((positions.astype(np.float32) + np.float32(1)) / np.float32(e.number("floor")))
    return np.asarray(np.log1p(blocks.astype(kind)) * kind(e.number("scale")) + kind(1))


def check_floor(s: Signature) -> None:
    """Refuse a `floor` that positions cannot be divided by."""
    floor = s.attributes["floor"]
    if not isinstance(floor, float) or not floor > 0:
        raise OpError(f"attribute 'floor' must be positive, not {floor}")


def _infer(s: Signature) -> Sequence[Type]:
    q, positions = s.ranked(0, 3), s.tensor(1)
    if not q.dtype.is_float or positions != TensorType((q.shape[1],), I32):
        raise OpError(f"q {q} must be float [heads, T, head_dim] and positions {positions} i32 [T]")
    check_floor(s)
    return [q]


def _evaluate(e: Evaluation) -> Sequence[Any]:
    q, positions = e.inputs
    return [e.rounded(q * temperatures(positions, e)[None, :, None])]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "temper",
        frozenset({MODEL}),
        ("q", "positions"),
        {"floor": "float", "scale": "float"},
        _infer,
        _evaluate,
        "q [heads, T, head_dim] times 1 + scale * ln(1 + floor((positions[t] + 1) / floor)).",
    ),
)
