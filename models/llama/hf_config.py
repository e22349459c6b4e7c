"""Hugging Face `config.json` -> `LlamaConfig`: old and new spellings, every unknown or meaning-changing key seen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from llamac.errors import LlamacError, did_you_mean

from ..ledger import LedgerEntry, entry
from .config import LlamaConfig, RopeScaling, check_config, shape_name
from .config_keys import ConfigKeys, short
from .hf_keys import (
    ACTIVATIONS,
    ARCHITECTURES,
    DTYPE_NAMES,
    HARMLESS_KEYS,
    MEANING_KEYS,
    READ_KEYS,
    ROPE_KEYS,
    ROPE_TYPES,
)

WHERE = "config.json"
REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/([A-Za-z0-9][\w.-]*)")


def config_from_hf(raw: Mapping[str, object], name: str | None = None) -> tuple[LlamaConfig, list[LedgerEntry]]:
    """Read a dense Llama text config; returns it with a ledger entry for every default taken and unknown key.

    Raises LLC0301..LLC0308 and LLC0310 for anything that this compiler would otherwise get silently wrong.
    """
    ledger: list[LedgerEntry] = []
    _check_architecture(raw, ledger)
    _check_meaning_keys(raw, ledger)
    keys = ConfigKeys(raw, WHERE, ledger)
    check_activation(keys)
    heads = keys.integer("num_attention_heads")
    hidden_size = keys.integer("hidden_size")
    theta, scaling = rope_from_hf(raw, ledger)
    config = LlamaConfig(
        name=name or "",
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size"),
        layers=keys.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=keys.integer("num_key_value_heads", heads, "every attention head has its own keys and values"),
        head_dim=head_dim_from_hf(keys, hidden_size, heads),
        vocab_size=keys.integer("vocab_size"),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        context_length=keys.integer("max_position_embeddings", 2048),
        tied_head=keys.flag("tie_word_embeddings", False),
        dtype=dtype_from_hf(raw, ledger),
        rope_style="half_split",
    )
    check_config(config, WHERE)
    return replace(config, name=name or own_name(raw) or shape_name(config.parameters)), ledger


def _check_architecture(raw: Mapping[str, object], ledger: list[LedgerEntry]) -> None:
    """Only LlamaForCausalLM: an architecture that merely resembles it computes something else."""
    supported = f"supported: {', '.join(ARCHITECTURES)}"
    model_type = raw.get("model_type")
    names = raw.get("architectures")
    if not names:
        if model_type != "llama":
            reason = f"no 'architectures', and model_type is {short(model_type)}"
            raise LlamacError("LLC0301", WHERE, reason, supported)
        what, reason = ARCHITECTURES[0], "'architectures' is not given, and model_type is 'llama'"
        ledger.append(entry("default", f"{WHERE} architectures", what, reason))
        return
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        shown = names[0] if isinstance(names, list) and len(names) == 1 else names
        raise LlamacError("LLC0301", WHERE, f"the architecture {short(shown)} is not supported", supported)
    if model_type not in (None, "llama"):
        reason = f"model_type is {short(model_type)} while the architecture is {names[0]}"
        raise LlamacError("LLC0301", WHERE, reason, "expected model_type 'llama'")


def _check_meaning_keys(raw: Mapping[str, object], ledger: list[LedgerEntry]) -> None:
    """Refuse keys that change the function the model computes; note the ones nobody knows."""
    for key, value in raw.items():
        if key in MEANING_KEYS and value is not None and not _is_one_of(value, MEANING_KEYS[key]):
            reason = f"{key} is {short(value)}, which changes what the model computes and is not supported"
            raise LlamacError("LLC0308", WHERE, reason, "compile a plain dense Llama checkpoint")
        if key == "layer_types" and value is not None and not _all_full_attention(value):
            reason = "layer_types holds a kind of layer other than full_attention"
            raise LlamacError("LLC0308", WHERE, reason, "compile a plain dense Llama checkpoint")
        if key not in READ_KEYS and key not in HARMLESS_KEYS and key not in MEANING_KEYS and key != "layer_types":
            ledger.append(entry("unknown-key", f"{WHERE} {key[:80]}", short(value), "this key is not known: ignored"))
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key) not in (None, False):
            where = "layers.N.attn" if key == "attention_bias" else "layers.N.mlp"
            reason = f"{key} is {short(raw[key])}: linear layers with a bias are not supported"
            raise LlamacError("LLC0307", where, reason, "compile a checkpoint without biases")
    if raw.get("pretraining_tp") not in (None, 1):
        what = f"pretraining_tp {short(raw['pretraining_tp'])}"
        ledger.append(entry("ignored", WHERE, what, "it splits matrix products for training and changes no result"))


def _is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    """Equality that does not take False for 0 or True for 1."""
    return any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in allowed)


def _all_full_attention(value: object) -> bool:
    return isinstance(value, list) and all(kind == "full_attention" for kind in value)


def check_activation(keys: ConfigKeys) -> None:
    """LLC0306 for any activation but silu."""
    value = keys.raw.get("hidden_act")
    if value is None:
        keys.ledger.append(entry("default", f"{WHERE} hidden_act", "silu", "not given: the transformers default"))
    elif value not in ACTIVATIONS:
        near = did_you_mean(value, ACTIVATIONS) if isinstance(value, str) else ""
        reason = f"the activation {short(value)} is not supported{near}"
        raise LlamacError("LLC0306", "layers.N.mlp", reason, f"supported hidden_act: {', '.join(ACTIVATIONS)}")


def head_dim_from_hf(keys: ConfigKeys, hidden_size: int, heads: int) -> int:
    """The given head_dim, or hidden_size / heads."""
    if keys.raw.get("head_dim") is None and hidden_size % heads:
        reason = f"hidden_size {hidden_size} is no multiple of {heads} heads and head_dim is not given"
        raise LlamacError("LLC0304", WHERE, reason, "set head_dim")
    return keys.integer("head_dim", hidden_size // heads or None, "hidden_size / num_attention_heads")


def dtype_from_hf(raw: Mapping[str, object], ledger: list[LedgerEntry]) -> str:
    """`dtype` (transformers 5) or `torch_dtype` (before)."""
    value = raw.get("dtype", raw.get("torch_dtype"))
    if value is None or value == "auto":
        ledger.append(entry("default", f"{WHERE} dtype", "f32", "not given"))
        return "f32"
    known = DTYPE_NAMES.get(value.removeprefix("torch.")) if isinstance(value, str) else None
    if known is None:
        near = did_you_mean(value, DTYPE_NAMES) if isinstance(value, str) else ""
        reason = f"the dtype {short(value)} is not supported{near}"
        raise LlamacError("LLC0310", WHERE, reason, "supported: bfloat16, float16, float32")
    return known


def rope_from_hf(
    raw: Mapping[str, object], ledger: list[LedgerEntry], default_theta: float = 10000.0
) -> tuple[float, RopeScaling | None]:
    """rope_theta and the scaling, from `rope_parameters` (transformers 5) or `rope_scaling` + `rope_theta` (before)."""
    found = {key: raw[key] for key in ("rope_parameters", "rope_scaling") if raw.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, dict):
            raise LlamacError("LLC0303", WHERE, f"{key} is {short(value)}, expected an object", "correct the config")
    rope: dict[str, object] = {}
    for source in [*found.values(), {"rope_theta": raw.get("rope_theta")}]:
        assert isinstance(source, dict)
        for key, value in source.items():
            key = "rope_type" if key == "type" else key
            if value is not None and rope.setdefault(key, value) != value:
                reason = f"{key} is given twice, as {short(rope[key])} and as {short(value)}"
                raise LlamacError("LLC0304", WHERE, reason, "keep the value that the model was trained with")
    keys = ConfigKeys(rope, f"{WHERE} {next(iter(found), 'rope')}", ledger)
    return keys.number("rope_theta", default_theta), _rope_scaling(keys)


def _rope_scaling(keys: ConfigKeys) -> RopeScaling | None:
    kind = keys.raw.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        near = did_you_mean(kind, ROPE_TYPES) if isinstance(kind, str) else ""
        reason = f"the rope_type {short(kind)} is not supported{near}"
        raise LlamacError("LLC0305", keys.where, reason, f"supported: {', '.join(ROPE_TYPES)}")
    if keys.raw.get("partial_rotary_factor", 1) != 1:
        reason = f"partial_rotary_factor is {short(keys.raw['partial_rotary_factor'])}, which is not supported"
        raise LlamacError("LLC0308", keys.where, reason, "compile a plain dense Llama checkpoint")
    for key, value in keys.raw.items():
        if key not in ROPE_KEYS[str(kind)]:
            what, reason = f"{key[:80]} {short(value)}", f"rope_type {kind!r} does not use it"
            keys.ledger.append(entry("ignored", keys.where, what, reason))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=keys.number("factor"))
    return RopeScaling(
        "llama3",
        factor=keys.number("factor"),
        low_frequency_factor=keys.number("low_freq_factor"),
        high_frequency_factor=keys.number("high_freq_factor"),
        original_context=keys.integer("original_max_position_embeddings"),
    )


def own_name(raw: Mapping[str, object]) -> str | None:
    """The last part of a repository id in `_name_or_path`; a file path there says nothing about the model."""
    value = raw.get("_name_or_path")
    match = REPOSITORY_NAME.fullmatch(value) if isinstance(value, str) and len(value) < 200 else None
    return match.group(1) if match else None
