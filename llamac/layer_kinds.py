"""What a config says about its layers, in the terms of the pipelines."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.models.checkpoint import StoredTensor
from llamac.models.llama.config import LlamaConfig
from llamac.passes.pipelines import LayerCounts


def layer_counts(config: LlamaConfig) -> LayerCounts:
    """How many layers of each kind the passes must find."""
    mixtures = sum(config.is_moe(layer) for layer in range(config.layers))
    pattern = config.attention
    if pattern is None:
        return LayerCounts(config.layers, config.layers, mixtures=mixtures)
    unrotated = sum(layer in pattern.unrotated for layer in range(config.layers))
    rotated = config.layers - unrotated
    return LayerCounts(
        config.layers,
        rotated,
        normed=rotated if pattern.qk_norm else 0,
        tempered=unrotated if pattern.temperature_scale else 0,
        mixtures=mixtures,
    )


def is_uniform(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether q, k and v of each layer, and gate and up, are stored alike, so that each set must fuse."""
    for layer in range(config.layers):
        mlp = "moe.shared" if config.is_moe(layer) else "mlp"
        for names in (("attn.q", "attn.k", "attn.v"), (f"{mlp}.gate", f"{mlp}.up")):
            if len({tensors[f"layers.{layer}.{name}"].encoding for name in names}) != 1:
                return False
    return True
