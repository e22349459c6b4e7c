"""What llama.cpp's architectures `llama` and `llama4` can say, and a config in their keys.

The metadata of `llama4` leaves most of its attention to constants of llama.cpp's loader; a model that differs from them
would run as another one, so it is refused. (llama.cpp: src/llama-model.cpp, conversion of LlamaForCausalLM.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama4.gguf_config import (
    CHUNK,
    TEMPERATURE_FLOOR,
    TEMPERATURE_SCALE,
    UNROTATED_EVERY,
    WITHOUT_QK_NORM,
)

from ..rope_fit import rope_divisors as llama3_divisors
from .keys import Keys

ELSEWHERE = "export it with --to hf, for Transformers and vLLM"


def check_architecture(config: LlamaConfig) -> None:
    """LLC0945 for a model that has no form in GGUF, or that llama.cpp would compute otherwise."""
    if config.architecture == "mllama":
        reason = "llama.cpp has no architecture for Llama 3.2 Vision's cross-attention layers"
        raise LlamacError("LLC0945", config.name, reason, ELSEWHERE)
    if config.architecture == "llama4":
        _check_mixture(config)
        _check_attention(config)


def _check_mixture(config: LlamaConfig) -> None:
    if config.moe is None:
        reason = "llama.cpp loads no Llama 4 without routed experts (Guard 4)"
        raise LlamacError("LLC0945", config.name, reason, ELSEWHERE)
    step = config.moe.layers[0] + 1
    if config.moe.layers != tuple(range(step - 1, config.layers, step)):
        layers = ", ".join(map(str, config.moe.layers[:6]))
        reason = f"its mixture layers ({layers} ...) do not come at one step, which is all that GGUF can say"
        raise LlamacError("LLC0945", config.name, reason, ELSEWHERE)


def _check_attention(config: LlamaConfig) -> None:
    """The pattern must be llama.cpp's, as far as positions below the context length can tell."""
    pattern, moe = config.attention, config.moe
    assert pattern is not None and moe is not None
    every = tuple(range(UNROTATED_EVERY - 1, config.layers, UNROTATED_EVERY))
    reaches = config.context_length > CHUNK
    chunk = pattern.chunk if 0 < pattern.chunk < config.context_length else 0
    differences = []
    if not _is_plain(config):
        if pattern.unrotated != every:
            differences.append(f"the layers without rotation are {list(pattern.unrotated)[:6]}, not every 4th")
        if chunk != (CHUNK if reaches else 0):
            differences.append(f"chunks of {pattern.chunk} positions, not {CHUNK}")
    tempered = (pattern.temperature_floor, pattern.temperature_scale)
    if pattern.unrotated and not _tempers_alike(config, *tempered):
        differences.append(f"attention temperature of {tempered}, not {(TEMPERATURE_FLOOR, TEMPERATURE_SCALE)}")
    if pattern.qk_norm != (moe.experts != WITHOUT_QK_NORM):
        state = "normalized" if pattern.qk_norm else "not normalized"
        differences.append(f"queries and keys are {state} beside {moe.experts} experts")
    if differences:
        reason = f"llama.cpp has constants for Llama 4, and this model has others: {'; '.join(differences)}"
        raise LlamacError("LLC0945", config.name, reason, ELSEWHERE)


def _tempers_alike(config: LlamaConfig, floor: float, scale: float) -> bool:
    """Whether queries get llama.cpp's factors at every position of the context."""
    own_starts = config.context_length >= floor and scale != 0
    if config.context_length < TEMPERATURE_FLOOR:
        return not own_starts
    return (floor, scale) == (TEMPERATURE_FLOOR, TEMPERATURE_SCALE)


def _is_plain(config: LlamaConfig) -> bool:
    """Every layer rotated, and every position seen by all: what a sliding window of 0 says."""
    pattern = config.attention
    assert pattern is not None
    return not pattern.unrotated and not 0 < pattern.chunk < config.context_length


def architecture_keys(config: LlamaConfig) -> Keys:
    """The keys `llama.*` or `llama4.*`."""
    keys: Keys = {
        "block_count": config.layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.head_dim,
    }
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling.factor)}
    if config.moe is not None:
        keys |= {
            "expert_count": config.moe.experts,
            "expert_used_count": config.moe.experts_per_token,
            "expert_feed_forward_length": config.moe.intermediate_size,
            "interleave_moe_layer_step": config.moe.layers[0] + 1,
        }
        if _is_plain(config):
            keys["attention.sliding_window"] = 0
    return {f"{config.architecture}.{name}": value for name, value in keys.items()}


def rope_divisors(config: LlamaConfig) -> NDArray[np.float32] | None:
    """`rope_freqs.weight` [head_dim / 2]: what each inverse frequency is divided by; None where nothing divides it."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "linear":
        return None
    if scaling.kind == "divisors":
        return np.array(scaling.divisors, np.float32)
    return llama3_divisors(scaling, config.rope_theta, config.head_dim).astype(np.float32)
