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
    return [TensorType((ids.shape[0], table.shape[1]), table.dtype)]


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
)
