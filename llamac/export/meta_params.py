"""`LlamaConfig` -> Meta's `params.json`, and what its reader makes of it: what the file cannot say is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from llamac.errors import LlamacError
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.meta_config import config_from_meta
from llamac.models.llama.vision_config import Llama4Vision

from .meta_mllama import mllama_params
from .rope_fit import with_parameters

_WIDTHS: tuple[tuple[int, float | None], ...] = (
    (256, None),
    (1024, 1.3),
    (4096, 1.3),
    (256, 1.5),
    (256, 1.0),
    (4096, 1.2),
    (2048, 1.2),
)
"""multiple_of and ffn_dim_multiplier of Meta's releases."""
_UNSAID = ("name", "context_length", "dtype", "tied_head")
"""Fields that params.json leaves out: its readers take them from the weights, or from the release it looks like."""


def meta_params(config: LlamaConfig) -> tuple[dict[str, Any], LlamaConfig]:
    """The params.json, and the config that is read from it with the rows of q and k as Meta has them.

    Raises LLC0951 naming what the file has no place for.
    """
    if config.architecture == "mllama" and config.tied_head:
        raise _cannot("head", "it is the embedding table, which Meta's form of Llama 3.2 Vision has in two parts")
    if config.head_dim * config.heads != config.hidden_size:
        raise _cannot("layers.N.attn", f"heads of {config.head_dim}, where Meta's code takes dim / n_heads")
    wanted = replace(with_parameters(config, "params.json"), rope_style="interleaved")
    odd = ["rope_scaling"]
    for params in _candidates(wanted):
        found, _ = config_from_meta(params, config.vocab_size, config.dtype)
        odd = [
            f.name for f in fields(found) if f.name not in _UNSAID and getattr(found, f.name) != getattr(wanted, f.name)
        ]
        if not odd:
            return params, replace(found, tied_head=config.tied_head)
    if odd == ["vision"]:
        raise _cannot("vision", "its image encoder is not the one of Meta's code, which params.json has no keys for")
    raise _cannot(odd[0], f"no params.json gives its {' and '.join(odd)}")


def _cannot(where: str, reason: str) -> LlamacError:
    return LlamacError("LLC0951", where, reason, "export to hf")


def _candidates(config: LlamaConfig) -> Iterator[dict[str, Any]]:
    """Files that may say what the config does, those of Meta's releases first."""
    for widths in _widths(config):
        for experts in _experts(config, widths):
            yield _common(config) | widths | experts | _OF_ARCHITECTURE[config.architecture](config)


def _common(config: LlamaConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "n_layers": config.layers,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
        "vocab_size": config.vocab_size,
    }
    scaling = config.rope_scaling
    if scaling is not None:
        found["rope_scaling_factor"] = scaling.factor
        if config.architecture == "llama4":
            found["rope_high_freq_factor"] = scaling.high_frequency_factor
    return found


def _widths(config: LlamaConfig) -> Iterator[dict[str, Any]]:
    """multiple_of and ffn_dim_multiplier: a release's, or a multiplier that gives the width exactly."""
    for multiple, multiplier in _WIDTHS:
        yield {"multiple_of": multiple} | ({} if multiplier is None else {"ffn_dim_multiplier": multiplier})
    base = 2 * 4 * config.hidden_size // 3
    inner = [config.intermediate_size, *([config.moe.intermediate_size] if config.moe else [])]
    multiple = next(m for m in (256, 64, 16, 4, 1) if all(width % m == 0 for width in inner))
    yield {"multiple_of": multiple, "ffn_dim_multiplier": (config.intermediate_size - multiple / 2 + 0.5) / base}


def _experts(config: LlamaConfig, widths: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """ffn_exp and moe_args: a release's, and one whose ffn_exp gives the width of the experts by itself."""
    moe = config.moe
    if config.architecture != "llama4":
        yield {}
        return
    if moe is None:
        yield {"ffn_exp": 4.0, "moe_args": None}
        return
    step = moe.layers[0] + 1
    arguments = {"num_experts": moe.experts, "top_k": moe.experts_per_token, "interleave_moe_layer_step": step}
    yield {"ffn_exp": 4.0, "moe_args": arguments | {"capacity_factor": 1.0, "auto_scale_F": True}}
    middle = moe.intermediate_size - widths["multiple_of"] / 2 + 0.5
    exact = 1.5 * middle / widths.get("ffn_dim_multiplier", 1.0) / config.hidden_size
    if exact > 0:
        yield {"ffn_exp": exact, "moe_args": arguments | {"capacity_factor": 1.0, "auto_scale_F": False}}


def _llama4(config: LlamaConfig) -> dict[str, Any]:
    pattern = config.attention
    assert pattern is not None
    interval = pattern.unrotated[0] + 1 if pattern.unrotated else None
    found: dict[str, Any] = {
        "attention_chunk_size": pattern.chunk or None,
        "attn_temperature_tuning": pattern.temperature_scale != 0,
        "floor_scale": pattern.temperature_floor,
        "nope_layer_interval": interval,
        "use_qk_norm": pattern.qk_norm,
        "attn_scale": pattern.temperature_scale or 0.1,
    }
    if isinstance(config.vision, Llama4Vision):
        v = config.vision
        found["vision_args"] = {
            "dim": v.hidden_size,
            "image_size": {"height": v.image_size, "width": v.image_size},
            "mlp_ratio": v.intermediate_size / v.hidden_size,
            "n_heads": v.heads,
            "n_layers": v.layers,
            "output_dim": v.adapter_output,
            "patch_size": {"height": v.patch_size, "width": v.patch_size},
            "pixel_shuffle_ratio": v.pixel_shuffle_ratio,
        }
    return found


_OF_ARCHITECTURE: dict[str, Callable[[LlamaConfig], dict[str, Any]]] = {
    "llama": lambda config: {},
    "llama4": _llama4,
    "mllama": mllama_params,
}
"""What params.json has of one architecture alone."""
