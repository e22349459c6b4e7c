"""Whole tiny models through their launch plans, kernels in Triton's interpreter, against what the IR means."""

from __future__ import annotations

import numpy as np
import pytest
from planned_models import Array, Planned, Rows, Tiny, planned, relative_error

from llamac import compiled_graph
from llamac.runtime.gpu.sampling import DrawnToken, drawn_token, sampling_rows
from llamac.runtime.sampler import SamplerOptions, log_normalizer

TOLERANCE = {"f32": 3e-6, "f16": 4e-3, "bf16": 3e-2}
"""Largest error of a logit by the type of activations between kernels. The interpreter cuts f32 to bf16."""

ROUNDED_CACHE = 1.5e-2
"""The same where f32 activations meet a cache of 8-bit floats, whose products are made of 16-bit ones."""

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
        sampling = sampling_rows([(SamplerOptions(1.4, top_k=9, top_p=0.9), 3 << 51), (SamplerOptions(), 0)])
        rows = Rows().add(0, 19, long[19:20]).add(3, 2, short[2:3])
        drawn = [drawn_token(row) for row in simulator.step(rows, "sample", sampling)]
        assert_drawn(drawn, [wanted[0][19], wanted[1][2]], tolerance)
        last = Rows().add(6, 0, other, "last")
        assert_drawn([drawn_token(simulator.step(last, "sample", sampling[:1])[0])], [wanted[2][-1]], tolerance)


def assert_best(best: Array, logits: list[Array], tolerance: float) -> None:
    """The logit of each token found is the largest, up to the tolerance."""
    for token, row in zip(best, logits, strict=True):
        assert row.max() - row[token] <= 2 * tolerance * np.abs(row).max()


def assert_drawn(found: list[DrawnToken], logits: list[Array], tolerance: float) -> None:
    """Log-probabilities are those of the logits, up to the tolerance; the first is among the nine best, others best."""
    for number, (one, row) in enumerate(zip(found, logits, strict=True)):
        near = 4 * tolerance * np.abs(row).max()
        own = row - log_normalizer(row)
        np.testing.assert_allclose(one.best_logprobs, own[one.best_ids], atol=near)
        assert one.logprob == pytest.approx(own[one.token_id], abs=near)
        assert np.sort(row)[-9 if number == 0 else -1] - row[one.token_id] <= near


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
        pytest.param("gfx942", "fp8", marks=SLOW),
        pytest.param("sm_90", "fp8", marks=SLOW),
        pytest.param("sm_80", "int4:g64:asym", marks=SLOW),
    ],
)
def test_quantized_models(machine: str, quantize: str) -> None:
    check_whole_steps(planned(Tiny("bf16").config(), machine, quantize, kv="bf16"), TOLERANCE["bf16"])


@pytest.mark.parametrize(
    ("machine", "scales", "experts"),
    [
        pytest.param("sm_90", {}, 0, marks=SLOW),
        ("gfx942", {0: (0.02, 0.5), 1: (1.7, 0.01)}, 0),
        pytest.param("sm_90", {0: (0.02, 0.5), 1: (1.7, 0.01)}, 4, marks=SLOW),
    ],
)
def test_caches_of_eight_bit_floats(
    machine: str, scales: dict[int, tuple[float, float]], experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted by the hardware, or as bytes; as they are, or over the scales of a checkpoint."""
    monkeypatch.setattr(compiled_graph, "scales_of_cache", lambda *given: scales)
    model = planned(Tiny("f32", experts=experts).config(), machine, kv="fp8")
    assert model.plan.caches()[0].type == "e4m3fn"
    check_whole_steps(model, ROUNDED_CACHE)


EIGHT = "fp8:fp8-activations"
LONG = np.random.default_rng(5).integers(0, 37, 70).tolist()


@pytest.mark.parametrize(
    ("machine", "experts", "top"),
    [
        ("sm_90", 0, 1),
        pytest.param("gfx942", 0, 1, marks=SLOW),
        pytest.param("sm_80", 0, 1, marks=SLOW),
        pytest.param("sm_90", 4, 1, marks=SLOW),
        pytest.param("gfx942", 4, 2, marks=SLOW),
    ],
)
def test_activations_in_eight_bits(machine: str, experts: int, top: int) -> None:
    """A prompt of more than 64 tokens has them, a shorter one not; the portable build decodes the same values."""
    config = Tiny("bf16", layers=2 if experts else 1, experts=experts, top=top).config()
    model = planned(config, machine, EIGHT, kv="f32", max_tokens=80)
    plain = planned(config, machine, "fp8", kv="f32", max_tokens=80)
    with model.simulated(context=80) as simulator:
        found = simulator.step(Rows().add(0, 0, LONG))
        short = simulator.step(Rows().add(1, 0, LONG[:20], "last"))
    near, far = (distance(found, which.logits([LONG])[0]) for which in (model, plain))
    assert near < 0.65 * far, "nearer to activations in bf16 than to those that the IR means"
    assert relative_error(short, plain.logits([LONG[:20]])[0][-1:]) < TOLERANCE["bf16"]


def distance(found: Array, wanted: Array) -> float:
    """Root mean square of the differences."""
    return float(np.sqrt(((found - wanted) ** 2).mean()))


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
