"""Mixtures of experts: choosing experts per token, and working expert by expert on the tokens that chose it.

The experts of a layer lie in one matrix, expert e in rows [e * out, (e + 1) * out). A *slot* is one choice of one
token: slot t * k + i is token t's i-th best expert. Routed rows are slots sorted by expert, stably.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dims import DimLike
from ..dtypes import F32, I1, I32
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import TensorType, Type
from .arithmetic import sigmoid, silu
from .linear import check_format

_ROUTED = frozenset({MODEL, KERNEL})


def best_experts(logits: Array, k: int) -> Array:
    """[T, k] expert numbers by falling logit; of equal ones the lower number first, NaN last."""
    ordered = np.where(np.isnan(logits), -np.inf, logits)
    return np.argsort(-ordered, axis=1, kind="stable")[:, :k].astype(np.int32)


def indices(x: Array) -> Array:
    """Slots, rows or offsets as integers: memory that is checked cell by cell holds them as floats."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError("an index was overwritten, or never written")
    return x.astype(np.int64)


def _choices(s: Signature, index: int) -> tuple[TensorType, int]:
    logits, k = s.ranked(index, 2), s.positive("top_k")
    experts = logits.shape[1]
    if not logits.dtype.is_float or not isinstance(experts, int) or k > experts:
        raise OpError(f"cannot choose {k} of the experts that {logits} scores")
    return logits, k


def _infer_mask(s: Signature) -> Sequence[Type]:
    logits, _ = _choices(s, 0)
    return [logits.with_dtype(I1)]


def _evaluate_mask(e: Evaluation) -> Sequence[Any]:
    mask = np.zeros(e.inputs[0].shape, bool)
    np.put_along_axis(mask, best_experts(e.inputs[0], e.integer("top_k")), True, axis=1)
    return [mask]


def stacked_experts(weight: TensorType, columns: DimLike, experts: int) -> int:
    """Rows of each expert in a stack of `experts` matrices over `columns` inputs."""
    rows = weight.shape[0] if weight.rank == 2 else None
    fits = isinstance(rows, int) and experts > 0 and rows % experts == 0 and weight.shape[-1] == columns
    if not fits or not weight.dtype.is_float:
        raise OpError(f"{weight} does not hold {experts} experts over {columns} inputs")
    assert isinstance(rows, int)
    return rows // experts


def _infer_moe(s: Signature) -> Sequence[Type]:
    x = s.ranked(0, 2)
    logits, _ = _choices(s, 1)
    experts = logits.shape[1]
    assert isinstance(experts, int)
    inner = stacked_experts(s.tensor(2), x.shape[1], experts)
    if s.tensor(3).shape != s.tensor(2).shape or logits.shape[0] != x.shape[0]:
        raise OpError(f"x {x}, logits {logits}, gate {s.tensor(2)} and up {s.tensor(3)} do not fit")
    if stacked_experts(s.tensor(4), inner, experts) != x.shape[1]:
        raise OpError(f"down {s.tensor(4)} does not lead back to {x}")
    return [x]


def _expert(stack: Array, experts: int, index: int) -> Array:
    return np.asarray(stack.reshape(experts, -1, stack.shape[1])[index])


def _evaluate_moe(e: Evaluation) -> Sequence[Any]:
    """The all-experts form: every expert on every token, most of them on zeros."""
    x, logits, gate, up, down = e.inputs
    experts = logits.shape[1]
    total = np.zeros_like(x)
    best = best_experts(logits, e.integer("top_k"))
    scores = e.rounded(sigmoid(logits))
    for index in range(experts):
        score = np.where((best == index).any(axis=1), scores[:, index], 0).astype(x.dtype)
        scaled = e.rounded(x * score[:, None])
        gated = e.rounded(scaled @ _expert(gate, experts, index).T)
        inner = e.rounded(e.rounded(silu(gated)) * e.rounded(scaled @ _expert(up, experts, index).T))
        total = total + e.rounded(inner @ _expert(down, experts, index).T)
    return [e.rounded(total)]


def _infer_route(s: Signature) -> Sequence[Type]:
    logits, k = _choices(s, 0)
    tokens, experts = logits.shape
    assert isinstance(experts, int)
    slots = TensorType((tokens * k,), I32)
    return [slots, slots, slots.with_dtype(F32), TensorType((experts + 1,), I32)]


def _evaluate_route(e: Evaluation) -> Sequence[Any]:
    logits = e.inputs[0]
    best = best_experts(logits, e.integer("top_k"))
    chosen = best.reshape(-1)
    order = np.argsort(chosen, kind="stable").astype(np.int32)
    place = np.empty_like(order)
    place[order] = np.arange(order.size, dtype=np.int32)
    counts = np.bincount(chosen, minlength=logits.shape[1])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    scores = sigmoid(np.take_along_axis(logits, best, axis=1)).reshape(-1)[order]
    return [order, place, e.rounded(scores, 2), offsets]


def _slots(s: Signature, index: int, dtype: Any) -> DimLike:
    t = s.ranked(index, 1)
    if t.dtype is not dtype:
        raise OpError(f"operand {index} must be {dtype} [slots], got {t}")
    return t.shape[0]


def _infer_gather(s: Signature) -> Sequence[Type]:
    x, k = s.ranked(0, 2), s.positive("top_k")
    if _slots(s, 1, I32) != x.shape[0] * k or _slots(s, 2, F32) != x.shape[0] * k or not x.dtype.is_float:
        raise OpError(f"x {x} does not have {k} slots a token in {s.tensor(1)} and {s.tensor(2)}")
    return [x.with_shape(x.shape[0] * k, x.shape[1])]


def _evaluate_gather(e: Evaluation) -> Sequence[Any]:
    x, order, scores = e.inputs
    return [e.rounded(x[indices(order) // e.integer("top_k")] * e.rounded(scores)[:, None].astype(x.dtype))]


def _infer_expert_linear(s: Signature) -> Sequence[Type]:
    x, offsets = s.ranked(0, 2), s.ranked(2, 1)
    groups = offsets.shape[0]
    if offsets.dtype is not I32 or not isinstance(groups, int) or not x.dtype.is_float:
        raise OpError(f"x {x} and offsets {offsets}: expected float rows and i32 [experts + 1]")
    check_format(s)
    return [x.with_shape(x.shape[0], stacked_experts(s.tensor(1), x.shape[1], groups - 1))]


def by_expert(x: Array, stack: Array, offsets: Array) -> Array:
    """Rows [offsets[e], offsets[e + 1]) of x times the transpose of expert e."""
    experts, offsets = len(offsets) - 1, indices(offsets)
    out = np.empty((x.shape[0], stack.shape[0] // experts), x.dtype)
    for index in range(experts):
        rows = slice(offsets[index], offsets[index + 1])
        out[rows] = x[rows] @ _expert(stack, experts, index).T
    return out


def _evaluate_expert_linear(e: Evaluation) -> Sequence[Any]:
    return [e.rounded(by_expert(*e.inputs))]


def _infer_scatter(s: Signature) -> Sequence[Type]:
    y, k = s.ranked(0, 2), s.positive("top_k")
    base = s.ranked(2, 2)
    if _slots(s, 1, I32) != y.shape[0] or base.shape[0] * k != y.shape[0]:
        raise OpError(f"y {y} does not hold {k} rows for each row of {base}")
    if base.shape[1] != y.shape[1] or base.dtype is not y.dtype:
        raise OpError(f"y {y} cannot be added to {base}")
    return [base]


def _evaluate_scatter(e: Evaluation) -> Sequence[Any]:
    y, place, base = e.inputs
    total = base
    for choice in indices(place).reshape(base.shape[0], -1).T:
        total = total + y[choice]
    return [e.rounded(total)]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "top_k_mask",
        frozenset({CAPTURED, MODEL}),
        ("logits",),
        {"top_k": "int"},
        _infer_mask,
        _evaluate_mask,
        "True at the top_k largest logits of each row; of equal ones the first.",
    ),
    OpDefinition(
        "moe",
        frozenset({MODEL}),
        ("x", "logits", "gate", "up", "down"),
        {"top_k": "int"},
        _infer_moe,
        _evaluate_moe,
        "Sum over the top_k experts of down(swiglu(gate, up)) of sigmoid(logit) * x: the score is on the input.",
    ),
    OpDefinition(
        "route",
        _ROUTED,
        ("logits",),
        {"top_k": "int", "layer": "dim?", "cache": "int?"},
        _infer_route,
        _evaluate_route,
        "Slots sorted by expert; results: slot of each routed row, routed row of each slot, scores, expert offsets.\n"
        "`layer` in the cache of number `cache` says under which layer the choices are counted.",
    ),
    OpDefinition(
        "gather_routed",
        _ROUTED,
        ("x", "order", "scores"),
        {"top_k": "int"},
        _infer_gather,
        _evaluate_gather,
        "The token of each routed row, times its score.",
    ),
    OpDefinition(
        "expert_linear",
        frozenset({MODEL}),
        ("x", "weight", "offsets"),
        {"format": "str?"},
        _infer_expert_linear,
        _evaluate_expert_linear,
        "Each routed row times the matrix of its expert, transposed.",
    ),
    OpDefinition(
        "scatter_routed",
        _ROUTED,
        ("y", "place", "base"),
        {"top_k": "int"},
        _infer_scatter,
        _evaluate_scatter,
        "base plus the routed rows of each token, best expert first.",
    ),
)
