"""Grouped products over packed expert weights: each routed row times the matrix of its expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I8, I32, U8
from ..layouts import PANEL, WeightFormat, format_of, unpack
from ..levels import KERNEL
from ..types import TensorType, Type
from .quantized import inputs_of
from .routing import by_expert


def _stack(s: Signature, weight: int, offsets: int) -> tuple[WeightFormat, int, int]:
    """The format, rows of one expert and columns of a packed stack, checked against its experts' offsets."""
    fmt, rows, columns = format_of(s.text("format")), s.positive("rows"), s.positive("columns")
    experts = s.positive("experts")
    if rows % PANEL:
        raise OpError(f"experts of {rows} rows do not fill whole panels of {PANEL}")
    expected = TensorType((fmt.panels(rows * experts), fmt.panel_bytes(columns)), U8)
    if s.tensor(weight) != expected:
        raise OpError(f"{experts} {rows} x {columns} matrices in {fmt.name} are {expected}, got {s.tensor(weight)}")
    if s.tensor(offsets) != TensorType((experts + 1,), I32):
        raise OpError(f"offsets {s.tensor(offsets)} must be i32 [{experts + 1}]")
    return fmt, rows, columns


def _infer_dense(s: Signature) -> Sequence[Type]:
    fmt, rows, columns = _stack(s, 1, 2)
    x = s.ranked(0, 2)
    if not fmt.is_dense or x.shape[1] != columns or x.dtype is not F32:
        raise OpError(f"x {x} does not fit dense experts over {columns} columns in {fmt.name}")
    return [x.with_shape(x.shape[0], rows)]


def _infer_grouped(s: Signature) -> Sequence[Type]:
    fmt, rows, columns = _stack(s, 3, 4)
    quants, scale, total = s.ranked(0, 2), s.tensor(1), s.tensor(2)
    padded, tokens = fmt.padded_columns(columns), quants.shape[0]
    if fmt.is_dense or quants != TensorType((tokens, padded), I8):
        raise OpError(f"activations {quants} do not fit {fmt.name} with {columns} columns")
    blocks = (tokens, padded // fmt.block)
    if scale != TensorType(blocks, F32) or total != TensorType(blocks, I32):
        raise OpError(f"scales {scale} and sums {total} must have shape {list(blocks)}")
    return [TensorType((tokens, rows), F32)]


def _unpacked(e: Evaluation, weight: int) -> np.ndarray:
    rows = e.integer("rows") * e.integer("experts")
    fmt = format_of(e.text("format"))
    return unpack(fmt, e.inputs[weight], rows, e.integer("columns")).astype(e.float_type)


def _evaluate_dense(e: Evaluation) -> Sequence[Any]:
    return [e.rounded(by_expert(inputs_of(e, e.inputs[0]), _unpacked(e, 1), e.inputs[2]))]


def _evaluate_grouped(e: Evaluation) -> Sequence[Any]:
    quants, scale, _, _, offsets = e.inputs
    block = quants.shape[1] // scale.shape[1]
    x = quants.astype(e.float_type) * np.repeat(scale, block, axis=1).astype(e.float_type)
    return [e.rounded(by_expert(x[:, : e.integer("columns")], _unpacked(e, 3), offsets))]


_PACKED = {"format": "str", "rows": "int", "columns": "int", "experts": "int"}

OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "expert_linear_dense",
        frozenset({KERNEL}),
        ("x", "weight", "offsets"),
        _PACKED,
        _infer_dense,
        _evaluate_dense,
        "Each routed row times the packed float matrix of its expert; `rows` are those of one expert.",
    ),
    OpDefinition(
        "expert_linear_grouped",
        frozenset({KERNEL}),
        ("quants", "scales", "sums", "weight", "offsets"),
        _PACKED,
        _infer_grouped,
        _evaluate_grouped,
        "Each routed int8 row times the packed integer matrix of its expert; `rows` are those of one expert.",
    ),
)
