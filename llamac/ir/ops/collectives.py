"""Ops that bring the ranks of a sharded module together, and the weights that each of them holds a part of.

The modules of all ranks are equal but for the parts of weights, so every rank comes to the same collectives in the same
order. Their meaning needs all ranks: `llamac.ir.ranks` runs the modules side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..graph import Attribute
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import TensorType, Type

_BELOW = frozenset({MODEL, KERNEL})


def _ranks(s: Signature) -> int:
    ranks = s.integer("ranks")
    if ranks < 2:
        raise OpError(f"attribute 'ranks' must be at least 2, not {ranks}")
    if not s.tensor(0).dtype.is_float or s.tensor(0).rank != 2:
        raise OpError(f"{s.tensor(0)} holds no rows of floats")
    return ranks


def _infer_all_reduce(s: Signature) -> Sequence[Type]:
    _ranks(s)
    if len(s.types) == 2 and s.tensor(1) != s.tensor(0):
        raise OpError(f"the residual {s.tensor(1)} is not of the type {s.tensor(0)}")
    return [s.tensor(0)]


def _evaluate_all_reduce(e: Evaluation) -> Sequence[Any]:
    parts = e.of_all_ranks("all_reduce", e.inputs[0])
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return [e.rounded(total + e.inputs[1] if len(e.inputs) == 2 else total)]


def _infer_all_gather(s: Signature) -> Sequence[Type]:
    ranks, (rows, width) = _ranks(s), s.tensor(0).shape
    return [s.tensor(0).with_shape(rows, width * ranks)]


def _evaluate_all_gather(e: Evaluation) -> Sequence[Any]:
    return [np.concatenate(e.of_all_ranks("all_gather", e.inputs[0]), axis=1)]


def _infer_part(s: Signature) -> Sequence[Type]:
    t = s.tensor(0)
    axis, start, stop = s.axis("axis", t.rank), s.integer("start"), s.integer("stop")
    length = t.shape[axis]
    if t.rank != 2 or not isinstance(length, int) or not 0 <= start < stop <= length:
        raise OpError(f"[{start}, {stop}) is no part of axis {axis} of the matrix {t}")
    shape = [stop - start, t.shape[1]] if axis == 0 else [t.shape[0], stop - start]
    return [t.with_shape(*shape)]


def _evaluate_part(e: Evaluation) -> Sequence[Any]:
    # The evaluator gives the wanted rows already, and all of their columns.
    columns = slice(e.integer("start"), e.integer("stop")) if e.integer("axis") == 1 else slice(None)
    found: Array = e.inputs[0][:, columns]
    return [np.ascontiguousarray(found)]


def _rows_of_part(
    attributes: Mapping[str, Attribute], types: Sequence[TensorType], lo: int, hi: int
) -> list[tuple[int, int] | None]:
    axis, start = attributes["axis"], attributes["start"]
    assert isinstance(start, int)
    return [(start + lo, start + hi)] if axis == 0 else [(lo, hi)]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "all_reduce",
        _BELOW,
        ("x", "residual?"),
        {"ranks": "int"},
        _infer_all_reduce,
        _evaluate_all_reduce,
        "The sum of every rank's x, first to last, and of the residual, which all ranks share.",
    ),
    OpDefinition(
        "all_gather",
        _BELOW,
        ("x",),
        {"ranks": "int"},
        _infer_all_gather,
        _evaluate_all_gather,
        "The columns of every rank's x, first to last.",
    ),
    OpDefinition(
        "part",
        frozenset({CAPTURED, MODEL, KERNEL}),
        ("weight",),
        {"axis": "int", "start": "int", "stop": "int"},
        _infer_part,
        _evaluate_part,
        "Rows (axis 0) or columns (axis 1) [start, stop) of a weight: what one rank holds.",
        rows=_rows_of_part,
    ),
)
