"""Matrix products: the captured matmul and the model level's linear and swiglu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..layouts import format_of
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import Type
from .arithmetic import broadcast_shapes, silu


def check_format(s: Signature) -> None:
    """The packed format that was chosen for a weight, if one was, must be one."""
    if "format" in s.attributes:
        format_of(s.text("format"))


def _infer_matmul(s: Signature) -> Sequence[Type]:
    a, b = s.tensors()
    if a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2] or a.dtype is not b.dtype:
        raise OpError(f"cannot multiply {a} by {b}")
    batch = broadcast_shapes([a.shape[:-2], b.shape[:-2]]) if a.rank > 2 or b.rank > 2 else ()
    return [a.with_shape(*batch, a.shape[-2], b.shape[-1])]


def _infer_linear(s: Signature) -> Sequence[Type]:
    x, w = s.tensors()
    if x.rank != 2 or w.rank != 2 or x.shape[1] != w.shape[1] or not x.dtype.is_float or not w.dtype.is_float:
        raise OpError(f"x {x} does not fit weight {w}: expected [rows, in] and [out, in], both float")
    check_format(s)
    return [x.with_shape(x.shape[0], w.shape[0])]


def _infer_swiglu(s: Signature) -> Sequence[Type]:
    gate = s.tensor(0)
    if not gate.rank or not gate.dtype.is_float:
        raise OpError(f"gate {gate} must be a float tensor with an axis")
    if len(s.types) == 2:
        if s.tensor(1) != gate:
            raise OpError(f"gate {gate} and up {s.tensor(1)} must have one type")
        return [gate]
    width = gate.shape[-1]
    if not isinstance(width, int) or width % 2:
        raise OpError(f"the last axis of {gate} must hold gate then up")
    return [gate.with_shape(*gate.shape[:-1], width // 2)]


def _evaluate_swiglu(e: Evaluation) -> Sequence[Any]:
    gate, up = e.inputs if len(e.inputs) == 2 else np.split(e.inputs[0], 2, axis=-1)
    # The references round silu(gate) to the activation dtype before the product.
    return [e.rounded(e.rounded(silu(gate)) * up)]


def _product(a: Array, b: Array) -> Array:
    return np.asarray(np.matmul(a, b))


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "matmul",
        frozenset({CAPTURED, MODEL}),
        ("a", "b"),
        {},
        _infer_matmul,
        lambda e: [e.rounded(_product(e.inputs[0], e.inputs[1]))],
        "Batched matrix product over the last two axes.",
    ),
    OpDefinition(
        "linear",
        frozenset({MODEL}),
        ("x", "weight"),
        {"format": "str?"},
        _infer_linear,
        lambda e: [e.rounded(_product(e.inputs[0], e.inputs[1].T))],
        "x [rows, in] times weight [out, in] transposed; the result has the dtype of x.",
    ),
    OpDefinition(
        "swiglu",
        frozenset({MODEL, KERNEL}),
        ("gate", "up?"),
        {},
        _infer_swiglu,
        _evaluate_swiglu,
        "silu(gate) * up; with one operand its last axis holds gate then up.",
    ),
)
