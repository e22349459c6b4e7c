"""Tiny random Llamas of every shape: the interpreter and the compiled code against transformers, in f32."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from interpreted import captured_logits, inverse_frequencies, kernel_graph, kernel_logits
from pairwise import every_row, pairwise_rows
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids

import llamac
from llamac.backends.cpu.codegen import generate
from llamac.models.llama.config import RopeScaling
from llamac.models.presets import preset
from llamac.models.sources import open_source

TOLERANCE_F32 = 1e-5
"""Two f32 implementations that sum in different orders: transformers' own eager and sdpa differ by up to 2e-6."""

IDS = 40
LONG = 290
"""Beyond the first page of the cache, for the compiled code."""

ASKED: dict[str, list[Any]] = {
    "group": [1, 3, 4, 8],
    "head_dim": [16, 64, 80, 128],
    "tied": [False, True],
    "scaled": [False, True],
    "dtype": ["f32", "bf16"],
}
"""The combinations that are promised."""

OTHERS: dict[str, list[Any]] = {
    "width": [72, 90, 50],
    "inner": [100, 150, 33],
    "vocab": [131, 257, 523],
    "layers": [2, 3, 1],
    "kv_heads": [2, 1],
    "sharded": [False, True],
}
"""Hidden sizes that are no multiple of 32, vocabularies that are primes, and what else may vary."""


WIDE = "keep:f32-activations"
"""Weights as stored, their inputs in f32: what is compared with fp32 references to the last few bits."""


def _shapes(rows: list[dict[str, Any]]) -> list[Any]:
    shapes = [TinyShape(**row, seed=seed) for seed, row in enumerate(rows)]
    return [pytest.param(shape, id=shape.name) for shape in shapes]


def _every_asked() -> list[dict[str, Any]]:
    """Every combination of what is promised, with the others drawn from a covering array in turn."""
    others = pairwise_rows(OTHERS)
    return [{**row, **others[i % len(others)]} for i, row in enumerate(every_row(ASKED))]


@pytest.mark.parametrize("shape", _shapes(pairwise_rows(ASKED | OTHERS)))
def test_pairwise(shape: TinyShape, tmp_path: Path) -> None:
    _compare(shape, tmp_path, [WIDE if shape.dtype == "bf16" else "f32"])


@pytest.mark.slow
@pytest.mark.parametrize("shape", _shapes(_every_asked()))
def test_every_combination(shape: TinyShape, tmp_path: Path) -> None:
    _compare(shape, tmp_path, ["f32", WIDE] if shape.dtype == "bf16" else ["f32"])


@pytest.mark.parametrize("scheme", ["keep", "bf16"])
@pytest.mark.parametrize("seed", range(3))
def test_activations_in_bf16_err_less_than_transformers_in_bf16(scheme: str, seed: int, tmp_path: Path) -> None:
    """Inputs of bf16 weights are rounded to bf16; transformers in bf16 rounds everything else too."""
    import torch

    shape = TinyShape(dtype="bf16", seed=seed)
    reference = make_reference(shape)
    source = save_checkpoint(reference, shape, tmp_path / "checkpoint")
    ids = some_ids(shape.vocab, IDS, shape.seed)
    expected = reference_logits(reference, ids)
    narrow = relative_error(reference_logits(copy.deepcopy(reference).to(torch.bfloat16), ids), expected)
    checkpoint = open_source(source)
    found = relative_error(kernel_logits(checkpoint, kernel_graph(checkpoint, scheme, "f32"), ids), expected)
    assert 1e-4 < found < narrow and _code_error(source, scheme, shape, reference) < narrow


def test_bf16_checkpoint_widened_to_f32(tmp_path: Path) -> None:
    """The same values stored as f32: what `--quantize f32` makes of a bf16 checkpoint."""
    _compare(TinyShape(dtype="bf16"), tmp_path, ["f32"])


@pytest.mark.parametrize("scheme", ["keep", "f32", "f16", "bf16", "fp8", "int8", "int4", "int4:g128:asym", WIDE])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_every_scheme_of_every_checkpoint_has_code(dtype: str, tied: bool, scheme: str, tmp_path: Path) -> None:
    """Up to the C source: whatever the checkpoint stores, whatever is asked, nothing but kernels is left."""
    shape = TinyShape(dtype=dtype, tied=tied, layers=1)
    compiled = kernel_graph(open_source(save_checkpoint(make_reference(shape), shape, tmp_path / "checkpoint")), scheme)
    assert "llamac_step" in generate(compiled.module, compiled.placed, compiled.limits, "test")


LLAMA3_SCALINGS = [
    pytest.param(128, 8.0, 1.0, 4.0, 8192, id="Llama 3.1"),
    pytest.param(64, 32.0, 1.0, 4.0, 8192, id="Llama 3.2 1B"),
    pytest.param(128, 32.0, 1.0, 4.0, 8192, id="Llama 3.2 3B"),
    pytest.param(80, 8.0, 1.0, 4.0, 64, id="80 wide, every branch"),
    pytest.param(128, 8.0, 1.0, 4.0, 64, id="128 wide, every branch"),
]


@pytest.mark.parametrize(("head_dim", "factor", "low", "high", "original"), LLAMA3_SCALINGS)
def test_inverse_frequencies_equal_transformers(
    head_dim: int, factor: float, low: float, high: float, original: int
) -> None:
    """Bit for bit: one last place more in a frequency is an angle of 1e-2 at position 131072."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }
    rope["original_max_position_embeddings"] = original
    reference = LlamaRotaryEmbedding(
        LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=rope)
    )
    scaling = RopeScaling("llama3", factor, low, high, original)
    config = replace(preset("llama-3.1-8b"), head_dim=head_dim, layers=1, rope_scaling=scaling)
    assert (inverse_frequencies(config) == reference.inv_freq.numpy()).all()


def _compare(shape: TinyShape, folder: Path, schemes: list[str]) -> None:
    reference = make_reference(shape)
    source = save_checkpoint(reference, shape, folder / "checkpoint")
    checkpoint = open_source(source)
    ids = some_ids(shape.vocab, IDS, shape.seed)
    expected = reference_logits(reference, ids)
    errors = {
        "captured": relative_error(captured_logits(checkpoint, ids), expected),
        "captured, with past": relative_error(captured_logits(checkpoint, ids, first=13), expected),
    }
    for scheme in schemes:
        compiled = kernel_graph(checkpoint, scheme, "f32")
        errors[f"kernel level, {scheme}"] = relative_error(kernel_logits(checkpoint, compiled, ids), expected)
        errors[f"code, {scheme}"] = _code_error(source, scheme, shape, reference)
    print(shape.name, errors)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE_F32, f"{worst}: {errors[worst]:.2e}; all: {errors}"


def _code_error(source: Path, scheme: str, shape: TinyShape, reference: Any) -> float:
    """The worst of one long step across pages and its beginning alone."""
    artifact = source.parent / f"{scheme.replace(':', '-')}.llamac"
    llamac.compile(source, output=artifact, quantize=scheme, kv="f32", tokenizer=False, validate=False)
    ids = some_ids(shape.vocab, LONG, shape.seed + 1)
    with llamac.load(artifact, threads=1) as model:
        return relative_error(model.logits(ids), reference_logits(reference, ids))
