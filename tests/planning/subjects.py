"""What the tests of this folder plan: presets and requests with the usual values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision
from llamac.models.presets import preset
from llamac.passes.pipelines import Quantization
from llamac.planning.plan import Subject
from llamac.planning.request import Request

_INTEGERS = "int8 int8:g64 int8:asym int8:g128:asym int4 int4:g64 int4:g128 int4:asym int4:g64:asym"
SCHEMES = ("keep", "f32", "f16", "bf16", "fp8", *_INTEGERS.split())


def subject(name: str) -> Subject:
    """A preset as a bare config."""
    return Subject(name, preset(name), {})


def shortened(name: str, layers: int) -> LlamaConfig:
    """A preset with fewer layers: weights and arenas are those of the whole, layer by layer."""
    return replace(preset(name), layers=layers)


def small_llama4(name: str) -> LlamaConfig:
    """A preset of Llama 4 with eight narrow layers, three narrow experts, and no image encoder."""
    config = preset(name)
    moe, pattern = config.moe, config.attention
    assert pattern is not None
    if moe is not None:
        moe = replace(moe, experts=3, intermediate_size=48, layers=tuple(n for n in moe.layers if n < 8))
    widths = {"hidden_size": 64, "intermediate_size": 72, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab_size": 259}
    kept = replace(pattern, unrotated=(3, 7), chunk=512)
    return replace(config, **widths, layers=8, moe=moe, attention=kept, vision=None, dtype="f32", context_length=65536)


def small_pictures(name: str) -> LlamaConfig:
    """A preset that sees pictures, narrow: more layers and blocks of every kind than a plan compiles, some unlike."""
    config = preset(name)
    vision = config.vision
    if isinstance(vision, Llama4Vision):
        narrow = {"hidden_size": 32, "intermediate_size": 72, "layers": 4, "heads": 2, "image_size": 56}
        text = replace(small_llama4(name), layers=4)
        moe = replace(text.moe, layers=(1, 2, 3)) if text.moe is not None else None
        pattern = replace(text.attention, unrotated=(3,)) if text.attention is not None else None
        seen = replace(vision, **narrow, adapter_hidden=40, adapter_output=48)
        return replace(text, moe=moe, attention=pattern, vision=seen, dtype="bf16")
    assert isinstance(vision, MllamaVision)
    narrow = {"hidden_size": 32, "intermediate_size": 72, "layers": 6, "global_layers": 3, "heads": 2}
    seen = replace(vision, **narrow, image_size=140, taps=(1, 4), output_size=96)
    widths = {"hidden_size": 64, "intermediate_size": 72, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab_size": 259}
    return replace(config, **widths, layers=6, cross_layers=(1, 3, 5), vision=seen, context_length=65536)


def request(config: LlamaConfig, **changes: Any) -> Request:
    """One sequence of 4096 tokens (or of the model's context) with an f16 cache."""
    context = min(changes.pop("context", 4096), config.context_length)
    asked = Request(Quantization(), "f16", context, 1, 1, 0, 512, changes.pop("prompt_tokens", context))
    return replace(asked, **changes)
