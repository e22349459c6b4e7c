"""Kernels of the gated MLP's first half: one packed weight of gate rows and up rows, and silu(gate) * up at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32
from ..layouts import PANEL
from ..levels import KERNEL
from ..types import Type
from .arithmetic import silu
from .quantized import (
    check_inputs,
    inputs_of,
    packed_shape,
    quantized,
    quantized_types,
    unpacked,
    widened_inputs,
)


def _width(s: Signature, weight: int) -> int:
    """How many gates there are, which is how many ups there are."""
    _, rows, _ = packed_shape(s, weight)
    if rows % (2 * PANEL):
        raise OpError(f"{rows} rows are not gates and as many ups in whole panels of {PANEL}")
    return rows // 2


def _infer_dense(s: Signature) -> Sequence[Type]:
    width, (fmt, _, columns) = _width(s, 1), packed_shape(s, 1)
    x = s.ranked(0, 2)
    if not fmt.is_dense or x.shape[1] != columns or x.dtype is not F32:
        raise OpError(f"x {x} does not fit a dense weight with {columns} columns in {fmt.name}")
    return [x.with_shape(x.shape[0], width)]


def _infer_grouped(s: Signature) -> Sequence[Type]:
    width, (fmt, _, columns) = _width(s, 3), packed_shape(s, 3)
    return quantized_types(s, check_inputs(s, 0, fmt, columns), width)


def _gated(product: Array) -> Array:
    gate, up = np.split(product, 2, axis=-1)
    return np.asarray(silu(gate) * up)


def _evaluate_dense(e: Evaluation) -> Sequence[Any]:
    return [e.rounded(_gated(inputs_of(e, e.inputs[0]) @ unpacked(e, 1).T))]


def _evaluate_grouped(e: Evaluation) -> Sequence[Any]:
    quants, scale, *_ = e.inputs
    return quantized(e, _gated(widened_inputs(e, quants, scale) @ unpacked(e, 3).T))


_PACKED = {"format": "str", "rows": "int", "columns": "int"}

OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "gated_linear_dense",
        frozenset({KERNEL}),
        ("x", "weight"),
        _PACKED,
        _infer_dense,
        _evaluate_dense,
        "silu(gate) * up of x times a packed float weight, whose rows are gates, then as many ups.",
    ),
    OpDefinition(
        "gated_linear_grouped",
        frozenset({KERNEL}),
        ("quants", "scales", "sums", "weight"),
        {**_PACKED, "block": "int", "padded": "int"},
        _infer_grouped,
        _evaluate_grouped,
        "The same of int8 activations times a packed integer weight, quantized as quantize_rows does.",
    ),
)
