"""Random weights: the same bits on any host, whichever way they are cut into reads."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models.llama.weights import expected_shapes
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint

DTYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
HASHES = {
    ("f32", "embed"): "d593d40e0471e6ec",
    ("bf16", "layers.1.mlp.down"): "fa03323bd936693a",
    ("f16", "norm"): "5498b7cc30061009",
}
"""First 16 hex digits of the sha256 of the weight, preset `tiny`, seed 1: these bits are promised."""


def values(dtype: str, name: str, seed: int = 1) -> NDArray[Any]:
    checkpoint = random_checkpoint(replace(preset("tiny"), dtype=dtype), seed)
    tensor = checkpoint.tensors[name]
    rows: NDArray[Any] = checkpoint.read_rows(name, 0, tensor.rows).reshape(-1).view(DTYPES[dtype])
    return rows.reshape(tensor.shape)


@pytest.mark.parametrize(("dtype", "name"), HASHES)
def test_promised_bits(dtype: str, name: str) -> None:
    assert hashlib.sha256(values(dtype, name).tobytes()).hexdigest()[:16] == HASHES[dtype, name]


def philox(counter: int, key: int) -> list[int]:
    """Philox 4x64, 10 rounds, as published (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    mask = 2**64 - 1
    words = [counter >> (64 * index) & mask for index in range(4)]
    low_key, high_key = key & mask, key >> 64
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [second >> 64 ^ words[1] ^ low_key, second & mask, first >> 64 ^ words[3] ^ high_key, first & mask]
        low_key, high_key = (low_key + 0x9E3779B97F4A7C15) & mask, (high_key + 0xBB67AE8584CAA73B) & mask
    return words


@pytest.mark.parametrize(("row", "block"), [(0, 0), (64, 1), (192, 3)])
def test_bits_follow_from_the_published_generator(row: int, block: int) -> None:
    key = int.from_bytes(hashlib.sha256(b"1/embed").digest()[:16], "little")
    outputs = philox((block << 64) + 1, key) + philox((block << 64) + 2, key)
    levels = [output >> shift & 0xFFFF for output in outputs for shift in (0, 16, 32, 48)]
    expected = [(2 * level + 1 - 65536) / 65536 / 32 for level in levels]
    assert values("f32", "embed")[row, : len(expected)].tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_distribution(dtype: str) -> None:
    matrix = values(dtype, "embed").astype(np.float64)
    assert 0.017 < matrix.std() < 0.019 and abs(matrix.mean()) < 5e-4 and abs(matrix).max() <= 2**-5
    norm = values(dtype, "norm").astype(np.float64)
    assert abs(norm - 1).max() <= 2**-5 and norm.std() > 0.01


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_types_are_the_f32_values_rounded(dtype: str) -> None:
    for name in ("embed", "norm"):
        assert values(dtype, name).tobytes() == values("f32", name).astype(DTYPES[dtype]).tobytes()


def test_any_cut_gives_the_same_rows() -> None:
    checkpoint = random_checkpoint(preset("tiny-untied"), 5)
    whole = checkpoint.read_rows("head", 0, 259)
    for lo, hi in [(0, 1), (63, 65), (64, 128), (100, 259), (258, 259), (7, 7)]:
        assert checkpoint.read_rows("head", lo, hi).tolist() == whole[lo:hi].tolist()
    pieces = [checkpoint.read_rows("head", lo, min(lo + 37, 259)) for lo in range(0, 259, 37)]
    assert np.concatenate(pieces).tolist() == whole.tolist()


def test_streams_differ() -> None:
    rows = [
        values("f32", "layers.0.attn.q"),
        values("f32", "layers.1.attn.q"),
        values("f32", "layers.0.attn.q", seed=2),
    ]
    assert len({row.tobytes() for row in rows}) == 3
    embed = values("f32", "embed")
    assert embed[:64].tobytes() != embed[64:128].tobytes()
    assert len(np.unique(embed)) > 10_000


def test_every_weight_has_its_shape() -> None:
    checkpoint = random_checkpoint(preset("llama-3.2-1b"), 0)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == expected_shapes(checkpoint.config)
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) == 2 * checkpoint.config.parameters
    assert checkpoint.tokenizer is None and checkpoint.ledger[0]["what"] == "random, seed 0"


@pytest.mark.parametrize("seed", [-1, 2**64, True])
def test_bad_seed(seed: int) -> None:
    with pytest.raises(LlamacError, match="LLC0218 --random-weights"):
        random_checkpoint(preset("tiny"), seed)
