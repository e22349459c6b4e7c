"""Q4_K and Q6_K against the reader of the `gguf` package, and their errors against llama.cpp's own quantizer."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from llamac.export.gguf.k_quants import quantize_q4_k, quantize_q6_k

QUANTIZE = {Type.Q4_K: quantize_q4_k, Type.Q6_K: quantize_q6_k}


def values(kind: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    made = {
        "normal": generator.standard_normal((64, 2048)) * 0.02,
        "student": generator.standard_t(4, (64, 2048)) * 0.02,
        "uniform": generator.uniform(-1, 1, (64, 2048)),
        "lifted": generator.standard_normal((64, 2048)) * 0.02 + 0.05,
    }
    return made[kind].astype(np.float32)


LLAMA_CPP = {
    ("normal", Type.Q4_K): 1.43289e-03,
    ("student", Type.Q4_K): 2.47595e-03,
    ("uniform", Type.Q4_K): 3.15850e-02,
    ("lifted", Type.Q4_K): 1.60056e-03,
    ("normal", Type.Q6_K): 3.55874e-04,
    ("student", Type.Q6_K): 6.53841e-04,
    ("uniform", Type.Q6_K): 7.65030e-03,
    ("lifted", Type.Q6_K): 6.87174e-04,
}
"""Root mean square error of ggml_quantize_chunk (ggml 0.25.3) on these values."""


def back(rows: np.ndarray, kind: Type) -> np.ndarray:
    return gguf.quants.dequantize(QUANTIZE[kind](rows), kind)


@pytest.mark.parametrize(("name", "kind"), list(LLAMA_CPP), ids=str)
def test_no_worse_than_llama_cpp(name: str, kind: Type) -> None:
    rows = values(name)
    error = float(np.sqrt(np.square(back(rows, kind) - rows, dtype=np.float64).mean()))
    assert error <= LLAMA_CPP[name, kind]


@pytest.mark.parametrize("kind", list(QUANTIZE))
def test_what_a_block_holds_comes_back(kind: Type) -> None:
    """Integers times powers of two, the whole range of integers in every group."""
    generator = np.random.default_rng(1)
    if kind is Type.Q6_K:
        quants = generator.integers(-32, 32, (8, 16, 16))
        quants[:, :, 0] = -32
        scales = generator.choice([64, 128], (8, 16, 1))
        scales[:, 0] = 128
        rows = (quants * scales * 2.0**-12).reshape(8, 256).astype(np.float32)
    else:
        quants = generator.integers(0, 16, (8, 8, 32))
        quants[:, :, 0], quants[:, :, 1] = 0, 15
        scales, minima = generator.integers(1, 64, (2, 8, 8, 1))
        scales[:, 0], minima[:, 0] = 63, 63
        rows = (quants * scales * 2.0**-10 - minima * 2.0**-6).reshape(8, 256).astype(np.float32)
    assert np.abs(back(rows, kind) - rows).max() <= np.abs(rows).max() * 2e-3


@pytest.mark.parametrize("kind", list(QUANTIZE))
def test_odd_values(kind: Type) -> None:
    rows = np.zeros((6, 512), np.float32)
    rows[1] = 0.25
    rows[2] = -3.0
    rows[3, 7] = 1.0
    rows[4] = 1e-9
    rows[5, :256] = np.random.default_rng(2).standard_normal(256) * 1e-7
    found = back(rows, kind)
    assert np.isfinite(found).all() and not found[0].any()
    assert np.abs(found[1:4] - rows[1:4]).max() < 0.01
    assert np.abs(found[4:]).max() < 1e-6


@pytest.mark.parametrize("kind", list(QUANTIZE))
def test_rows_do_not_know_of_one_another(kind: Type) -> None:
    rows = values("student")
    whole = QUANTIZE[kind](rows)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert whole.shape == (64, 2048 // block * size)
    for part in (slice(0, 1), slice(3, 40)):
        assert np.array_equal(QUANTIZE[kind](rows[part]), whole[part])
