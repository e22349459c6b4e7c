"""Which of the family's prompt formats a checkpoint without a chat template follows.

The names are those of the runtime's formats. What a folder holds tells the generation, but not whether the weights were
tuned for conversation, nor a Guard from the model it was made of; the choice is recorded as a default in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping

LLAMA3_2_SIZES = frozenset({2048, 3072})
"""Widths of the text models of Llama 3.2 (1B, 3B); 3.2 Vision, 3.1 and 3.3 share the formats of 3.1."""


def choose_chat_format(config: Mapping[str, object], kind: str, special_tokens: Mapping[str, int]) -> str | None:
    """The format for a config.json or params.json, by tokenizer kind and special tokens; None when none is known."""
    if "<|header_start|>" in special_tokens:
        return "llama4"
    if "<|start_header_id|>" in special_tokens:
        if not _scales_rope(config):
            return "llama3"
        width = config.get("hidden_size", config.get("dim"))
        return "llama3.2" if width in LLAMA3_2_SIZES else "llama3.1"
    return "llama2" if kind == "gguf-spm" else None


def _scales_rope(config: Mapping[str, object]) -> bool:
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    keys = ("use_scaled_rope", "rope_scaling")
    parameters = config.get("rope_parameters")
    return any(config.get(key) for key in keys) or (
        isinstance(parameters, dict) and parameters.get("rope_type") == "llama3"
    )
