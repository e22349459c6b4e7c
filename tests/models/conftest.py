"""Tiny checkpoints of every kind, made with the reference libraries."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent))

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 64, 2, 4, 2, 16, 96, 40


@pytest.fixture
def raw_config() -> dict[str, Any]:
    """A complete config.json of the tiny model, in the new spelling."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "float32",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _hf_shapes() -> dict[str, tuple[int, ...]]:
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (HIDDEN,)
        shapes[layer + "self_attn.q_proj.weight"] = (queries, HIDDEN)
        shapes[layer + "self_attn.k_proj.weight"] = (keys, HIDDEN)
        shapes[layer + "self_attn.v_proj.weight"] = (keys, HIDDEN)
        shapes[layer + "self_attn.o_proj.weight"] = (HIDDEN, queries)
        shapes[layer + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[layer + "mlp.gate_proj.weight"] = (INNER, HIDDEN)
        shapes[layer + "mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[layer + "mlp.down_proj.weight"] = (HIDDEN, INNER)
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return shapes


@pytest.fixture
def hf_weights() -> dict[str, NDArray[Any]]:
    """Random f32 weights of the tiny model under their Hugging Face names."""
    generator = np.random.default_rng(7)
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in _hf_shapes().items()}


WriteHf = Callable[..., Path]


@pytest.fixture
def write_hf(tmp_path: Path) -> WriteHf:
    """Write a folder: config, weights (a dict, or a list of dicts for shards with an index), other files by name."""

    def write(
        config: Mapping[str, Any],
        weights: Mapping[str, NDArray[Any]] | list[dict[str, NDArray[Any]]] | None = None,
        files: Mapping[str, Any] | None = None,
        folder: str = "model",
    ) -> Path:
        directory = tmp_path / folder
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config))
        if isinstance(weights, list):
            names = [f"model-{i + 1:05}-of-{len(weights):05}.safetensors" for i in range(len(weights))]
            weight_map = {}
            for name, shard in zip(names, weights, strict=True):
                save_file(shard, directory / name)
                weight_map.update(dict.fromkeys(shard, name))
            (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        elif weights is not None:
            save_file(dict(weights), directory / "model.safetensors")
        for name, content in (files or {}).items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (directory / name).write_bytes(data)
        return directory

    return write


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def gguf_weights(hf_weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The same weights under their GGUF names (the order of q and k rows does not matter to a reader)."""
    renamed = {}
    for name, value in hf_weights.items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            index, suffix = stem.removeprefix("model.layers.").split(".", 1)
            renamed[f"blk.{index}.{GGUF_NAMES[suffix]}.weight"] = value
        else:
            renamed[f"{GGUF_NAMES[stem]}.weight"] = value
    return renamed


@pytest.fixture
def gguf_metadata() -> dict[str, Any]:
    """The metadata of the tiny model; a value is written with the type its Python type suggests."""
    tokens = [*(f"t{index}" for index in range(VOCABULARY - 2)), "<|begin|>", "<|im_end|>"]
    return {
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        "llama.block_count": LAYERS,
        "llama.context_length": 256,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.vocab_size": VOCABULARY,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (VOCABULARY - 2) + [3, 3],
        "tokenizer.ggml.merges": ["t 0", "t 1"],
        "tokenizer.ggml.bos_token_id": VOCABULARY - 2,
        "tokenizer.ggml.eos_token_id": 5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages }}",
    }


WriteGguf = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """Write a GGUF file with the reference writer; `types` gives tensors another type than F32."""

    def write(
        metadata: Mapping[str, Any],
        weights: Mapping[str, NDArray[Any]],
        types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
        architecture: str = "llama",
        name: str = "tiny.gguf",
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in metadata.items():
            _add(writer, key, value)
        for tensor, value in weights.items():
            kind = (types or {}).get(tensor)
            if kind is None:
                writer.add_tensor(tensor, value)
            else:
                writer.add_tensor(tensor, blocks(kind, value), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def blocks(kind: gguf.GGMLQuantizationType, value: NDArray[Any]) -> NDArray[Any]:
    """Blocks of `kind`: quantized where gguf can, else bytes of the right number (a reader does not look inside)."""
    try:
        return gguf.quants.quantize(value, kind)
    except NotImplementedError:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (*value.shape[:-1], value.shape[-1] // values * size)
        return np.random.default_rng(int(kind)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(name="blocks")
def blocks_fixture() -> Callable[[gguf.GGMLQuantizationType, NDArray[Any]], NDArray[Any]]:
    """`blocks` as a fixture: tests do not import one another."""
    return blocks
