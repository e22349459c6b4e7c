"""What the ops of a mixture of experts compute, against loops over tokens and choices in plain Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from panel16 import DENSE_TYPES, Grouped, GroupedMatrix, grouped_linear, pack_dense, quantize_rows
from running import run

from llamac.ir.dtypes import BF16, F16, F32, I8, I32, U8
from llamac.ir.types import tensor

RANDOM = np.random.default_rng(12)
TOKENS, EXPERTS, WIDTH, INNER = 7, 4, 8, 16
X = RANDOM.standard_normal((TOKENS, WIDTH))
GATE, UP = RANDOM.standard_normal((2, EXPERTS * INNER, WIDTH))
DOWN = RANDOM.standard_normal((EXPERTS * WIDTH, INNER))

LOGITS: dict[str, np.ndarray] = {
    "random": RANDOM.standard_normal((TOKENS, EXPERTS)),
    "all equal": np.zeros((TOKENS, EXPERTS)),
    "equal pairs": RANDOM.standard_normal((TOKENS, EXPERTS // 2)).repeat(2, axis=1),
    "zeros of both signs": np.array([[0.0, -0.0, 0.0, -0.0]] * TOKENS),
    "one expert for all": np.array([[-5.0, -4.0, 9.0, -6.0]] * TOKENS) + RANDOM.standard_normal((TOKENS, EXPERTS)),
    "an expert that nobody wants": RANDOM.standard_normal((TOKENS, EXPERTS)) - [0.0, 1e4, 0.0, 0.0],
    "NaN": np.where(RANDOM.random((TOKENS, EXPERTS)) < 0.4, np.nan, RANDOM.standard_normal((TOKENS, EXPERTS))),
    "NaN and infinities": np.array([[np.nan, -np.inf, np.nan, np.inf]] * TOKENS),
    "nothing but NaN": np.full((TOKENS, EXPERTS), np.nan),
    "far from zero": np.array([[1e4, -1e4, 80.0, -80.0]] * TOKENS),
}


def best(row: np.ndarray, k: int) -> list[int]:
    """Experts by falling logit, NaN as the lowest; of equal ones the lower number first."""
    lowest = [-math.inf if math.isnan(value) else float(value) for value in row]
    return sorted(range(len(row)), key=lambda expert: (-lowest[expert], expert))[:k]


def score(value: float) -> float:
    """The logistic function."""
    return float(torch.sigmoid(torch.tensor(value, dtype=torch.float64)))


every_case = pytest.mark.parametrize("name", LOGITS)
every_k = pytest.mark.parametrize("k", range(1, EXPERTS + 1))


@every_case
@every_k
def test_top_k_mask(name: str, k: int) -> None:
    (mask,) = run("top_k_mask", [LOGITS[name]], top_k=k)
    assert mask.dtype == bool
    assert [sorted(np.flatnonzero(row)) for row in mask] == [sorted(best(row, k)) for row in LOGITS[name]]


@every_k
def test_top_k_mask_chooses_as_torch_does(k: int) -> None:
    logits = LOGITS["random"]
    (mask,) = run("top_k_mask", [logits], top_k=k)
    chosen = torch.topk(torch.from_numpy(logits), k, dim=1).indices
    assert (mask == F.one_hot(chosen, EXPERTS).sum(1).bool().numpy()).all()


@every_case
@every_k
@pytest.mark.parametrize("exact", [True, False])
def test_route(name: str, k: int, exact: bool) -> None:
    logits = LOGITS[name]
    order, place, scores, offsets = run("route", [logits], exact, top_k=k)
    slots = [(expert, t * k + i) for t, row in enumerate(logits) for i, expert in enumerate(best(row, k))]
    routed = sorted(slots)
    assert order.tolist() == [slot for _, slot in routed]
    assert place[order].tolist() == list(range(TOKENS * k))
    assert offsets.tolist() == [sum(e < expert for e, _ in slots) for expert in range(EXPERTS + 1)]
    expected = [score(logits[slot // k, expert]) for expert, slot in routed]
    assert np.allclose(scores, expected, rtol=1e-14 if exact else 1e-6, atol=0 if exact else 1e-38, equal_nan=True)
    assert [r.dtype.kind for r in (order, place, scores, offsets)] == ["i", "i", "f", "i"]


def test_route_of_no_tokens() -> None:
    order, place, scores, offsets = run("route", [np.zeros((0, EXPERTS))], top_k=2)
    assert (order.size, place.size, scores.size, offsets.tolist()) == (0, 0, 0, [0] * (EXPERTS + 1))


def test_scores_of_narrow_logits_stay_f32() -> None:
    logits = LOGITS["random"].astype(np.float32).astype(np.float16).astype(np.float32)
    scores = run("route", [logits], False, types=[tensor(TOKENS, EXPERTS, F16)], top_k=1)[2]
    assert (scores != scores.astype(np.float16)).any()


def expert(x: np.ndarray, index: int) -> np.ndarray:
    """The answer of one expert to one row."""
    parts = [torch.from_numpy(stack).reshape(EXPERTS, -1, stack.shape[1])[index] for stack in (GATE, UP, DOWN)]
    row = torch.from_numpy(x)
    return (parts[2] @ (F.silu(parts[0] @ row) * (parts[1] @ row))).numpy()


def mixture(logits: np.ndarray, k: int) -> np.ndarray:
    """Each token's experts one after the other, on the token times its score."""
    rows = [[expert(X[t] * score(row[e]), e) for e in best(row, k)] for t, row in enumerate(logits)]
    return np.array([np.sum(row, axis=0) for row in rows])


@every_case
@every_k
def test_moe(name: str, k: int) -> None:
    (found,) = run("moe", [X, LOGITS[name], GATE, UP, DOWN], top_k=k)
    assert np.allclose(found, mixture(LOGITS[name], k), rtol=1e-11, atol=1e-12, equal_nan=True)


def routed_mixture(logits: np.ndarray, k: int, base: np.ndarray, exact: bool) -> np.ndarray:
    """What lower-moe-routing makes of `base` plus a mixture."""
    order, place, scores, offsets = run("route", [logits], exact, top_k=k)
    (rows,) = run("gather_routed", [X, order, scores], exact, top_k=k)
    gate, up = (run("expert_linear", [rows, stack, offsets], exact)[0] for stack in (GATE, UP))
    (inner,) = run("swiglu", [gate, up], exact)
    (answers,) = run("expert_linear", [inner, DOWN, offsets], exact)
    return np.asarray(run("scatter_routed", [answers, place, base], exact, top_k=k)[0])


@every_case
@every_k
@pytest.mark.parametrize("exact", [True, False])
def test_routing_is_the_mixture(name: str, k: int, exact: bool) -> None:
    base = RANDOM.standard_normal((TOKENS, WIDTH))
    found = routed_mixture(LOGITS[name], k, base, exact)
    expected = base + mixture(LOGITS[name], k)
    largest = max(1.0, float(np.nanmax(np.abs(expected), initial=0)))
    assert np.allclose(found, expected, rtol=0, atol=largest * (1e-12 if exact else 1e-5), equal_nan=True)


def test_gather_and_scatter_move_rows() -> None:
    """Token t's rows come back in the order of its choices: sums in floating point depend on it."""
    order, place = np.array([1, 2, 0, 3]), np.array([2, 0, 1, 3])
    scores = np.array([0.5, 2.0, 1.0, 0.25])
    x = np.array([[1.0, 10.0], [2.0, 20.0]])
    (rows,) = run("gather_routed", [x, order, scores], top_k=2)
    assert rows.tolist() == [[0.5, 5.0], [4.0, 40.0], [1.0, 10.0], [0.5, 5.0]]
    big, base = np.array([[1e8], [-1e8], [3.0], [1.0]]), np.array([[1.0], [0.0]])
    (summed,) = run("scatter_routed", [big, place, base], exact=False, top_k=2)
    first = np.float32(np.float32(1.0) + np.float32(3.0)) + np.float32(1e8)
    assert summed[0, 0] == first and summed[1, 0] == np.float32(np.float32(-1e8) + np.float32(1.0))


def test_scores_and_rows_are_rounded_to_the_dtype_of_x() -> None:
    """As the textbook graph casts scores before it multiplies."""
    x = X.astype(np.float32).astype(BF16.storage).astype(np.float32)
    types = [tensor(TOKENS, WIDTH, BF16), tensor(TOKENS, I32), tensor(TOKENS, F32)]
    scores = RANDOM.random(TOKENS)
    (rows,) = run("gather_routed", [x, np.arange(TOKENS), scores], False, types=types, top_k=1)
    expected = torch.from_numpy(x).bfloat16() * torch.from_numpy(scores.astype(np.float32)).bfloat16()[:, None]
    assert (rows == expected.float().numpy()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_index_that_was_never_written_is_no_index(bad: float) -> None:
    """Memory that is checked cell by cell holds indices as floats, and NaN where nothing was written."""
    rows = RANDOM.standard_normal((2, WIDTH))
    types = [tensor(2, WIDTH, F32), tensor(2, I32), tensor(2, WIDTH, F32)]
    (found,) = run("scatter_routed", [rows, np.array([1.0, 0.0]), rows * 0], types=types, top_k=1)
    assert (found == rows[::-1]).all()
    with pytest.raises(ValueError, match="overwritten, or never written"):
        run("scatter_routed", [rows, np.array([1.0, bad]), rows], types=types, top_k=1)


SIZES = [(3, 0, 4, 0), (0, 7, 0, 0), (2, 2, 2, 1)]
"""Rows of each expert: some get none, one gets all, everyone gets some."""


def offsets_of(sizes: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "e4m3fn"])
def test_packed_experts_of_floats(sizes: tuple[int, ...], kind: str) -> None:
    matrices = GATE.reshape(EXPERTS, INNER, WIDTH).astype(np.float32).astype(DENSE_TYPES[kind])
    scale = RANDOM.uniform(0.5, 2, EXPERTS * INNER).astype(np.float32) if kind == "e4m3fn" else None
    packed = pack_dense(matrices.reshape(-1, WIDTH), scale).reshape(EXPERTS, -1)
    values = matrices.astype(np.float32)
    if scale is not None:
        values *= scale.reshape(EXPERTS, INNER, 1)
    types = [tensor(TOKENS, WIDTH, F32), tensor(*packed.shape, U8), tensor(EXPERTS + 1, I32)]
    attributes: dict[str, Any] = {"format": kind, "rows": INNER, "columns": WIDTH, "experts": EXPERTS}
    (found,) = run("expert_linear_dense", [X, packed, offsets_of(sizes)], types=types, **attributes)
    chosen = np.repeat(np.arange(EXPERTS), sizes)
    assert np.allclose(found, np.einsum("td,tnd->tn", X, values[chosen]), rtol=1e-12)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    "format", [Grouped(4, True, 32, 16, 0), Grouped(8, False, 16, 16, 32)], ids=lambda f: str(f.name)
)
def test_packed_experts_of_integers(sizes: tuple[int, ...], format: Grouped) -> None:
    columns, random = 40, np.random.default_rng(13)
    matrix = GroupedMatrix.random(format, EXPERTS * INNER, columns, random)
    packed = matrix.pack().reshape(EXPERTS, -1)
    x = quantize_rows(random.standard_normal((TOKENS, columns)).astype(np.float32), format)
    types = [tensor(*part.shape, dtype) for part, dtype in ((x.q, I8), (x.scale, F32), (x.sum, I32))]
    types += [tensor(*packed.shape, U8), tensor(EXPERTS + 1, I32)]
    attributes: dict[str, Any] = {"format": format.name, "rows": INNER, "columns": columns, "experts": EXPERTS}
    inputs = [x.q, x.scale, x.sum, packed, offsets_of(sizes)]
    (found,) = run("expert_linear_grouped", inputs, exact=False, types=types, **attributes)
    whole = grouped_linear(x, matrix).reshape(TOKENS, EXPERTS, INNER)
    expected = whole[np.arange(TOKENS), np.repeat(np.arange(EXPERTS), sizes)]
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(whole).max())
