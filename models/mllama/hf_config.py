"""Hugging Face `config.json` of a Llama 3.2 Vision -> `LlamaConfig`: text, image side, the image's token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamac.errors import LlamacError

from ..ledger import LedgerEntry, entry
from ..llama.config import LlamaConfig, shape_name
from ..llama.config_keys import ConfigKeys, short
from ..llama.hf_config import config_from_hf
from ..llama.hf_keys import HARMLESS_KEYS as HARMLESS
from .hf_vision_config import WHERE, layer_numbers, note_unknown, vision_from_hf

ARCHITECTURE = "MllamaForConditionalGeneration"

TEXT_DEFAULTS: dict[str, object] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "hidden_act": "silu",
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}
"""What MllamaTextConfig has where the file says nothing; a dense Llama has other defaults."""

READ_KEYS = frozenset({"architectures", "model_type", "text_config", "vision_config", "image_token_index"})
PASSED_KEYS = ("dtype", "torch_dtype", "_name_or_path")
HARMLESS_KEYS = frozenset({"image_token_id", "tie_word_embeddings", *PASSED_KEYS}) | HARMLESS


def mllama_config_from_hf(raw: Mapping[str, object], name: str | None = None) -> tuple[LlamaConfig, list[LedgerEntry]]:
    """Read a Llama 3.2 Vision config; returns it with a ledger entry for every default taken and unknown key.

    `layers` counts the cross-attention layers too. Raises LLC0301..LLC0308 and LLC0310 as for a dense Llama.
    """
    _check_architecture(raw)
    ledger: list[LedgerEntry] = []
    text = {key: value for key, value in _part(raw, "text_config").items() if value is not None}
    for key, default in TEXT_DEFAULTS.items():
        if key not in text:
            text[key] = default
            reason = "not given: the default of MllamaTextConfig"
            ledger.append(entry("default", f"{WHERE} text_config {key}", short(default), reason))
    cross = layer_numbers(text.pop("cross_attention_layers"), text["num_hidden_layers"], "cross_attention_layers")
    dense, noted = config_from_hf(_as_dense(raw, text), name)
    ledger += [_inside_text_config(item) for item in noted]
    if dense.tied_head:
        reason = "tie_word_embeddings is true, and the embedding table has 8 rows more than the head"
        raise LlamacError("LLC0304", WHERE, reason, "correct the text_config")
    vision = vision_from_hf(_part(raw, "vision_config"), _image_token(raw, dense.vocab_size, ledger), ledger)
    note_unknown(raw, READ_KEYS | HARMLESS_KEYS, WHERE, ledger)
    config = replace(dense, architecture="mllama", cross_layers=cross, vision=vision)
    if dense.name == shape_name(dense.parameters):
        config = replace(config, name=shape_name(config.parameters))
    return config, ledger


def _check_architecture(raw: Mapping[str, object]) -> None:
    names, kind = raw.get("architectures"), raw.get("model_type")
    if names not in (None, [ARCHITECTURE]) or kind not in (None, "mllama") or (not names and not kind):
        reason = f"the architecture {short(names)} of model_type {short(kind)} is no Llama 3.2 Vision"
        raise LlamacError("LLC0301", WHERE, reason, f"supported: {ARCHITECTURE}")


def _part(raw: Mapping[str, object], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    if not isinstance(value, Mapping):
        code = "LLC0302" if value is None else "LLC0303"
        raise LlamacError(code, WHERE, f"{key} is {short(value)}, expected an object", "take the checkpoint's config")
    return value


def _as_dense(raw: Mapping[str, object], text: Mapping[str, object]) -> dict[str, object]:
    """The text config as that of a dense Llama: everything but the cross-attention layers is one."""
    dense = {key: value for key, value in text.items() if key != "dropout"}  # of training
    outer = {key: raw[key] for key in PASSED_KEYS if raw.get(key) is not None}
    return {**outer, **dense, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def _inside_text_config(item: LedgerEntry) -> LedgerEntry:
    where = item["where"].replace(f"{WHERE} ", f"{WHERE} text_config ", 1)
    return entry(item["kind"], where, item["what"], item["reason"])


def _image_token(raw: Mapping[str, object], vocabulary: int, ledger: list[LedgerEntry]) -> int:
    """The id of the image's token: one of the 8 rows of the embedding table beyond the vocabulary."""
    given = raw.get("image_token_index", raw.get("image_token_id"))
    keys = ConfigKeys({"image_token_index": given}, WHERE, ledger)
    token = keys.integer("image_token_index", 128256, "the default of MllamaConfig")
    if not vocabulary <= token < vocabulary + 8:
        reason = f"image_token_index is {token}, expected one of the 8 ids from {vocabulary}"
        raise LlamacError("LLC0304", WHERE, reason, "take the config of the checkpoint")
    return token
