"""The kernels of image encoders that work on joined q, k and v rows, and the linear with a bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I32
from ..levels import KERNEL
from ..types import TensorType, Type
from .attention import softmax_rows
from .quantized import inputs_of, packed_shape, unpacked
from .rotary import rotate

PAGE = 256
"""Tokens of a page of keys and values, as in the cache: the kernels of attention are the same."""


def _infer_biased(s: Signature) -> Sequence[Type]:
    fmt, rows, columns = packed_shape(s, 1)
    x, bias = s.ranked(0, 2), s.tensor(2)
    if not fmt.is_dense or x.shape[1] != columns or x.dtype is not F32 or bias != TensorType((rows,), F32):
        raise OpError(f"x {x} and bias {bias} do not fit a dense {rows} x {columns} weight in {fmt.name}")
    result = x.with_shape(x.shape[0], rows)
    if len(s.types) > 3 and s.tensor(3) != result:
        raise OpError(f"the residual must be {result}, got {s.tensor(3)}")
    return [result]


def _evaluate_biased(e: Evaluation) -> Sequence[Any]:
    x, _, bias, *residual = e.inputs
    product = inputs_of(e, x) @ unpacked(e, 1).T + bias
    return [e.rounded(residual[0] + product if residual else product)]


def _heads(s: Signature) -> tuple[TensorType, int, int]:
    """The joined rows, their number and the width of a head."""
    qkv, heads, width = s.ranked(0, 2), s.positive("heads"), s.positive("head_dim")
    tokens, columns = qkv.shape
    if qkv.dtype is not F32 or not isinstance(tokens, int) or columns != 3 * heads * width:
        raise OpError(f"{qkv} does not hold f32 q, k and v of {heads} heads of {width} each")
    return qkv, tokens, width


def _infer_rope_pairs(s: Signature) -> Sequence[Type]:
    qkv, tokens, width = _heads(s)
    cos, sin = s.tensor(1), s.tensor(2)
    if width % 2 or cos != TensorType((tokens, width // 2), F32) or sin != cos:
        raise OpError(f"cos {cos} and sin {sin} must be f32 [{tokens}, {width // 2}]")
    return [qkv]


def _split(e: Evaluation) -> Array:
    """q, k and v, [3, heads, tokens, head_dim]."""
    qkv = e.inputs[0]
    return np.asarray(qkv.reshape(len(qkv), 3, e.integer("heads"), -1).transpose(1, 2, 0, 3))


def _evaluate_rope_pairs(e: Evaluation) -> Sequence[Any]:
    qkv, cos, sin = e.inputs
    parts = _split(e).copy()
    parts[:2] = rotate(parts[:2], cos, sin, "interleaved")
    return [e.rounded(parts.transpose(2, 0, 1, 3).reshape(qkv.shape))]


def _infer_pages(s: Signature) -> Sequence[Type]:
    _, tokens, width = _heads(s)
    _check_order(s, 1, tokens)
    return [TensorType((-(-tokens // PAGE) * s.integer("heads"), 2 * width * PAGE), F32)]


def _check_order(s: Signature, index: int, tokens: int) -> None:
    if len(s.types) > index and s.tensor(index) != TensorType((tokens,), I32):
        raise OpError(f"the order {s.tensor(index)} must be i32 [{tokens}]")


def _evaluate_pages(e: Evaluation) -> Sequence[Any]:
    keys, values = _split(e)[1:]
    order = e.inputs[1].astype(np.int64) if len(e.inputs) > 1 else np.arange(keys.shape[1])
    pages, heads, width = -(-keys.shape[1] // PAGE), keys.shape[0], keys.shape[2]
    padding = ((0, 0), (0, pages * PAGE - keys.shape[1]), (0, 0))
    # [heads, tokens, width] -> [pages, heads, PAGE, width]; keys held 16 by 16, element by element.
    keys, values = (
        np.pad(part[:, order], padding).reshape(heads, pages, PAGE, width).swapaxes(0, 1) for part in (keys, values)
    )
    panels = keys.reshape(pages, heads, PAGE // 16, 16, width).swapaxes(3, 4)
    held = [panels.reshape(pages * heads, -1), values.reshape(pages * heads, -1)]
    return [np.concatenate(held, axis=1)]


def _infer_attend_tokens(s: Signature) -> Sequence[Type]:
    qkv, tokens, width = _heads(s)
    pages = _infer_pages(Signature([qkv], s.attributes))[0]
    if s.tensor(1) != pages:
        raise OpError(f"the pages must be {pages}, got {s.tensor(1)}")
    if len(s.types) == 3:
        raise OpError("has an order of the tokens, and no number of those that are no padding")
    _check_order(s, 2, tokens)
    if len(s.types) > 3 and s.tensor(3) != TensorType((1,), I32):
        raise OpError(f"the number of tokens {s.tensor(3)} must be i32 [1]")
    return [qkv.with_shape(tokens, s.integer("heads") * width)]


def _evaluate_attend_tokens(e: Evaluation) -> Sequence[Any]:
    qkv, pages, *rest = e.inputs
    tokens, heads, width = len(qkv), e.integer("heads"), e.integer("head_dim")
    held = pages.reshape(-1, heads, 2, width * PAGE)
    panels = held[:, :, 0].reshape(-1, heads, PAGE // 16, width, 16).transpose(1, 0, 2, 4, 3)
    keys = panels.reshape(heads, -1, width)[:, :tokens]
    values = held[:, :, 1].reshape(-1, heads, PAGE, width).transpose(1, 0, 2, 3).reshape(heads, -1, width)[:, :tokens]
    scores = _split(e)[0] @ keys.transpose(0, 2, 1) * qkv.dtype.type(e.number("scale"))
    if rest:
        order, (real,) = (part.astype(np.int64) for part in rest)
        is_padding = np.empty(tokens, bool)
        is_padding[order] = np.arange(tokens) >= real
        scores[:, is_padding, real:] = -np.inf
    mixed = softmax_rows(scores) @ values
    return [e.rounded(mixed.transpose(1, 0, 2).reshape(tokens, -1))]


_HEADS = {"heads": "int", "head_dim": "int"}

OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "linear_biased",
        frozenset({KERNEL}),
        ("x", "weight", "bias", "residual?"),
        {"format": "str", "rows": "int", "columns": "int"},
        _infer_biased,
        _evaluate_biased,
        "x times a packed float weight, plus the bias, plus the residual.",
    ),
    OpDefinition(
        "rope_pairs",
        frozenset({KERNEL}),
        ("qkv", "cos", "sin"),
        _HEADS,
        _infer_rope_pairs,
        _evaluate_rope_pairs,
        "q and k of joined rows [tokens, 3 heads head_dim] rotated in adjacent pairs; v as it is.",
    ),
    OpDefinition(
        "token_pages",
        frozenset({KERNEL}),
        ("qkv", "order?"),
        _HEADS,
        _infer_pages,
        _evaluate_pages,
        "k and v of joined rows as pages of 256 tokens, in the given order: what attend_tokens reads.",
    ),
    OpDefinition(
        "attend_tokens",
        frozenset({KERNEL}),
        ("qkv", "pages", "order?", "real?"),
        {**_HEADS, "scale": "float"},
        _infer_attend_tokens,
        _evaluate_attend_tokens,
        "Attention of q to every token in pages; rows order[real:], which are padding, see the first `real` only.",
    ),
)
