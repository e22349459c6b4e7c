"""What a config says about its layers, in the terms of the pipelines."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.ir.types import CacheType
from llamac.models.checkpoint import StoredTensor
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision
from llamac.passes.pipelines import LayerCounts


def layer_counts(config: LlamaConfig) -> LayerCounts:
    """How many layers of each kind the passes must find."""
    mixtures = sum(config.is_moe(layer) for layer in range(config.layers))
    pattern, cross = config.attention, len(config.cross_layers)
    merges = int(isinstance(config.vision, Llama4Vision))
    if pattern is None:
        own = config.layers - cross
        return LayerCounts(config.layers, own, mixtures=mixtures, cross=cross, merges=merges)
    unrotated = sum(layer in pattern.unrotated for layer in range(config.layers))
    rotated = config.layers - unrotated
    return LayerCounts(
        config.layers,
        rotated,
        normed=rotated if pattern.qk_norm else 0,
        tempered=unrotated if pattern.temperature_scale else 0,
        mixtures=mixtures,
        merges=merges,
    )


def cached_layers(config: LlamaConfig, cache: CacheType) -> list[int]:
    """The layers that share a cache, in its order: those whose rows see what it holds."""
    if cache.cross:
        return list(config.cross_layers)
    pattern = config.attention
    chunked = set() if pattern is None or not pattern.chunk else set(range(config.layers)) - set(pattern.unrotated)
    own = [layer for layer in range(config.layers) if layer not in config.cross_layers]
    return [layer for layer in own if (layer in chunked) == bool(cache.chunk)]


def is_uniform(config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether q, k and v of each layer, and gate and up, are stored alike, so that each set must fuse."""
    for layer in range(config.layers):
        mlp = "moe.shared" if config.is_moe(layer) else "mlp"
        own = () if layer in config.cross_layers else ("attn.q", "attn.k", "attn.v")
        for names in filter(None, (own, (f"{mlp}.gate", f"{mlp}.up"))):
            if len({tensors[f"layers.{layer}.{name}"].encoding for name in names}) != 1:
                return False
    return True
