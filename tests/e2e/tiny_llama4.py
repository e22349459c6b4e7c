"""Tiny random Llama 4 text models: made and computed by transformers, handed to llamac weight by weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.models.checkpoint import Checkpoint, GenerationDefaults, StoredTensor
from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts, RopeScaling
from llamac.models.llama.weights import expected_shapes

Floats = NDArray[np.float32]
SCOUT = RopeScaling("llama3", 16.0, 1.0, 1.0, 8192)


@dataclass(frozen=True)
class Tiny4:
    """A tiny Llama 4: a chunk of 8 positions and a temperature that changes every 4, so that 20 tokens show both.

    interval: every so many layers one is not rotated and sees everything; 0: all are rotated. chunk 0: all see all.
    """

    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    hidden: int = 64
    inner: int = 128
    expert_inner: int = 96
    experts: int = 4
    top_k: int = 1
    step: int = 2
    qk_norm: bool = True
    chunk: int = 8
    interval: int = 4
    tempered: bool = True
    floor: int = 4
    vocab: int = 131
    tied: bool = False
    dtype: str = "f32"
    seed: int = 0

    def config(self) -> LlamaConfig:
        """The model as llamac names it."""
        moe_layers = tuple(range(self.step - 1, self.layers, self.step)) if self.experts else ()
        return LlamaConfig(
            name="tiny-llama4",
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            rms_norm_eps=1e-5,
            rope_theta=5e5,
            rope_scaling=SCOUT,
            context_length=262144,
            tied_head=self.tied,
            dtype=self.dtype,
            rope_style="interleaved",
            architecture="llama4",
            moe=MixtureOfExperts(self.experts, self.top_k, self.expert_inner, moe_layers) if self.experts else None,
            attention=AttentionPattern(
                tuple(i for i in range(self.layers) if self.interval and (i + 1) % self.interval == 0),
                self.chunk,
                self.qk_norm,
                float(self.floor),
                0.1 if self.tempered else 0.0,
            ),
        )

    def transformers_config(self) -> dict[str, Any]:
        """The same for transformers."""
        rope = {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        }
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.expert_inner,
            "intermediate_size_mlp": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "moe_layers": list(range(self.step - 1, self.layers, self.step)) if self.experts else [],
            "no_rope_layers": [int(not self.interval or (i + 1) % self.interval != 0) for i in range(self.layers)],
            "attention_chunk_size": self.chunk or 8192,
            "use_qk_norm": self.qk_norm,
            "floor_scale": self.floor,
            "attn_scale": 0.1,
            "attn_temperature_tuning": self.tempered,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 262144,
            "tie_word_embeddings": self.tied,
            "rope_parameters": rope,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


def make_model(shape: Tiny4) -> Any:
    """The transformers model in fp32, its weights large enough that errors show."""
    import torch
    import transformers

    torch.manual_seed(shape.seed)
    config = transformers.Llama4TextConfig(**shape.transformers_config())
    config._attn_implementation = "eager"
    model = transformers.Llama4ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * (1.2 / parameter.shape[-1] ** 0.5))
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def weights_of(model: Any, config: LlamaConfig) -> dict[str, Floats]:
    """Model-level weights, experts stacked by rows."""
    stored = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    found: dict[str, Floats] = {}
    renamed = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    for name, shape in expected_shapes(config).items():
        if name in ("embed", "norm", "head"):
            outer = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}[name]
            array = stored[f"{outer}.weight"]
        else:
            _, layer, part = name.split(".", 2)
            place = f"model.layers.{layer}."
            if part in renamed:
                array = stored[f"{place}{renamed[part]}.weight"]
            elif part.startswith("attn."):
                array = stored[f"{place}self_attn.{part[5:]}_proj.weight"]
            elif part.startswith("mlp."):
                array = stored[f"{place}feed_forward.{part[4:]}_proj.weight"]
            elif part == "moe.router":
                array = stored[f"{place}feed_forward.router.weight"]
            elif part.startswith("moe.shared."):
                array = stored[f"{place}feed_forward.shared_expert.{part[11:]}_proj.weight"]
            else:
                array = _experts(stored, f"{place}feed_forward.experts.", part)
        found[name] = np.ascontiguousarray(array, np.float32).reshape(shape)
    return found


def _experts(stored: dict[str, Any], place: str, part: str) -> Floats:
    if part == "moe.down":
        return np.asarray(stored[f"{place}down_proj"].transpose(0, 2, 1))
    gate, up = np.split(stored[f"{place}gate_up_proj"], 2, axis=2)
    return np.asarray((gate if part == "moe.gate" else up).transpose(0, 2, 1))


class ArrayRows:
    """Rows of arrays in memory."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> NDArray[np.uint8]:
        """Bytes of rows [lo, hi)."""
        array = self.arrays[tensor.name]
        rows = array[lo:hi] if array.ndim == 2 else array
        return np.ascontiguousarray(rows).view(np.uint8).reshape(-1)


def checkpoint_of(arrays: dict[str, Floats], config: LlamaConfig) -> Checkpoint:
    """A checkpoint of weights in memory, stored in the config's dtype."""
    from llamac.ir.dtypes import DTYPES

    stored = {name: array.astype(DTYPES[config.dtype].storage) for name, array in arrays.items()}
    tensors = {
        name: StoredTensor(name, name, array.shape, config.dtype, Path("memory"), 0, array.nbytes)
        for name, array in stored.items()
    }
    rows = ArrayRows(stored)
    return Checkpoint(config, tensors, "random", None, None, GenerationDefaults(), config.name, None, [], rows)


def save_model(model: Any, shape: Tiny4, folder: Path) -> Path:
    """The folder that `save_pretrained` writes, in the shape's dtype; a config without chunks says so by null."""
    import copy
    import json

    import torch

    stored = copy.deepcopy(model).to(torch.bfloat16) if shape.dtype == "bf16" else model
    stored.save_pretrained(folder)
    if not shape.chunk:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_chunk_size": None}))
    return folder


def reference_logits(model: Any, ids: list[int]) -> Floats:
    """transformers' logits after every id, [len(ids), vocab]."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy())
