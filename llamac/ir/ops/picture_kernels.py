"""What the code for GPUs does with pictures: kernels of image encoders over rows, and attention to vision tokens.

Weights are of the layout `gpu-rows16`; `dtype` is what goes to the next kernel. The norms, gathers and sums between
them are the ops of `encoder_ops` and `tile_ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import E4M3FN, F32, I32, DType
from ..levels import KERNEL
from ..row_layouts import unpack_records
from ..types import TensorType, Type
from .attention import softmax_rows
from .cache_ops import attended, check_rows, query_heads
from .encoder_ops import gelu
from .normalization import normalized
from .rotary import rotate
from .row_kernels import given_names, layout_of


def _dtype(s: Signature) -> DType:
    dtype = s.attributes["dtype"]
    if not isinstance(dtype, DType) or not dtype.is_float or dtype is E4M3FN:
        raise OpError(f"attribute 'dtype' must be a float that activations can have, not {dtype}")
    return dtype


def _infer_product(s: Signature) -> Sequence[Type]:
    names, layout = given_names("linear_image_rows16", s.attributes, len(s.types)), layout_of(s.attributes)
    types = dict(zip(names, s.tensors(), strict=True))
    x, fits = s.ranked(0, 2), TensorType((layout.rows, layout.record_bytes), types["weight"].dtype)
    if x.shape[1] != layout.columns or not x.dtype.is_float or types["weight"] != fits:
        raise OpError(f"x {x} and weight {types['weight']} are not {layout.columns} columns and {layout.rows} rows")
    bias = types.get("bias")
    if bias is not None and (bias.shape != (layout.rows,) or not bias.dtype.is_float):
        raise OpError(f"the bias {bias} is not one row of {layout.rows}")
    wanted = TensorType((x.shape[0], layout.rows), F32)
    if types.get("residual", wanted) != wanted:
        raise OpError(f"the residual must be {wanted}, got {types['residual']}")
    return [TensorType(wanted.shape, _dtype(s))]


def _evaluate_product(e: Evaluation) -> Sequence[Any]:
    names = given_names("linear_image_rows16", e.attributes, len(e.inputs))
    given = dict(zip(names, e.inputs, strict=True))
    weight = np.asarray(unpack_records(layout_of(e.attributes), given["weight"]), e.float_type)
    y = np.asarray(given["x"], e.float_type) @ weight.T
    if "bias" in given:
        y = y + given["bias"].astype(e.float_type)
    if e.attributes["gelu"]:
        y = gelu(y)
    return [e.rounded(given["residual"] + y if "residual" in given else y)]


def _infer_norm(s: Signature) -> Sequence[Type]:
    x = s.ranked(0, 2)
    if x.dtype is not F32 or any(t.shape != x.shape[1:] or not t.dtype.is_float for t in s.tensors()[1:]):
        raise OpError(f"x {x} must be f32 rows that fit weight {s.tensor(1)} and bias {s.tensor(2)}")
    return [TensorType(x.shape, _dtype(s))]


def _evaluate_norm(e: Evaluation) -> Sequence[Any]:
    x, weight, bias = (np.asarray(part, e.float_type) for part in e.inputs)
    centered = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centered * centered, axis=-1, keepdims=True)
    return [e.rounded(centered / np.sqrt(variance + x.dtype.type(e.number("eps"))) * weight + bias)]


def _heads(s: Signature) -> tuple[TensorType, int, int]:
    """The joined rows of q, k and v, their number and the width of a head."""
    qkv, heads, width = s.ranked(0, 2), s.positive("heads"), s.positive("head_dim")
    tokens = qkv.shape[0]
    if not isinstance(tokens, int) or qkv.shape[1] != 3 * heads * width or not qkv.dtype.is_float:
        raise OpError(f"{qkv} does not hold q, k and v of {heads} heads of {width} each")
    return qkv, tokens, width


def _split(e: Evaluation) -> Array:
    """q, k and v, [3, heads, tokens, head_dim]."""
    qkv = np.asarray(e.inputs[0], e.float_type)
    return qkv.reshape(len(qkv), 3, e.integer("heads"), -1).transpose(1, 2, 0, 3)


def _infer_rope(s: Signature) -> Sequence[Type]:
    qkv, tokens, width = _heads(s)
    angles = TensorType((tokens, width // 2), F32)
    if width % 2 or s.tensor(1) != angles or s.tensor(2) != angles:
        raise OpError(f"cos {s.tensor(1)} and sin {s.tensor(2)} must be {angles}")
    return [TensorType(qkv.shape, _dtype(s))]


def _evaluate_rope(e: Evaluation) -> Sequence[Any]:
    qkv, cos, sin = e.inputs
    parts = _split(e).copy()
    parts[:2] = rotate(parts[:2], cos, sin, "interleaved")
    return [e.rounded(parts.transpose(2, 0, 1, 3).reshape(qkv.shape))]


def _infer_attend(s: Signature) -> Sequence[Type]:
    _, tokens, width = _heads(s)
    if len(s.types) > 1:
        if not {"tokens", "padded"} <= set(s.attributes):
            raise OpError("slots need the attributes 'tokens' and 'padded'")
        slots, padded = s.ranked(1, 1), s.positive("padded")
        if slots.dtype is not I32 or slots.shape[0] != tokens // padded or tokens % padded:
            raise OpError(f"slots {slots} are not i32, one for each {padded} of {tokens} rows")
        if s.positive("tokens") > padded:
            raise OpError(f"tiles of {padded} rows do not hold {s.integer('tokens')} tokens each")
    return [TensorType((tokens, s.integer("heads") * width), _dtype(s))]


def _evaluate_attend(e: Evaluation) -> Sequence[Any]:
    q, keys, values = _split(e)
    scores = q @ keys.transpose(0, 2, 1) * q.dtype.type(e.number("scale"))
    if len(e.inputs) > 1:
        late = np.arange(e.integer("padded")) >= e.integer("tokens")
        padding = ((e.inputs[1][:, None] < 0) | late[None, :]).reshape(-1)
        scores = np.where((padding[:, None] & padding[None, :])[None], -np.inf, scores)
    mixed = softmax_rows(scores) @ values
    return [e.rounded(mixed.transpose(1, 0, 2).reshape(len(e.inputs[0]), -1))]


def _infer_vision(s: Signature) -> Sequence[Type]:
    cache, q = s.cache(2), s.ranked(0, 2)
    if not cache.cross or q != TensorType((q.shape[0], query_heads(s, cache) * cache.head_dim), F32):
        raise OpError(f"q {q} does not hold {s.integer('heads')} heads for {cache}, which holds vision tokens")
    norm, gate = s.tensor(1), s.tensor(7)
    if norm.shape != (cache.head_dim,) or gate.shape != (1,) or not (norm.dtype.is_float and gate.dtype.is_float):
        raise OpError(f"norm {norm} and gate {gate} must be floats, a head's width of them and one")
    if any(s.tensor(i) != TensorType((q.shape[0],), I32) for i in (3, 4)):
        raise OpError(f"start {s.tensor(3)} and stop {s.tensor(4)} must be i32 [{q.shape[0]}]")
    check_rows(s, 4, q.shape[0])
    return [TensorType(q.shape, _dtype(s))]


def _evaluate_vision(e: Evaluation) -> Sequence[Any]:
    q, norm, state, start, stop, sequences, pages, gate = e.inputs
    heads = np.asarray(q, e.float_type).reshape(len(q), e.integer("heads"), -1)
    normed = (normalized(heads, e.number("eps")) * norm).reshape(q.shape)
    out = np.zeros_like(normed)
    for t in np.flatnonzero(start < stop):
        out[t] = attended(e, normed[t], state, pages[sequences[t]], int(start[t]), int(stop[t]))
    return [e.rounded(out * np.tanh(np.asarray(gate, e.float_type)))]


_HEADS = {"heads": "int", "head_dim": "int", "dtype": "dtype"}

OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "linear_image_rows16",
        frozenset({KERNEL}),
        ("operands*",),
        {"operands": "str", "format": "str", "rows": "int", "columns": "int", "gelu": "bool", "dtype": "dtype"},
        _infer_product,
        _evaluate_product,
        "[residual +] [gelu](x times the transpose of a packed matrix [+ bias]).",
    ),
    OpDefinition(
        "layer_norm_rows",
        frozenset({KERNEL}),
        ("x", "weight", "bias"),
        {"eps": "float", "dtype": "dtype"},
        _infer_norm,
        _evaluate_norm,
        "As layer_norm, in the type of what reads it.",
    ),
    OpDefinition(
        "rope_image_rows",
        frozenset({KERNEL}),
        ("qkv", "cos", "sin"),
        _HEADS,
        _infer_rope,
        _evaluate_rope,
        "As rope_pairs, in the type of what reads it.",
    ),
    OpDefinition(
        "attend_image_rows",
        frozenset({KERNEL}),
        ("qkv", "slots?"),
        {**_HEADS, "scale": "float", "tokens": "int?", "padded": "int?"},
        _infer_attend,
        _evaluate_attend,
        "Attention of every row to every row, but padding sees no padding: tiles without slot, rows past `tokens`.",
    ),
    OpDefinition(
        "attend_vision_rows",
        frozenset({KERNEL}),
        ("q", "norm", "cache", "start", "stop", "sequence_of_token", "page_tables", "gate"),
        {"layer": "dim", "heads": "int", "scale": "float", "eps": "float", "dtype": "dtype"},
        _infer_vision,
        _evaluate_vision,
        "attend_range of q normed head by head, times tanh(gate).",
    ),
)
