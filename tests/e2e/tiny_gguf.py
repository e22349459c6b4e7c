"""Tiny GGUF files of arch `llama` written with the `gguf` package, and what transformers computes for them in fp32.

The reference knows nothing of llamac: values come from `gguf.quants.dequantize`, q and k rows go from GGUF's
interleaved rotary order to transformers' halves as llama.cpp's converter defines it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from tiny_llama import TinyShape, make_reference, rope_parameters

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Bytes = NDArray[Any]

HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF name of a weight -> its Hugging Face name, without layer and suffix."""

SHAPE_32 = TinyShape(group=3, head_dim=16, scaled=False, width=96, inner=160, vocab=131)
"""For blocks of 32 values."""
SHAPE_256 = TinyShape(group=2, head_dim=64, scaled=False, width=256, inner=512, vocab=131)
"""For blocks of 256 values: every row must be a whole number of blocks. (Its hidden size may be a multiple of 32.)"""


@dataclass(frozen=True)
class TinyGguf:
    """A written file and transformers' model of exactly its values."""

    path: Path
    reference: LlamaForCausalLM


def hf_name(name: str) -> str:
    """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    stem = name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, layer, stem = stem.split(".", 2)
        return f"model.layers.{layer}.{HF_NAMES[stem]}.weight"
    return f"{HF_NAMES[stem]}.weight"


def to_halves(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of q or k from GGUF's order (pairs side by side) to transformers' (first halves, then second halves)."""
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def to_pairs(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """The inverse: what llama.cpp's converter does (`LlamaModel.permute`)."""
    heads = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def _bits(generator: np.random.Generator, blocks: int, count: int) -> Bytes:
    return generator.integers(0, 256, (blocks, count), dtype=np.uint8)


def _halves(generator: np.random.Generator, blocks: int, size: float) -> Bytes:
    """One f16 a block, of either sign, as bytes."""
    values = generator.uniform(0.5, 1.0, (blocks, 1)) * size * generator.choice([-1, 1], (blocks, 1))
    return values.astype(np.float16).view(np.uint8)


def _k_blocks(high_bytes: int) -> Callable[[np.random.Generator, int], Bytes]:
    """Q4_K (no high bits) and Q5_K (32 bytes of them): d, dmin, 12 bytes of 6-bit scales, the bits."""
    size = 0.0005 if high_bytes else 0.001

    def make(generator: np.random.Generator, blocks: int) -> Bytes:
        d, least = _halves(generator, blocks, size / 4), _halves(generator, blocks, size / 2)
        return np.concatenate([d, least, _bits(generator, blocks, 12 + high_bytes + 128)], axis=1)

    return make


def _q6_k(generator: np.random.Generator, blocks: int) -> Bytes:
    return np.concatenate([_bits(generator, blocks, 128 + 64 + 16), _halves(generator, blocks, 0.00005)], axis=1)


RANDOM_BLOCKS = {Type.Q4_K: _k_blocks(0), Type.Q5_K: _k_blocks(32), Type.Q6_K: _q6_k}
"""Types that `gguf` cannot quantize to: every bit pattern with finite halves is a valid block, so random ones serve."""


def encode(values: NDArray[np.float32], kind: Type, generator: np.random.Generator) -> Bytes:
    """`values` in blocks of `kind`; for the K types other values, of about the same size."""
    if kind not in RANDOM_BLOCKS:
        return gguf.quants.quantize(values, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    made = RANDOM_BLOCKS[kind](generator, values.size // block)
    assert made.shape[1] == size
    return made.reshape(values.shape[0], -1)


def write_tiny_gguf(path: Path, shape: TinyShape, kind_of: Callable[[str], Type], llama3: bool = False) -> TinyGguf:
    """Write a file whose matrices are stored as `kind_of(name)`; `llama3` adds the divisors of a scaled rope."""
    model, generator = make_reference(shape), np.random.default_rng(shape.seed)
    writer = gguf.GGUFWriter(path, "llama")
    _write_metadata(writer, shape, llama3)
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    stored: dict[str, NDArray[np.float32]] = {}
    for name in _tensor_names(shape):
        values = state[hf_name(name)]
        kind = kind_of(name) if values.ndim == 2 else Type.F32
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            values = to_pairs(values, shape.head_dim)
        data = encode(values, kind, generator)
        writer.add_tensor(name, data, raw_dtype=kind)
        stored[name] = gguf.quants.dequantize(data, kind).reshape(values.shape)
    if llama3:
        writer.add_tensor("rope_freqs.weight", _divisors(shape.head_dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    load_gguf_values(model, stored, shape.head_dim)
    return TinyGguf(path, _scaled(model) if llama3 else model)


def load_gguf_values(model: LlamaForCausalLM, stored: Mapping[str, NDArray[np.float32]], head_dim: int) -> None:
    """Put dequantized GGUF tensors into transformers' model; every parameter must get a value."""
    import torch

    state = {}
    for name, values in stored.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            values = to_halves(values, head_dim)
        state[hf_name(name)] = torch.from_numpy(np.array(values, np.float32))
    tied = model.config.tie_word_embeddings
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if tied else []), (missing, unexpected)


def _tensor_names(shape: TinyShape) -> list[str]:
    outer = {"token_embd", "output_norm", "output"}
    names = ["token_embd", "output_norm", *([] if shape.tied else ["output"])]
    for layer in range(shape.layers):
        names += [f"blk.{layer}.{name}" for name in HF_NAMES if name not in outer]
    return [f"{name}.weight" for name in names]


def _write_metadata(writer: gguf.GGUFWriter, shape: TinyShape, llama3: bool) -> None:
    writer.add_name("Tiny")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_vocab_size(shape.vocab)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(rope_parameters(llama3)["rope_theta"])
    writer.add_rope_dimension_count(shape.head_dim)


def _divisors(head_dim: int) -> NDArray[np.float32]:
    """What llama.cpp's converter writes for llama3 scaling, from the formula of its `generate_extra_tensors`."""
    rope = rope_parameters(True)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original, found = rope["original_max_position_embeddings"], []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / head_dim)
        smooth = (original / wavelength - low) / (high - low)
        is_long, is_short = wavelength > original / low, wavelength < original / high
        found.append(factor if is_long else 1.0 if is_short else 1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def _scaled(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same weights with transformers' own llama3 scaling."""
    from transformers import LlamaForCausalLM

    config = type(model.config)(**{**model.config.to_dict(), "rope_parameters": rope_parameters(True)})
    config._attn_implementation = "eager"
    scaled = LlamaForCausalLM(config).eval().requires_grad_(False)
    scaled.load_state_dict(model.state_dict())
    return scaled
