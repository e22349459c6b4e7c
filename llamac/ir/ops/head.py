"""The head that ranks while it multiplies: logits, the best of every row, and the sum that a nucleus is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I32
from ..levels import KERNEL
from ..types import TensorType, Type
from .quantized import OPS as PRODUCTS

_LINEAR = {definition.name: definition for definition in PRODUCTS if definition.name.startswith("linear_")}


def _infer(s: Signature, linear: str) -> Sequence[Type]:
    (logits,) = _LINEAR[linear].infer(Signature(s.types[:-1], s.attributes))
    assert isinstance(logits, TensorType)
    rows, vocabulary = logits.shape
    count, given = s.positive("count"), s.tensor(len(s.types) - 1)
    if not isinstance(vocabulary, int) or count > vocabulary:
        raise OpError(f"{count} logits cannot be the best of {vocabulary}")
    if given != TensorType((rows,), F32):
        raise OpError(f"the inverse temperature must be {TensorType((rows,), F32)}, not {given}")
    best = logits.with_shape(rows, count)
    return [logits, TensorType((rows, count), I32), best, given]


def _evaluate(e: Evaluation, linear: str) -> Sequence[Any]:
    *inputs, inverse = e.inputs
    (logits,) = _LINEAR[linear].evaluate(Evaluation(inputs, e.attributes, e.result_types[:1], e.symbols, e.exact))
    # A stable order puts the lower id first among equals.
    ids = np.argsort(-logits, axis=1, kind="stable")[:, : e.integer("count")]
    return [logits, ids.astype(np.int32), np.take_along_axis(logits, ids, axis=1), e.rounded(_mass(logits, inverse), 3)]


def _mass(logits: Array, inverse: Array) -> Array:
    total: Array = np.exp((logits - logits.max(axis=1, keepdims=True)) * inverse[:, None]).sum(axis=1)
    return total


_ATTRIBUTES = {"format": "str", "rows": "int", "columns": "int", "count": "int"}

OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "head_dense",
        frozenset({KERNEL}),
        ("x", "weight", "inverse_temperature"),
        _ATTRIBUTES,
        lambda s: _infer(s, "linear_dense"),
        lambda e: _evaluate(e, "linear_dense"),
        "linear_dense, ids and values of the `count` largest of each row (lowest id first among equals), and "
        "sum(exp((x - max) * inverse_temperature)).",
    ),
    OpDefinition(
        "head_grouped",
        frozenset({KERNEL}),
        ("quants", "scales", "sums", "weight", "inverse_temperature"),
        _ATTRIBUTES,
        lambda s: _infer(s, "linear_grouped"),
        lambda e: _evaluate(e, "linear_grouped"),
        "The same for linear_grouped.",
    ),
)
