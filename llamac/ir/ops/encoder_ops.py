"""What image encoders have that text models do not: LayerNorm, GELU, attention that sees everything, fixed rotation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I1
from ..levels import KERNEL, MODEL
from ..types import TensorType, Type
from .attention import softmax_rows
from .vision_ops import erf


def _infer_layer_norm(s: Signature) -> Sequence[Type]:
    x, weight, bias = s.tensors()
    scales = all(t.shape == x.shape[-1:] and t.dtype.is_float for t in (weight, bias))
    if not x.rank or not x.dtype.is_float or not scales:
        raise OpError(f"x {x} does not fit weight {weight} and bias {bias}")
    return [x]


def _evaluate_layer_norm(e: Evaluation) -> Sequence[Any]:
    x, weight, bias = e.inputs
    centered = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centered * centered, axis=-1, keepdims=True)
    return [e.rounded(centered * (1 / np.sqrt(variance + x.dtype.type(e.number("eps")))) * weight + bias)]


def _infer_float(s: Signature) -> Sequence[Type]:
    x = s.tensor(0)
    if not x.dtype.is_float:
        raise OpError(f"needs a float operand, got {x}")
    return [x]


def gelu(x: Array) -> Array:
    """x * (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel 2016, the exact form)."""
    return np.asarray(x * x.dtype.type(0.5) * (1 + erf(x * x.dtype.type(math.sqrt(0.5))).astype(x.dtype)))


def _infer_tables(s: Signature) -> Sequence[Type]:
    angles = s.ranked(0, 2)
    if angles.dtype is not F32 or not all(isinstance(d, int) for d in angles.shape):
        raise OpError(f"angles {angles} must be a fixed f32 matrix")
    return [angles, angles]


def _evaluate_tables(e: Evaluation) -> Sequence[Any]:
    # Tables of constants are data of the model: they have their f32 values in both modes, as the references' have.
    angles = np.asarray(e.inputs[0], np.float32)
    return [np.cos(angles).astype(e.float_type), np.sin(angles).astype(e.float_type)]


def _infer_attention(s: Signature) -> Sequence[Type]:
    q, k, v = s.ranked(0, 3), s.tensor(1), s.tensor(2)
    if k != q or v != q or not q.dtype.is_float:
        raise OpError(f"q {q}, k {k} and v {v} must be floats of one type, [heads, tokens, head_dim]")
    if len(s.types) > 3 and s.tensor(3) != TensorType((q.shape[1],), I1):
        raise OpError(f"padding {s.tensor(3)} must be i1 [{q.shape[1]}]")
    return [q]


def _evaluate_attention(e: Evaluation) -> Sequence[Any]:
    q, k, v, *padding = e.inputs
    scores = e.rounded(e.rounded(q @ k.transpose(0, 2, 1)) * q.dtype.type(e.number("scale")))
    if padding:
        scores = np.where((padding[0][:, None] & padding[0][None, :])[None], -np.inf, scores)
    return [e.rounded(e.rounded(softmax_rows(scores)) @ v)]


def _infer_rearrange(s: Signature) -> Sequence[Type]:
    x, shape, strides = s.tensor(0), s.dims("shape"), s.dims("strides")
    offset, columns = s.integer("offset"), s.positive("columns")
    lengths = [d for d in x.shape if isinstance(d, int)]
    if len(lengths) != x.rank:
        raise OpError(f"cannot rearrange {x}: its shape is not fixed")
    sizes = [(d, n) for d, n in zip(shape, strides, strict=False) if isinstance(d, int) and isinstance(n, int)]
    if len(shape) != len(strides) or len(sizes) != len(shape) or any(d < 1 or n < 0 for d, n in sizes):
        raise OpError(f"{list(shape)} with strides {list(strides)} is no view")
    last = offset + sum((d - 1) * n for d, n in sizes)
    if not 0 <= offset <= last < math.prod(lengths):
        raise OpError(f"the view reaches from element {offset} to {last} of {x}")
    count = math.prod(d for d, _ in sizes)
    if count % columns:
        raise OpError(f"{count} elements do not fill rows of {columns}")
    return [x.with_shape(count // columns, columns)]


def _evaluate_rearrange(e: Evaluation) -> Sequence[Any]:
    flat = np.ascontiguousarray(e.inputs[0]).reshape(-1)[e.integer("offset") :]
    strides = tuple(flat.itemsize * n for n in e.integers("strides"))
    view = np.lib.stride_tricks.as_strided(flat, e.integers("shape"), strides)
    return [view.reshape(e.result_shape())]


def _infer_class_token(s: Signature) -> Sequence[Type]:
    x, token, tiles = s.ranked(0, 2), s.tensor(1), s.positive("tiles")
    rows, width = x.shape
    if token.shape != (width,) or not token.dtype.is_float or not x.dtype.is_float:
        raise OpError(f"x {x} does not fit a class token {token}")
    if not isinstance(rows, int) or rows % tiles or s.text("place") not in ("first", "last"):
        raise OpError(f"{x} does not hold the tokens of {tiles} tiles, with place = first or last")
    return [x.with_shape(rows + tiles, width)]


def _evaluate_class_token(e: Evaluation) -> Sequence[Any]:
    x, token = e.inputs
    parts = [x.reshape(e.integer("tiles"), -1, x.shape[1]), np.tile(token, (e.integer("tiles"), 1, 1))]
    joined = np.concatenate(parts if e.text("place") == "last" else parts[::-1], axis=1)
    return [e.rounded(joined.reshape(e.result_shape()))]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "layer_norm",
        frozenset({MODEL, KERNEL}),
        ("x", "weight", "bias"),
        {"eps": "float"},
        _infer_layer_norm,
        _evaluate_layer_norm,
        "(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba, Kiros and Hinton 2016).",
    ),
    OpDefinition(
        "gelu",
        frozenset({MODEL, KERNEL}),
        ("x",),
        {},
        _infer_float,
        lambda e: [e.rounded(gelu(e.inputs[0]))],
        "x * (1 + erf(x / sqrt(2))) / 2.",
    ),
    OpDefinition(
        "cos_sin",
        frozenset({MODEL, KERNEL}),
        ("angles",),
        {},
        _infer_tables,
        _evaluate_tables,
        "The cosines and sines of fixed angles, in f32.",
    ),
    OpDefinition(
        "full_attention",
        frozenset({MODEL}),
        ("q", "k", "v", "padding?"),
        {"scale": "float"},
        _infer_attention,
        _evaluate_attention,
        "softmax(q k^T * scale) v, every token seeing every token, but padding no padding.",
    ),
    OpDefinition(
        "rearrange",
        frozenset({MODEL, KERNEL}),
        ("x",),
        {"offset": "int", "shape": "ints", "strides": "ints", "columns": "int"},
        _infer_rearrange,
        _evaluate_rearrange,
        "The elements x[offset + i . strides] for every index i of shape, in row-major order, as rows of `columns`.",
    ),
    OpDefinition(
        "add_class_token",
        frozenset({MODEL, KERNEL}),
        ("x", "token"),
        {"tiles": "int", "place": "str"},
        _infer_class_token,
        _evaluate_class_token,
        "x [tiles * n, width] with a row more for each tile, before its others or after them.",
    ),
)
