"""Names of the weights of Llama 3.2 Vision, text and image side, as transformers and Meta store them.

Shapes are those of `llama.weights.expected_shapes` and `vision_weights.expected_vision_shapes`. Meta numbers the layers
that attend to text and those that attend to pictures apart, and stores the last 8 rows of `embed` as
`text_model.learnable_embedding.weight`.
"""

from __future__ import annotations

import re

from ..llama.config import LlamaConfig
from ..llama.weights import HF, LAYER_NAMES, META
from ..name_table import MODEL, LayerNames, NameTable
from .vision_weights import NAMES as VISION

LEARNED_ROWS = "text_model.learnable_embedding.weight"
"""What Meta appends to the embedding table."""

OWN_ROWS = tuple((name, f"{hf}.weight", f"{meta}.weight") for name, hf, _, meta in LAYER_NAMES)
"""What a layer holds that attends to the text."""

CROSS_ROWS = (
    ("attn_norm", "input_layernorm.weight", "attention_norm.weight"),
    ("cross.q", "cross_attn.q_proj.weight", "attention.wq.weight"),
    ("cross.k", "cross_attn.k_proj.weight", "attention.wk.weight"),
    ("cross.v", "cross_attn.v_proj.weight", "attention.wv.weight"),
    ("cross.q_norm", "cross_attn.q_norm.weight", "attention.q_norm.weight"),
    ("cross.k_norm", "cross_attn.k_norm.weight", "attention.k_norm.weight"),
    ("cross.o", "cross_attn.o_proj.weight", "attention.wo.weight"),
    ("attn_gate", "cross_attn_attn_gate", "gate_attn"),
    ("mlp_norm", "post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate", "mlp.gate_proj.weight", "feed_forward.w1.weight"),
    ("mlp.up", "mlp.up_proj.weight", "feed_forward.w3.weight"),
    ("mlp.down", "mlp.down_proj.weight", "feed_forward.w2.weight"),
    ("mlp_gate", "cross_attn_mlp_gate", "gate_ffwd"),
)
"""What a layer holds that attends to pictures."""

_HF_LAYERS = "language_model.model.layers."
_OUTER = (
    ("embed", "language_model.model.embed_tokens.weight", "text_model.tok_embeddings.weight"),
    ("norm", "language_model.model.norm.weight", "text_model.norm.weight"),
    ("head", "language_model.lm_head.weight", "text_model.output.weight"),
)
_OWN = NameTable(_OUTER, (LayerNames(("layers.", _HF_LAYERS, "text_model.layers."), OWN_ROWS),))
_CROSS = NameTable((), (LayerNames(("layers.", _HF_LAYERS, "text_model.cross_attention_layers."), CROSS_ROWS),))


def model_name(stored: str, style: int, config: LlamaConfig) -> str | None:
    """Model-level name of a stored weight (`style` is HF or META), or None when the model has no such weight."""
    if style == HF:
        stored = _published(stored)
    for table, numbers in _tables(config):
        name = table.translated(stored, style, MODEL)
        if name is not None:
            name = _renumbered(name, numbers) if style == META else name
        if name is not None and _belongs(name, numbers):
            return name
    return None


def stored_name(name: str, style: int, config: LlamaConfig) -> str | None:
    """How a format stores a model-level weight; None when it does not (`style` is HF or META)."""
    for table, numbers in _tables(config):
        if _belongs(name, numbers):
            here = _renumbered(name, [numbers.index(n) if n in numbers else -1 for n in range(config.layers)])
            stored = table.translated(here if style == META and here is not None else name, MODEL, style)
            if stored is not None:
                return stored
    return None


def _tables(config: LlamaConfig) -> list[tuple[NameTable, list[int]]]:
    """The tables, each with the numbers of the text layers that it is about."""
    own = [layer for layer in range(config.layers) if layer not in config.cross_layers]
    return [(VISION, []), (_OWN, own), (_CROSS, list(config.cross_layers))]


def _published(stored: str) -> str:
    """The name in published files for what transformers 5 calls a module in memory."""
    if stored.startswith("model.language_model."):
        return stored.replace("model.language_model.", "language_model.model.", 1)
    return f"language_model.{stored}" if stored.startswith("lm_head.") else stored.removeprefix("model.")


def _renumbered(name: str, numbers: list[int]) -> str | None:
    """The name with layer n as layer numbers[n]; None when there is no such layer."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    number = int(match.group(1))
    return f"layers.{numbers[number]}.{match.group(2)}" if number < len(numbers) else None


def _belongs(name: str, numbers: list[int]) -> bool:
    """Whether a name is about no text layer, or about one of `numbers`."""
    match = re.match(r"layers\.(\d+)\.", name)
    return match is None or int(match.group(1)) in numbers
