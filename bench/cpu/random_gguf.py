"""GGUF files of random weights in llama.cpp's own block types: every peer that reads GGUF runs the very same values.

python bench/cpu/random_gguf.py llama-3.2-1b q4_0 out.gguf
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.graph import inverse_frequencies
from llamac.models.llama.weights import GGUF, expected_shapes, stored_name
from llamac.models.presets import preset

TYPES = {name.lower(): kind for name, kind in gguf.GGMLQuantizationType.__members__.items()}
SCALES = {"q4_0": ((0,), 8), "q8_0": ((0,), 127), "q4_1": ((0, 2), 8)}
"""Block type -> where the f16 scales of a block lie, and the size of its integers."""
CHUNK_ROWS = 4096


def write_random_gguf(config: LlamaConfig, blocks: str, table: str, path: Path, seed: int = 0) -> None:
    """Write `config` with matrices in `blocks`, embedding and head in `table` (q4_0, q8_0, f16, bf16), norms in f32."""
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    _describe(writer, config)
    if config.rope_scaling is not None:
        writer.add_tensor("rope_freqs.weight", _divisors(config))
    generator = np.random.default_rng(seed)
    for name, shape in expected_shapes(config).items():
        kind = "f32" if len(shape) == 1 else table if name in ("embed", "head") else blocks
        writer.add_tensor(stored_name(name, GGUF), _values(generator, shape, kind), raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: LlamaConfig) -> None:
    writer.add_name(config.name)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _divisors(config: LlamaConfig) -> NDArray[np.float32]:
    """What llama3 scaling divides the frequencies by: those without it over those with it."""
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    return np.asarray(plain / inverse_frequencies(config), np.float32)


def _values(generator: np.random.Generator, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    if len(shape) == 1:
        return np.asarray(1 + generator.standard_normal(shape) / 50, np.float32)
    if kind in ("f16", "bf16", "f32"):
        return _floats(generator, shape, kind)
    return np.concatenate(list(_blocks(generator, shape, kind)))


def _floats(generator: np.random.Generator, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    values = generator.standard_normal(shape, np.float32) / np.float32(shape[1] ** 0.5)
    if kind != "bf16":
        return values.astype(np.float16 if kind == "f16" else np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(shape[0], -1)


def _blocks(generator: np.random.Generator, shape: tuple[int, ...], kind: str) -> Iterator[NDArray[np.uint8]]:
    """Random integers with scales of a sane size, some rows at a time."""
    values, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    places, largest = SCALES[kind]
    for start in range(0, shape[0], CHUNK_ROWS):
        rows = min(CHUNK_ROWS, shape[0] - start)
        data = generator.integers(0, 256, (rows * shape[1] // values, size), np.uint8)
        scale = np.float16(1.7 / (largest * shape[1] ** 0.5))
        for place in places:
            sign = -8 if place else 1
            data[:, place : place + 2] = np.array([scale * sign], np.float16).view(np.uint8)
        yield data.reshape(rows, -1)


if __name__ == "__main__":
    write_random_gguf(preset(sys.argv[1]), sys.argv[2], sys.argv[2], Path(sys.argv[3]))
