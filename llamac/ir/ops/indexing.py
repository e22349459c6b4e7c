"""Integer ramps and row lookups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Evaluation, OpDefinition, OpError, Signature
from ..dims import Dim, evaluate
from ..dtypes import I32, DType
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import TensorType, Type
from .linear import check_format


def _infer_iota(s: Signature) -> Sequence[Type]:
    length, dtype = s.attributes["length"], s.attributes["dtype"]
    assert isinstance(length, int | Dim) and isinstance(dtype, DType)
    return [TensorType((length,), dtype)]


def _evaluate_iota(e: Evaluation) -> Sequence[Any]:
    length = e.attributes["length"]
    assert isinstance(length, int | Dim)
    return [e.rounded(np.arange(evaluate(length, e.symbols)))]


def _infer_rows(s: Signature) -> Sequence[Type]:
    table, ids = s.tensors()
    if ids.dtype is not I32 or ids.rank != 1 or table.rank != 2:
        raise OpError(f"needs a rank-2 table and i32 row numbers, got {table} and {ids}")
    check_format(s)
    return [TensorType((ids.shape[0], table.shape[1]), table.dtype)]


def _infer_merge(s: Signature) -> Sequence[Type]:
    x, images, rows = s.ranked(0, 2), s.ranked(1, 2), s.tensor(2)
    if images != x.with_shape(images.shape[0], x.shape[1]) or not x.dtype.is_float:
        raise OpError(f"the rows of {images} are not like those of {x}")
    if rows != TensorType((x.shape[0],), I32):
        raise OpError(f"row numbers {rows} must be i32 [{x.shape[0]}]")
    return [x]


def _evaluate_merge(e: Evaluation) -> Sequence[Any]:
    x, images, rows = e.inputs
    return [np.where((rows >= 0)[:, None], images[np.maximum(rows, 0)], x)]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "iota",
        frozenset({CAPTURED, MODEL}),
        (),
        {"length": "dim", "dtype": "dtype"},
        _infer_iota,
        _evaluate_iota,
        "0, 1, ..., length - 1.",
    ),
    OpDefinition(
        "embedding",
        frozenset({CAPTURED, MODEL}),
        ("table", "ids"),
        {"format": "str?"},
        _infer_rows,
        lambda e: [e.inputs[0][e.inputs[1]]],
        "Row ids[i] of the table.",
    ),
    OpDefinition(
        "select_rows",
        frozenset({MODEL, KERNEL}),
        ("x", "rows"),
        {},
        _infer_rows,
        lambda e: [e.inputs[0][e.inputs[1]]],
        "Row rows[i] of an activation: only the positions whose logits are wanted.",
    ),
    OpDefinition(
        "merge_rows",
        frozenset({MODEL, KERNEL}),
        ("x", "images", "rows"),
        {},
        _infer_merge,
        _evaluate_merge,
        "Row t is images[rows[t]] where rows[t] >= 0, else x[t]: pictures among the embedded text.",
    ),
)
