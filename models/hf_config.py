"""Hugging Face `config.json` of any architecture of the family -> `LlamaConfig`."""

from __future__ import annotations

from collections.abc import Mapping

from .ledger import LedgerEntry
from .llama.config import LlamaConfig
from .llama.hf_config import config_from_hf
from .llama4 import hf_config as llama4
from .mllama import hf_config as mllama


def read_config(raw: Mapping[str, object]) -> tuple[LlamaConfig, list[LedgerEntry]]:
    """The config that a parsed config.json describes, and the defaults and unknown keys met; LLC03xx otherwise."""
    names = raw.get("architectures")
    if isinstance(names, list) and len(names) == 1 and names[0] in llama4.ARCHITECTURES:
        return llama4.config_from_llama4(raw)
    if names == [mllama.ARCHITECTURE] or (not names and raw.get("model_type") == "mllama"):
        return mllama.mllama_config_from_hf(raw)
    return config_from_hf(raw)


def without_quantization(raw: Mapping[str, object]) -> dict[str, object]:
    """A config.json without what says how its weights are stored: the shape of the model does not depend on it."""
    return {key: value for key, value in raw.items() if key not in ("quantization_config", "compression_config")}
