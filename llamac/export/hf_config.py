"""`LlamaConfig` -> Hugging Face's `config.json` and `generation_config.json`, for every architecture.

The keys are those that transformers has read since 4.43 and still reads (`torch_dtype`, `rope_theta` and
`rope_scaling`), so that older consumers understand them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint, GenerationDefaults
from llamac.models.llama.config import LlamaConfig, RopeScaling
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision

from .rope_fit import with_parameters

TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""The working dtypes by torch's names."""

HF_ROPE_STYLES = {"llama": "half_split", "mllama": "half_split", "llama4": "interleaved"}
"""Architecture -> the order of the rows of q and k in Hugging Face's files."""

_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def hf_model(config: LlamaConfig, dtype: str) -> LlamaConfig:
    """What `config` is in a Hugging Face folder of `dtype`: its own order of rows, and rope parameters.

    Raises LLC0951 for what such a folder cannot say.
    """
    found = with_parameters(replace(config, dtype=dtype), "config.json")
    if found.architecture == "mllama" and found.head_dim * found.heads != found.hidden_size:
        reason = f"heads of {found.head_dim} where transformers takes hidden_size / heads"
        raise LlamacError("LLC0951", "layers.N.attn", reason, "no form of Llama 3.2 Vision can hold this model")
    pattern = found.attention
    if pattern is not None and pattern.temperature_floor != int(pattern.temperature_floor):
        reason = f"attention temperature in steps of {pattern.temperature_floor} positions, and floor_scale is whole"
        raise LlamacError("LLC0951", "layers.N.attn", reason, "correct the config of the source")
    if pattern is not None and not pattern.chunk:
        # transformers makes the mask of chunks for every model: one chunk as long as the context is none.
        found = replace(found, attention=replace(pattern, chunk=found.context_length))
    return replace(found, rope_style=HF_ROPE_STYLES[found.architecture])


def config_json(
    config: LlamaConfig, generation: GenerationDefaults, quantization: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json of `config` (one of `hf_model`), with the `quantization_config` of its weights."""
    makers = {"llama": _llama, "llama4": _llama4, "mllama": _mllama}
    found = makers[config.architecture](config, _token_ids(generation))
    found["torch_dtype"] = TORCH_DTYPES[config.dtype]
    return found | ({"quantization_config": dict(quantization)} if quantization is not None else {})


def generation_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """The generation_config.json: where sequences begin and end, and the published sampling settings."""
    given, found = checkpoint.generation.sampling, _token_ids(checkpoint.generation)
    greedy = given.get("temperature") == 0
    if any(key in given for key in _OF_SAMPLING):
        found["do_sample"] = not greedy
    wanted = ("repetition_penalty",) if greedy else (*_OF_SAMPLING, "repetition_penalty")
    return found | {key: int(given[key]) if key == "top_k" else given[key] for key in wanted if key in given}


def _token_ids(generation: GenerationDefaults) -> dict[str, Any]:
    """bos_token_id and eos_token_id, null where there are none: transformers would make some up."""
    stops = list(generation.stop_ids)
    return {"bos_token_id": generation.bos_id, "eos_token_id": stops if len(stops) > 1 else next(iter(stops), None)}


def _llama(config: LlamaConfig, tokens: dict[str, Any]) -> dict[str, Any]:
    biases = {"attention_bias": False, "mlp_bias": False}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_text(config), **biases, **tokens}


def _text(config: LlamaConfig) -> dict[str, Any]:
    """What the text models have in common."""
    return {
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": _rope_scaling(config.rope_scaling),
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_head,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"factor": scaling.factor, "rope_type": "linear"}
    assert scaling.kind == "llama3", "divisors have become parameters"
    return {
        "factor": scaling.factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "original_max_position_embeddings": scaling.original_context,
        "rope_type": "llama3",
    }


def _llama4(config: LlamaConfig, tokens: dict[str, Any]) -> dict[str, Any]:
    text = _llama4_text(config) | tokens
    if config.vision is None:
        return {"architectures": ["Llama4ForCausalLM"], **text}
    vision = config.vision
    assert isinstance(vision, Llama4Vision)
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": vision.image_start_token,
        "eoi_token_index": vision.image_end_token,
        "image_token_index": vision.image_token,
        "model_type": "llama4",
        "text_config": text,
        "tie_word_embeddings": config.tied_head,
        "vision_config": _llama4_vision(vision),
    }


def _llama4_text(config: LlamaConfig) -> dict[str, Any]:
    """`intermediate_size` is that of an expert, `intermediate_size_mlp` that of layers without experts."""
    moe, pattern = config.moe, config.attention
    assert pattern is not None
    tempered = pattern.temperature_scale != 0
    unrotated, layers = set(pattern.unrotated), range(config.layers)
    return _text(config) | {
        "attention_bias": False,
        "attention_chunk_size": pattern.chunk,
        "attn_scale": pattern.temperature_scale if tempered else 0.1,
        "attn_temperature_tuning": tempered,
        "floor_scale": int(pattern.temperature_floor),
        "intermediate_size": moe.intermediate_size if moe else config.intermediate_size,
        "intermediate_size_mlp": config.intermediate_size,
        "layer_types": ["full_attention" if layer in unrotated else "chunked_attention" for layer in layers],
        "model_type": "llama4_text",
        "moe_layers": list(moe.layers) if moe else [],
        "no_rope_layers": [int(layer not in unrotated) for layer in layers],
        "num_experts_per_tok": moe.experts_per_token if moe else 1,
        "num_local_experts": moe.experts if moe else 0,
        "torch_dtype": TORCH_DTYPES[config.dtype],
        "use_qk_norm": pattern.qk_norm,
    }


def _llama4_vision(vision: Llama4Vision) -> dict[str, Any]:
    return {
        "hidden_act": "gelu",
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "intermediate_size": vision.intermediate_size,
        "model_type": "llama4_vision_model",
        "multi_modal_projector_bias": False,
        "norm_eps": vision.norm_eps,
        "num_attention_heads": vision.heads,
        "num_channels": vision.channels,
        "num_hidden_layers": vision.layers,
        "patch_size": vision.patch_size,
        "pixel_shuffle_ratio": vision.pixel_shuffle_ratio,
        "projector_input_dim": vision.adapter_hidden,
        "projector_output_dim": vision.adapter_output,
        "rope_theta": vision.rope_theta,
        "vision_output_dim": vision.adapter_output,
    }


def _mllama(config: LlamaConfig, tokens: dict[str, Any]) -> dict[str, Any]:
    vision = config.vision
    assert isinstance(vision, MllamaVision)
    text = {key: value for key, value in _text(config).items() if key not in ("head_dim", "attention_dropout")}
    # transformers has ids of its own for these, beyond a small vocabulary: null keeps what is not known out.
    known = {key: value for key, value in tokens.items() if value is not None}
    text |= known | {"cross_attention_layers": list(config.cross_layers), "pad_token_id": None}
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": vision.image_token,
        "model_type": "mllama",
        "text_config": text | {"model_type": "mllama_text_model", "torch_dtype": TORCH_DTYPES[config.dtype]},
        "vision_config": _mllama_vision(vision),
    }


def _mllama_vision(vision: MllamaVision) -> dict[str, Any]:
    return {
        "attention_heads": vision.heads,
        "hidden_act": "gelu",
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "intermediate_layers_indices": list(vision.taps),
        "intermediate_size": vision.intermediate_size,
        "max_num_tiles": vision.max_tiles,
        "model_type": "mllama_vision_model",
        "norm_eps": vision.norm_eps,
        "num_channels": vision.channels,
        "num_global_layers": vision.global_layers,
        "num_hidden_layers": vision.layers,
        "patch_size": vision.patch_size,
        "supported_aspect_ratios": [list(grid) for grid in vision.supported_aspect_ratios],
        "vision_output_dim": vision.output_size,
    }
