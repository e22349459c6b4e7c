"""A config from the plain JSON that `dataclasses.asdict` makes of it: what manifests and certificates hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import AttentionPattern, LlamaConfig, MixtureOfExperts, RopeScaling
from .vision_config import Llama4Vision, MllamaVision


def config_from_json(fields: Mapping[str, Any]) -> LlamaConfig:
    """The config that `dataclasses.asdict` made `fields` from; keys that older files lack take their defaults."""
    found = {name: _tuples(value) for name, value in fields.items()}
    parts = {"rope_scaling": RopeScaling, "moe": MixtureOfExperts, "attention": AttentionPattern}
    for name, kind in parts.items():
        if found.get(name) is not None:
            found[name] = kind(**found[name])
    if found.get("vision") is not None:
        found["vision"] = (MllamaVision if "taps" in found["vision"] else Llama4Vision)(**found["vision"])
    return LlamaConfig(**found)


def _tuples(value: Any) -> Any:
    """JSON lists are tuples in a config."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return {name: _tuples(item) for name, item in value.items()} if isinstance(value, dict) else value
