"""GGUF blocks taken apart, against the `gguf` package's own dequantize: bit for bit, on random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from llamac.ir.builder import Builder
from llamac.ir.definition import OpError
from llamac.ir.dtypes import U8
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.gguf_blocks import BLOCKS, BlockFormat, block_mins, block_quants, block_scales
from llamac.ir.graph import FileSource, Module
from llamac.ir.registry import infer_types
from llamac.ir.types import tensor

TYPES = {name: getattr(gguf.GGMLQuantizationType, name.upper()) for name in BLOCKS}
HALVES = {
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q8_0": [0],
    "q4_k": [0, 2],
    "q5_k": [0, 2],
    "q6_k": [208],
}
"""Offsets of the f16 numbers of a block: random bits there must not be infinite or NaN."""


def _random_blocks(fmt: BlockFormat, rows: int, blocks: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows * blocks, fmt.bytes), dtype=np.uint8)
    for at in HALVES[fmt.name]:
        bits = random.integers(0, 1 << 16, rows * blocks, dtype=np.uint16)
        bits[(bits & 0x7C00) == 0x7C00] &= 0x83FF  # infinities and NaNs become subnormals
        raw[:, at : at + 2] = bits[:, None].view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("name", BLOCKS)
def test_sizes_are_those_of_ggml(name: str) -> None:
    fmt = BLOCKS[name]
    assert gguf.GGML_QUANT_SIZES[TYPES[name]] == (fmt.values, fmt.bytes)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_ggml_bit_for_bit(name: str, seed: int) -> None:
    fmt = BLOCKS[name]
    raw = _random_blocks(fmt, 5, 7, seed)
    module = Module("m", "captured")
    b = Builder(module)
    blocks = b.weight("w.blocks", tensor(*raw.shape, U8), FileSource("w", name))
    parts = [b.define(f"w.{p}", f"block_{p}", blocks, format=name) for p in ("quants", "scales")]
    if fmt.minimum:
        parts.append(b.define("w.mins", "block_mins", blocks, format=name))
    whole = b.define("w", "dequantize", *parts, group=fmt.group)
    found = WeightEvaluator(lambda tensor, lo, hi: raw[lo:hi]).whole(whole)
    expected = gguf.quants.dequantize(raw, TYPES[name])
    assert found.dtype == expected.dtype == np.float32 and found.shape == expected.shape
    assert ((found.view(np.uint32) == expected.view(np.uint32)) | ((found == 0) & (expected == 0))).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_parts_fit_their_types(name: str) -> None:
    fmt = BLOCKS[name]
    raw = _random_blocks(fmt, 3, 4, 0)
    quants, scales = block_quants(fmt, raw), block_scales(fmt, raw)
    assert quants.dtype == fmt.quants.storage and quants.shape == (3, 4 * fmt.values)
    assert scales.dtype == fmt.scale.storage and scales.shape == (3, 4 * fmt.values // fmt.group)
    bits, signed = fmt.quants.bits, fmt.quants.name.startswith("i")
    assert quants.min() >= (-(2 ** (bits - 1)) if signed else 0) and quants.max() < 2 ** (bits - signed)
    if fmt.minimum:
        assert block_mins(fmt, raw).dtype == fmt.minimum.storage


@pytest.mark.parametrize(
    ("part", "row_bytes", "format", "reason"),
    [
        ("quants", 19, "q4_0", "does not hold whole 18-byte q4_0 blocks"),
        ("scales", 36, "q9_0", "unknown block format 'q9_0'"),
        ("mins", 36, "q4_0", "have no minimum"),
    ],
)
def test_wrong_blocks(part: str, row_bytes: int, format: str, reason: str) -> None:
    with pytest.raises(OpError, match=reason):
        infer_types(f"block_{part}", [tensor(2, row_bytes, U8)], {"format": format})
