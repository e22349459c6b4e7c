"""The arena of intermediate values: planned by the compiler itself, on a model of the same widths with few layers.

Equal layers use the same memory one after another: a model with every kind of layer twice has the arena of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from llamac.errors import LlamacError
from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts
from llamac.models.llama.shrink import small_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import Quantization

REPEATS = 2
"""Layers of one kind that are kept: the second one finds the hidden state where all later ones find it."""


@dataclass(frozen=True)
class Arena:
    """Bytes of the arena, and why they are an estimate; nothing when the compiler planned them."""

    bytes: int
    estimated: str = ""


def plan_arena(
    config: LlamaConfig, encodings: Mapping[str, str], quantization: Quantization, step_tokens: int
) -> Arena:
    """The arena of a step of at most `step_tokens` tokens on a CPU target."""
    from llamac.driver import compile_graph

    small, stored = few_layers(config, encodings)
    try:
        checkpoint = replace(random_checkpoint(small, 0), tensors=small_tensors(small, stored))
        return Arena(compile_graph(checkpoint, quantization, None, step_tokens, None, []).limits.arena_bytes)
    except LlamacError as error:
        return Arena(estimate_arena(config, step_tokens), f"{error.code}: {error.reason}")


def estimate_arena(config: LlamaConfig, step_tokens: int, tp: int = 1) -> int:
    """About what one layer has in use at once, in f32: hidden state and its norm, and q, k, v or gate and up."""
    heads = (config.heads + 2 * max(config.kv_heads // tp, 1) * tp) * config.head_dim
    inner = config.moe.intermediate_size if config.moe else 0
    widest = max(heads + config.heads * config.head_dim, 3 * max(config.intermediate_size, inner))
    return step_tokens * (3 * config.hidden_size + -(-widest // tp)) * 4


def few_layers(config: LlamaConfig, encodings: Mapping[str, str]) -> tuple[LlamaConfig, dict[str, str]]:
    """The config with at most `REPEATS` layers of each kind, in their order, and the encodings of its weights.

    A kind is what the config says of a layer, and how each of its weights is stored.
    """
    seen: Counter[tuple[object, ...]] = Counter()
    kept: list[int] = []
    by_layer: dict[int, list[tuple[str, str]]] = {}
    for name in expected_shapes(config):
        if name.startswith("layers."):
            _, index, suffix = name.split(".", 2)
            by_layer.setdefault(int(index), []).append((suffix, encodings.get(name, config.dtype)))
    unrotated = set(config.attention.unrotated if config.attention else ())
    crossing = set(config.cross_layers)
    for layer, stored in by_layer.items():
        kind = (config.is_moe(layer), layer in unrotated, layer in crossing, *stored)
        seen[kind] += 1
        if seen[kind] <= REPEATS:
            kept.append(layer)
    small = replace(
        config,
        layers=len(kept),
        moe=_moe(config.moe, kept),
        attention=_attention(config.attention, kept),
        cross_layers=_renumbered(config.cross_layers, kept),
    )
    return small, _encodings(small, config, encodings, kept)


def _renumbered(layers: Iterable[int], kept: list[int]) -> tuple[int, ...]:
    """Indices among the kept layers."""
    wanted = set(layers)
    return tuple(index for index, layer in enumerate(kept) if layer in wanted)


def _moe(moe: MixtureOfExperts | None, kept: list[int]) -> MixtureOfExperts | None:
    return replace(moe, layers=_renumbered(moe.layers, kept)) if moe is not None else None


def _attention(pattern: AttentionPattern | None, kept: list[int]) -> AttentionPattern | None:
    return replace(pattern, unrotated=_renumbered(pattern.unrotated, kept)) if pattern is not None else None


def _encodings(
    small: LlamaConfig, config: LlamaConfig, encodings: Mapping[str, str], kept: list[int]
) -> dict[str, str]:
    found = {}
    for name in expected_shapes(small):
        source = name
        if name.startswith("layers."):
            _, index, suffix = name.split(".", 2)
            source = f"layers.{kept[int(index)]}.{suffix}"
        found[name] = encodings.get(source, config.dtype)
    return found
