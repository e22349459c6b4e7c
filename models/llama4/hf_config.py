"""Hugging Face `config.json` of Llama 4 and Guard 4 -> `LlamaConfig`, with transformers' defaults and names.

`no_rope_layers` means the opposite of its name: 1 marks a layer that has RoPE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llamac.errors import LlamacError

from ..ledger import LedgerEntry, entry
from ..llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts, check_config, shape_name
from ..llama.config_keys import MOST_EXPERTS, MOST_LAYERS, ConfigKeys, short
from ..llama.hf_config import check_activation, dtype_from_hf, head_dim_from_hf, own_name, rope_from_hf
from ..llama.hf_keys import HARMLESS_KEYS
from ..llama.vision_config import Llama4Vision
from .vision_limits import checked_encoder

WHERE = "config.json"
MULTIMODAL, TEXT = "Llama4ForConditionalGeneration", "Llama4ForCausalLM"
ARCHITECTURES = (MULTIMODAL, TEXT)
TEXT_KEYS = frozenset(
    """architectures attention_bias attention_chunk_size attn_scale attn_temperature_tuning bos_token_id dtype
    eos_token_id floor_scale head_dim hidden_act hidden_size interleave_moe_layer_step intermediate_size
    intermediate_size_mlp layer_types max_position_embeddings model_type moe_layers no_rope_layer_interval
    no_rope_layers num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    quantization_config rms_norm_eps rope_parameters rope_scaling rope_theta tie_word_embeddings torch_dtype
    use_qk_norm vocab_size""".split()
)
TRAINING_KEYS = frozenset(
    "output_router_logits router_aux_loss_coef router_jitter_noise for_llm_compressor cache_implementation".split()
)
OUTER_KEYS = frozenset(
    """architectures boi_token_index dtype eoi_token_index image_token_index model_type quantization_config text_config
    tie_word_embeddings torch_dtype vision_config""".split()
)
VISION_KEYS = frozenset(
    """hidden_act hidden_size image_size intermediate_size model_type multi_modal_projector_bias norm_eps
    num_attention_heads num_channels num_hidden_layers patch_size pixel_shuffle_ratio projector_input_dim
    projector_output_dim rope_parameters rope_scaling rope_theta vision_feature_layer vision_feature_select_strategy
    vision_output_dim""".split()
)
VISION_HARMLESS = frozenset({"projector_dropout"})


def config_from_llama4(raw: Mapping[str, object]) -> tuple[LlamaConfig, list[LedgerEntry]]:
    """Read a config of either architecture; the ledger has an entry for every default taken and unknown key.

    Raises LLC0301..LLC0310 for anything that would otherwise be computed wrongly.
    """
    ledger: list[LedgerEntry] = []
    nested = raw.get("text_config") is not None
    text = _object(raw, "text_config", WHERE) if nested else raw
    where = f"{WHERE} text_config" if nested else WHERE
    if nested:
        _note_unknown(raw, OUTER_KEYS | HARMLESS_KEYS, WHERE, ledger)
    _note_unknown(text, TEXT_KEYS | HARMLESS_KEYS | TRAINING_KEYS, where, ledger)
    config = _text_config(raw, text, ConfigKeys(text, where, ledger))
    if nested and raw.get("vision_config") is not None:
        config = replace(config, vision=_vision(raw, ledger))
    check_config(config, where)
    return replace(config, name=own_name(raw) or shape_name(config.parameters)), ledger


def _text_config(raw: Mapping[str, object], text: Mapping[str, object], keys: ConfigKeys) -> LlamaConfig:
    check_activation(keys)
    if text.get("attention_bias") not in (None, False):
        reason = f"attention_bias is {short(text['attention_bias'])}: linear layers with a bias are not supported"
        raise LlamacError("LLC0307", "layers.N.attn", reason, "compile a checkpoint without biases")
    hidden, heads = keys.integer("hidden_size", 5120), keys.integer("num_attention_heads", 40)
    layers = keys.integer("num_hidden_layers", 48, most=MOST_LAYERS)
    theta, scaling = rope_from_hf(text, keys.ledger, 500000.0)
    moe = _mixture(keys, layers)
    return LlamaConfig(
        name="",
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size_mlp", 16384),
        layers=layers,
        heads=heads,
        kv_heads=keys.integer("num_key_value_heads", 8),
        head_dim=head_dim_from_hf(keys, hidden, heads) if "head_dim" in text else keys.integer("head_dim", 128),
        vocab_size=keys.integer("vocab_size", 202048),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5),
        rope_theta=theta,
        rope_scaling=scaling,
        context_length=keys.integer("max_position_embeddings", 131072),
        tied_head=_tied(raw, text, keys),
        dtype=dtype_from_hf(raw if raw.get("dtype", raw.get("torch_dtype")) else text, keys.ledger),
        rope_style="interleaved",
        architecture="llama4",
        moe=moe,
        attention=_attention(keys, layers),
    )


def _object(raw: Mapping[str, object], key: str, where: str) -> Mapping[str, object]:
    value = raw.get(key)
    if not isinstance(value, Mapping):
        raise LlamacError("LLC0303", where, f"{key} is {short(value)}, expected an object", "correct the config")
    return value


def _note_unknown(raw: Mapping[str, object], known: frozenset[str], where: str, ledger: list[LedgerEntry]) -> None:
    for key, value in raw.items():
        if key not in known:
            ledger.append(entry("unknown-key", f"{where} {key[:80]}", short(value), "this key is not known: ignored"))


def _tied(raw: Mapping[str, object], text: Mapping[str, object], keys: ConfigKeys) -> bool:
    """The text model's own flag; the outer one has to agree with it."""
    outer, inner = raw.get("tie_word_embeddings"), text.get("tie_word_embeddings")
    if None not in (outer, inner) and outer != inner:
        reason = f"tie_word_embeddings is {short(outer)} outside and {short(inner)} in text_config"
        raise LlamacError("LLC0304", keys.where, reason, "keep the value that the model was trained with")
    return ConfigKeys({"tie_word_embeddings": inner if outer is None else outer}, keys.where, keys.ledger).flag(
        "tie_word_embeddings", False
    )


def _indices(keys: ConfigKeys, key: str, limit: int) -> tuple[int, ...] | None:
    """A list of whole numbers below `limit`, or None where the key is null or absent."""
    value = keys.raw.get(key)
    if value is None:
        return None
    good = isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    if not isinstance(value, list) or not good or any(not 0 <= i < limit for i in value):
        reason = f"{key} is {short(value)}, expected a list of numbers below {limit}"
        raise LlamacError("LLC0303", keys.where, reason, "correct the config")
    return tuple(value)


def _mixture(keys: ConfigKeys, layers: int) -> MixtureOfExperts | None:
    """None for Guard 4, which has no experts left."""
    experts = keys.integer("num_local_experts", 16, least=0, most=MOST_EXPERTS)
    listed = _indices(keys, "moe_layers", layers)
    if listed is None:
        step = keys.integer("interleave_moe_layer_step", 1, least=0)
        listed = tuple(range(step - 1, layers, step)) if step else ()
    if not experts or not listed:
        return None
    chosen = keys.integer("num_experts_per_tok", 1)
    if chosen > experts:
        reason = f"num_experts_per_tok is {chosen}, and there are {experts} experts"
        raise LlamacError("LLC0304", keys.where, reason, "correct the config")
    return MixtureOfExperts(experts, chosen, keys.integer("intermediate_size", 8192), tuple(sorted(set(listed))))


def _attention(keys: ConfigKeys, layers: int) -> AttentionPattern:
    rotated = _indices(keys, "no_rope_layers", 2)
    if rotated and len(rotated) < layers:
        reason = f"no_rope_layers describes {len(rotated)} of {layers} layers"
        raise LlamacError("LLC0304", keys.where, reason, "correct the config")
    if rotated:
        unrotated = tuple(i for i in range(layers) if not rotated[i])
    elif "no_rope_layer_interval" in keys.raw and keys.raw["no_rope_layer_interval"] is None:
        unrotated = ()
    else:
        step = keys.integer("no_rope_layer_interval", 4, least=0)
        unrotated = tuple(range(step - 1, layers, step)) if step else ()
    is_null = "attention_chunk_size" in keys.raw and keys.raw["attention_chunk_size"] is None
    chunk = 0 if is_null else keys.integer("attention_chunk_size", 8192, least=0)
    _check_layer_types(keys, layers, unrotated, chunk)
    tuned = keys.raw.get("attn_temperature_tuning")  # configs of 2025 have a number here, later ones a flag
    tempered = keys.flag("attn_temperature_tuning", True) if not isinstance(tuned, int) else bool(tuned)
    floor, scale = keys.number("floor_scale", 8192.0), keys.number("attn_scale", 0.1)
    return AttentionPattern(unrotated, chunk, keys.flag("use_qk_norm", True), floor, scale if tempered else 0.0)


def _check_layer_types(keys: ConfigKeys, layers: int, unrotated: tuple[int, ...], chunk: int) -> None:
    """`layer_types` repeats what the other keys say: chunks where there is RoPE, everything where there is none."""
    value = keys.raw.get("layer_types")
    if value is None:
        return
    local = "chunked_attention" if chunk else None
    wanted = ["full_attention" if i in unrotated else local for i in range(layers)]
    fits = isinstance(value, list) and len(value) >= layers
    if not fits or any(w is not None and v != w for v, w in zip(value, wanted, strict=False)):  # type: ignore[call-overload]
        reason = "layer_types differs from what no_rope_layers and attention_chunk_size say"
        raise LlamacError("LLC0308", keys.where, reason, "compile a checkpoint of Llama 4 as it was published")


def _vision(raw: Mapping[str, object], ledger: list[LedgerEntry]) -> Llama4Vision:
    where = f"{WHERE} vision_config"
    vision = _object(raw, "vision_config", WHERE)
    _note_unknown(vision, VISION_KEYS | VISION_HARMLESS | HARMLESS_KEYS, where, ledger)
    keys, outer = ConfigKeys(vision, where, ledger), ConfigKeys(raw, WHERE, ledger)
    for key, value in (("hidden_act", "gelu"), ("multi_modal_projector_bias", False)):
        if vision.get(key) not in (None, value):
            reason = f"{key} is {short(vision[key])}, which changes what the image encoder computes"
            raise LlamacError("LLC0308", where, reason, f"supported: {value}")
    output = keys.integer("projector_output_dim", 4096)
    if keys.integer("vision_output_dim", 7680) != output:
        reason = f"vision_output_dim differs from projector_output_dim {output}, which feeds it"
        raise LlamacError("LLC0304", where, reason, "correct the config")
    found = Llama4Vision(
        hidden_size=keys.integer("hidden_size", 768),
        intermediate_size=keys.integer("intermediate_size", 5632),
        layers=keys.integer("num_hidden_layers", 34, most=MOST_LAYERS),
        heads=keys.integer("num_attention_heads", 16),
        image_size=_square(keys, "image_size", 448),
        patch_size=_square(keys, "patch_size", 14),
        channels=keys.integer("num_channels", 3),
        rope_theta=rope_from_hf(vision, ledger)[0],
        norm_eps=keys.number("norm_eps", 1e-5),
        pixel_shuffle_ratio=keys.number("pixel_shuffle_ratio", 0.5),
        adapter_hidden=keys.integer("projector_input_dim", 4096),
        adapter_output=output,
        image_token=outer.integer("image_token_index", 200092),
        image_start_token=outer.integer("boi_token_index", 200080),
        image_end_token=outer.integer("eoi_token_index", 200081),
    )
    return checked_encoder(found, where)


def _square(keys: ConfigKeys, key: str, default: int) -> int:
    """A size, or a list of two equal ones."""
    value = keys.raw.get(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return ConfigKeys({key: value[0]}, keys.where, keys.ledger).integer(key)
    return keys.integer(key, default)
