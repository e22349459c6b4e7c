"""Inverse frequencies folded at compile time, against transformers' f32 values, and `exact_power` against mpmath."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
from transformers import LlamaConfig as HfConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llamac.ir.graph import DataSource
from llamac.ir.ops.arithmetic import exact_power
from llamac.models.llama.config import LlamaConfig, RopeScaling
from llamac.models.llama.graph import build_llama
from llamac.models.random_weights import random_checkpoint
from llamac.passes.fold_constants import FoldConstants
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pass

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS: dict[str, tuple[dict[str, object], RopeScaling | None]] = {
    "default": ({"rope_type": "default"}, None),
    "linear": ({"rope_type": "linear", "factor": 2.5}, RopeScaling("linear", 2.5)),
    "llama3-8": ({"rope_type": "llama3", "factor": 8.0, **LLAMA3}, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)),
    "llama3-32": ({"rope_type": "llama3", "factor": 32.0, **LLAMA3}, RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)),
}


def _folded(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    config = LlamaConfig("t", 32, 32, 1, 1, 1, head_dim, 8, 1e-5, theta, scaling, 64, True, "bf16", "half_split")
    module = build_llama(config, random_checkpoint(config, 0).tensors)
    assert run_pass(module, FoldConstants(), PassContext()).counts["constant"] == 1
    (source,) = (w.source for w in module.weights.values() if isinstance(w.source, DataSource))
    return np.frombuffer(source.data, "<f4")


def _reference(head_dim: int, theta: float, parameters: dict[str, object]) -> np.ndarray:
    rope = {"rope_theta": theta, **parameters}
    shape = {
        "hidden_size": head_dim,
        "num_attention_heads": 1,
        "head_dim": head_dim,
        "max_position_embeddings": 1 << 17,
    }
    config = HfConfig(**shape, rope_parameters=rope)
    return np.asarray(LlamaRotaryEmbedding(config).inv_freq.float().numpy())


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str, head_dim: int, theta: float) -> None:
    parameters, scaling = SCALINGS[name]
    found, expected = _folded(head_dim, theta, scaling), _reference(head_dim, theta, parameters)
    assert (found.view(np.uint32) == expected.view(np.uint32)).all(), (found, expected)


def test_powers_are_correctly_rounded() -> None:
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.prec = 200
    random = np.random.default_rng(2)
    base = np.concatenate([[10000.0, 500000.0, 2.0, 0.5], random.uniform(1e-3, 1e6, 200)]).astype(np.float32)
    exponent = np.concatenate([[0.3, 0.9999, -149.0, 0.0], random.uniform(-3, 3, 200)]).astype(np.float32)
    found = exact_power(base, exponent)
    for b, e, value in zip(base.tolist(), exponent.tolist(), found.tolist(), strict=True):
        assert value == float(mpmath.power(mpmath.mpf(b), mpmath.mpf(e)))


def test_powers_by_another_route() -> None:
    getcontext().prec = 60
    for i in range(1, 64):
        exponent = np.float32(i / 64)
        expected = (Decimal(500000).ln() * Decimal(float(exponent))).exp()
        assert exact_power(np.float32(500000), exponent) == float(expected)
