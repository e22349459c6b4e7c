"""Whole tiny models through their launch plans, kernels in Triton's interpreter, against what the IR means."""

from __future__ import annotations

import numpy as np
import pytest
from planned_models import Array, Planned, Rows, Tiny, planned, relative_error

TOLERANCE = {"f32": 3e-6, "f16": 4e-3, "bf16": 3e-2}
"""Largest error of a logit by the type of activations between kernels. The interpreter cuts f32 to bf16."""

PROMPTS = [[7, 0, 36, 3, 21, 9, 30, 1, 1, 35, 16, 2, 28, 33, 4, 19, 8, 25, 14, 11], [5, 6, 12], [1, 2, 3, 4]]


def check_whole_steps(model: Planned, tolerance: float) -> None:
    """A ragged prefill, a single token, some rows with padding, and the best tokens of few rows and of a prefill."""
    wanted = model.logits(PROMPTS)
    long, short, other = PROMPTS
    with model.simulated() as simulator:
        found = simulator.step(Rows().add(0, 0, long[:15]).add(1, 0, short).add(2, 0, other))
        assert relative_error(found, np.concatenate([wanted[0][:15], wanted[1], wanted[2]])) < tolerance
        assert relative_error(simulator.step(Rows().add(0, 15, long[15:16])), wanted[0][15:16]) < tolerance
        rows = Rows().add(0, 16, long[16:18]).add(3, 0, short[:1]).add(4, 0, other[:2], "last")
        assert (
            relative_error(simulator.step(rows), np.stack([*wanted[0][16:18], wanted[1][0], wanted[2][1]])) < tolerance
        )
        best = simulator.step(Rows().add(0, 18, long[18:19]).add(3, 1, short[1:2]), "greedy")
        assert_best(best, [wanted[0][18], wanted[1][1]], tolerance)
        assert_best(simulator.step(Rows().add(5, 0, long, "last"), "greedy"), [wanted[0][-1]], tolerance)


def assert_best(best: Array, logits: list[Array], tolerance: float) -> None:
    """The logit of each token found is the largest, up to the tolerance."""
    for token, row in zip(best, logits, strict=True):
        assert row.max() - row[token] <= 2 * tolerance * np.abs(row).max()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("machine", "dtype"),
    [
        ("sm_90", "f32"),
        pytest.param("sm_90", "bf16", marks=SLOW),
        pytest.param("sm_80", "f16", marks=SLOW),
        pytest.param("gfx942", "bf16", marks=SLOW),
    ],
)
def test_dense_models(machine: str, dtype: str) -> None:
    check_whole_steps(planned(Tiny(dtype).config(), machine, kv=dtype), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("machine", "quantize"),
    [
        ("gfx942", "fp8"),
        pytest.param("sm_90", "fp8", marks=SLOW),
        pytest.param("sm_80", "int4:g64:asym", marks=SLOW),
    ],
)
def test_quantized_models(machine: str, quantize: str) -> None:
    check_whole_steps(planned(Tiny("bf16").config(), machine, quantize, kv="bf16"), TOLERANCE["bf16"])


@pytest.mark.parametrize(
    ("top", "dtype", "quantize"),
    [
        (1, "f32", "keep"),
        pytest.param(2, "f32", "keep", marks=SLOW),
        pytest.param(1, "bf16", "int4", marks=SLOW),
    ],
)
def test_mixtures_of_experts(top: int, dtype: str, quantize: str) -> None:
    """Llama 4: chunks, a norm of q and k, temperature without rotation, routed and shared experts."""
    model = planned(Tiny(dtype, experts=4, top=top).config(), "sm_90", quantize, kv=dtype)
    check_whole_steps(model, TOLERANCE[dtype])
