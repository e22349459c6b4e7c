"""RMS normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..levels import KERNEL, MODEL
from ..types import Type


def _infer(s: Signature) -> Sequence[Type]:
    x, weight = s.tensors()
    if not x.rank or weight.shape != (x.shape[-1],) or not x.dtype.is_float or not weight.dtype.is_float:
        raise OpError(f"x {x} does not fit weight {weight}")
    return [x]


def normalized(x: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) over the last axis, in the width of x."""
    one = x.dtype.type(1)
    return np.asarray(x * (one / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps))))


def _evaluate(e: Evaluation) -> Sequence[Any]:
    x, weight = e.inputs
    return [e.rounded(e.rounded(normalized(x, e.number("eps"))) * weight)]


def _infer_add(s: Signature) -> Sequence[Type]:
    x, residual, weight = s.tensors()
    if x != residual:
        raise OpError(f"x {x} and residual {residual} must have one type")
    return [x, *_infer(Signature([x, weight], s.attributes))]


def _evaluate_add(e: Evaluation) -> Sequence[Any]:
    x, residual, weight = e.inputs
    total = e.rounded(x + residual)
    return [total, e.rounded(e.rounded(normalized(total, e.number("eps")), 1) * weight, 1)]


def _infer_unit(s: Signature) -> Sequence[Type]:
    x = s.tensor(0)
    if not x.rank or not x.dtype.is_float:
        raise OpError(f"x {x} must be a float tensor with an axis")
    return [x]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "rms_norm",
        frozenset({MODEL, KERNEL}),
        ("x", "weight"),
        {"eps": "float"},
        _infer,
        _evaluate,
        "x / sqrt(mean(x^2) + eps) in f32, rounded to x's dtype, times weight (Zhang and Sennrich 2019).",
    ),
    OpDefinition(
        "unit_rms_norm",
        frozenset({MODEL}),
        ("x",),
        {"eps": "float"},
        _infer_unit,
        lambda e: [e.rounded(normalized(e.inputs[0], e.number("eps")))],
        "x / sqrt(mean(x^2) + eps) over the last axis: rms_norm without a weight.",
    ),
    OpDefinition(
        "add_rms_norm",
        frozenset({MODEL}),
        ("x", "residual", "weight"),
        {"eps": "float"},
        _infer_add,
        _evaluate_add,
        "x + residual, and the rms_norm of that sum.",
    ),
)
