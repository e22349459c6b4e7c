"""Rotary position embedding (Su et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I32
from ..graph import Attribute
from ..levels import KERNEL, MODEL
from ..types import TensorType, Type

STYLES = ("half_split", "interleaved")


def rotate(x: Array, cos: Array, sin: Array, style: str) -> Array:
    """Rotate the pairs of the last axis of x: (i, i + h/2) for half_split, (2i, 2i + 1) for interleaved."""
    if style == "half_split":
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


def half_split_order(head_dim: int, rows: int) -> np.ndarray:
    """For each row of a half-split projection, the row of the interleaved one it comes from.

    Per head: new row p * (h/2) + i is old row 2i + p.
    """
    row = np.arange(rows)
    head, inside = row // head_dim, row % head_dim
    return head * head_dim + 2 * (inside % (head_dim // 2)) + inside // (head_dim // 2)


def _infer_angles(s: Signature) -> Sequence[Type]:
    positions, frequencies = s.tensors()
    if positions.dtype is not I32 or positions.rank != 1 or frequencies.dtype is not F32 or frequencies.rank != 1:
        raise OpError(f"needs i32 positions [T] and f32 frequencies [head_dim / 2], got {positions}, {frequencies}")
    table = TensorType((positions.shape[0], frequencies.shape[0]), F32)
    return [table, table]


def _evaluate_angles(e: Evaluation) -> Sequence[Any]:
    # The references form the angle as one f32 product; exact mode keeps the product unrounded.
    angles = e.inputs[0].astype(e.float_type)[:, None] * e.inputs[1][None, :]
    return [e.rounded(np.cos(angles.astype(np.float64))), e.rounded(np.sin(angles.astype(np.float64)), 1)]


def _infer_rope(s: Signature) -> Sequence[Type]:
    x, cos, sin = s.ranked(0, 3), s.tensor(1), s.tensor(2)
    width = x.shape[-1]
    if s.text("style") not in STYLES:
        raise OpError(f"style must be one of {', '.join(STYLES)}, got '{s.text('style')}'")
    fits = isinstance(width, int) and width % 2 == 0 and cos == TensorType((x.shape[1], width // 2), F32)
    if not fits or cos != sin or not x.dtype.is_float:
        raise OpError(f"x {x} [heads, T, head_dim] does not fit cos {cos} and sin {sin}, f32 [T, head_dim / 2]")
    return [x]


def _evaluate_rope(e: Evaluation) -> Sequence[Any]:
    x, cos, sin = e.inputs
    dtype = e.result_dtype()
    if not e.exact and dtype is not F32:
        # transformers casts the tables to the activation dtype.
        cos, sin = e.rounded(cos), e.rounded(sin)
    return [e.rounded(rotate(x, cos, sin, e.text("style")))]


def _infer_to_half_split(s: Signature) -> Sequence[Type]:
    t, head_dim = s.tensor(0), s.positive("head_dim")
    rows = t.shape[0] if t.rank == 2 else None
    if not isinstance(rows, int) or head_dim % 2 or rows % head_dim:
        raise OpError(f"{t} does not hold whole heads of {head_dim} rows")
    return [t]


def _whole_heads(
    attributes: Mapping[str, Attribute], types: Sequence[TensorType], lo: int, hi: int
) -> list[tuple[int, int] | None]:
    head_dim = attributes["head_dim"]
    assert isinstance(head_dim, int)
    if lo % head_dim or hi % head_dim:
        return [None]
    return [(lo, hi)]


def _evaluate_to_half_split(e: Evaluation) -> Sequence[Any]:
    x = e.inputs[0]
    return [x[half_split_order(e.integer("head_dim"), x.shape[0])]]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "rope_angles",
        frozenset({MODEL, KERNEL}),
        ("positions", "inverse_frequencies"),
        {},
        _infer_angles,
        _evaluate_angles,
        "cos and sin of positions[t] * inverse_frequencies[i].",
    ),
    OpDefinition(
        "rope",
        frozenset({MODEL}),
        ("x", "cos", "sin"),
        {"style": "str"},
        _infer_rope,
        _evaluate_rope,
        "Rotary embedding of x [heads, T, head_dim]; style says which elements form a pair.",
    ),
    OpDefinition(
        "rows_to_half_split",
        frozenset({MODEL, KERNEL}),
        ("weight",),
        {"head_dim": "int"},
        _infer_to_half_split,
        _evaluate_to_half_split,
        "Output rows of a projection reordered from interleaved to half-split pairs, head by head.",
        rows=_whole_heads,
    ),
)
