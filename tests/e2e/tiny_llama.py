"""Tiny random Llamas: made by transformers, saved by transformers, computed by transformers in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Floats = NDArray[np.float32]

WEIGHT_SCALE = 8.0
"""Matrices start with a deviation of 0.02, which makes logits nearly flat: errors would hide in them."""


@dataclass(frozen=True)
class TinyShape:
    """One tiny Llama. `scaled` is llama3 rope scaling with a short original context, so that it matters at once.

    `width` is the least hidden size: transformers wants a multiple of the heads, and a larger one is none of 32.
    """

    group: int = 3
    head_dim: int = 16
    tied: bool = False
    scaled: bool = True
    dtype: str = "f32"
    kv_heads: int = 2
    width: int = 72
    inner: int = 100
    vocab: int = 131
    layers: int = 2
    sharded: bool = False
    context: int = 2048
    seed: int = 0

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.group * self.kv_heads

    @property
    def hidden(self) -> int:
        """The hidden size."""
        sizes = range(-(-self.width // self.heads) * self.heads, 10**6, self.heads)
        return next(size for size in sizes if size == self.width or size % 32)

    @property
    def name(self) -> str:
        """What a test's id and a folder are called."""
        flags = ("tied" if self.tied else "untied") + ("-scaled" if self.scaled else "")
        shards = "-sharded" if self.sharded else ""
        size = f"{self.hidden}x{self.inner}x{self.vocab}x{self.layers}"
        return f"gqa{self.group}-h{self.head_dim}-{flags}-{self.dtype}{shards}-{size}"


def rope_parameters(scaled: bool) -> dict[str, Any]:
    """transformers' rope settings: llama3 scaling with all three of its branches in use, or none."""
    if not scaled:
        return {"rope_type": "default", "rope_theta": 10000.0}
    return {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }


def make_reference(shape: TinyShape) -> LlamaForCausalLM:
    """The model in fp32; with dtype bf16 its weights are values that bf16 holds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(shape.seed)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=1e-5,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        rope_parameters=rope_parameters(shape.scaled),
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim >= 2:
            weight.mul_(WEIGHT_SCALE)
        else:
            weight.add_(torch.randn_like(weight) * 0.2)  # norm weights of one would hide a norm that lost its weight
        if shape.dtype == "bf16":
            weight.copy_(weight.to(torch.bfloat16))
    return model


def save_checkpoint(model: LlamaForCausalLM, shape: TinyShape, folder: Path) -> Path:
    """The folder that `save_pretrained` writes, in the shape's dtype, in one file or several."""
    import copy

    import torch

    stored = copy.deepcopy(model).to(torch.bfloat16 if shape.dtype == "bf16" else torch.float32)
    size = sum(weight.numel() * weight.element_size() for weight in stored.parameters())
    stored.save_pretrained(folder, max_shard_size=size // 3 if shape.sharded else "5GB")
    shards = len(list(folder.glob("*.safetensors")))
    assert (shards > 1) == shape.sharded, f"{shards} shards"
    return folder


def reference_logits(model: LlamaForCausalLM, ids: NDArray[np.integer[Any]] | list[int]) -> Floats:
    """transformers' fp32 logits after every id, [len(ids), vocab]."""
    import torch

    with torch.no_grad():
        found: Floats = model(torch.tensor(np.asarray(ids, np.int64))[None]).logits[0].float().numpy()
    return found


def some_ids(vocab: int, count: int, seed: int = 0) -> list[int]:
    """Random ids; the first and the last of the vocabulary are among them."""
    ids = np.random.default_rng(seed).integers(0, vocab, count)
    ids[0], ids[count // 2] = vocab - 1, 0
    return [int(i) for i in ids]


def relative_error(found: NDArray[Any], reference: NDArray[Any]) -> float:
    """Largest difference over largest magnitude of the reference."""
    assert found.shape == reference.shape and np.isfinite(found).all()
    return float(np.abs(found - reference).max() / np.abs(reference).max())
