"""Names and shapes of the weights of a dense Llama, and the check of what a file holds against what the config says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from llamac.errors import LlamacError

from ..checkpoint import StoredTensor
from .config import LlamaConfig

Names = tuple[str, str, str, str]
LAYER_NAMES: tuple[Names, ...] = (
    ("attn_norm", "input_layernorm", "attn_norm", "attention_norm"),
    ("attn.q", "self_attn.q_proj", "attn_q", "attention.wq"),
    ("attn.k", "self_attn.k_proj", "attn_k", "attention.wk"),
    ("attn.v", "self_attn.v_proj", "attn_v", "attention.wv"),
    ("attn.o", "self_attn.o_proj", "attn_output", "attention.wo"),
    ("mlp_norm", "post_attention_layernorm", "ffn_norm", "ffn_norm"),
    ("mlp.gate", "mlp.gate_proj", "ffn_gate", "feed_forward.w1"),
    ("mlp.up", "mlp.up_proj", "ffn_up", "feed_forward.w3"),
    ("mlp.down", "mlp.down_proj", "ffn_down", "feed_forward.w2"),
)
"""Model-level name of a weight in a layer, its Hugging Face name, its GGUF name, Meta's name."""

OUTER_NAMES: tuple[Names, ...] = (
    ("embed", "model.embed_tokens", "token_embd", "tok_embeddings"),
    ("norm", "model.norm", "output_norm", "norm"),
    ("head", "lm_head", "output", "output"),
)
HF, GGUF, META = 1, 2, 3
LAYER_PREFIX = {HF: "model.layers.", GGUF: "blk.", META: "layers."}


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every model-level weight name of the text model with its shape, in the order the model applies them.

    Matrices are [out, in]. The experts of a layer are stacked: expert e's matrix is rows [e * out, (e + 1) * out).
    """
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.embedding_rows, hidden)}
    for index in range(config.layers):
        layer = _cross_shapes(config) if index in config.cross_layers else _layer_shapes(config, index)
        shapes.update({f"layers.{index}.{suffix}": shape for suffix, shape in layer.items()})
    shapes["norm"] = (hidden,)
    if not config.tied_head:
        shapes["head"] = (config.vocab_size, hidden)
    return shapes


def _layer_shapes(config: LlamaConfig, index: int) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "attn_norm": (hidden,),
        "attn.q": (queries, hidden),
        "attn.k": (keys, hidden),
        "attn.v": (keys, hidden),
        "attn.o": (hidden, queries),
        "mlp_norm": (hidden,),
        **(_moe_shapes(config) if config.is_moe(index) else _mlp_shapes("mlp", hidden, config.intermediate_size)),
    }


def _cross_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """A layer that attends to vision tokens: k and v are made of those; q and k have norms, both terms gates."""
    hidden = config.hidden_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "attn_norm": (hidden,),
        "cross.q": (queries, hidden),
        "cross.k": (keys, hidden),
        "cross.v": (keys, hidden),
        "cross.q_norm": (config.head_dim,),
        "cross.k_norm": (config.head_dim,),
        "cross.o": (hidden, queries),
        "attn_gate": (1,),
        "mlp_norm": (hidden,),
        **_mlp_shapes("mlp", hidden, config.intermediate_size),
        "mlp_gate": (1,),
    }


def _mlp_shapes(place: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{place}.gate": (inner, hidden), f"{place}.up": (inner, hidden), f"{place}.down": (hidden, inner)}


def _moe_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    assert config.moe is not None
    hidden, inner, experts = config.hidden_size, config.moe.intermediate_size, config.moe.experts
    return {
        "moe.router": (experts, hidden),
        "moe.gate": (experts * inner, hidden),
        "moe.up": (experts * inner, hidden),
        "moe.down": (experts * hidden, inner),
        **_mlp_shapes("moe.shared", hidden, inner),
    }


def model_name(stored_name: str, style: int) -> str | None:
    """Model-level name of a stored weight (`style` is HF or GGUF), or None when it is no weight of a Llama."""
    for row in OUTER_NAMES:
        if stored_name == f"{row[style]}.weight":
            return row[0]
    match = re.fullmatch(re.escape(LAYER_PREFIX[style]) + r"(0|[1-9]\d{0,5})\.(.+)\.weight", stored_name)
    if match:
        for row in LAYER_NAMES:
            if match.group(2) == row[style]:
                return f"layers.{match.group(1)}.{row[0]}"
    return None


def model_place(stored_name: str, style: int) -> str:
    """Where in the model a stored name belongs, as closely as can be told: for messages about unexpected tensors."""
    stem, _, kind = stored_name.rpartition(".")
    place = model_name(f"{stem}.weight", style)
    if place is not None:
        return f"{place} ({kind})" if kind != "weight" else place
    match = re.match(re.escape(LAYER_PREFIX[style]) + r"(\d{1,6})\.", stored_name)
    return f"layers.{match.group(1)}" if match else stored_name[:120]


def stored_name(name: str, style: int) -> str:
    """The stored name of a weight of a dense Llama; of others, whose place varies, the model-level name."""
    for row in OUTER_NAMES:
        if row[0] == name:
            return f"{row[style]}.weight"
    prefix, _, rest = name.partition(".")
    index, _, suffix = rest.partition(".")
    if prefix != "layers":
        return name
    found = next((row[style] for row in LAYER_NAMES if row[0] == suffix), None)
    return name if found is None else f"{LAYER_PREFIX[style]}{index}.{found}.weight"


def check_weights(
    config: LlamaConfig,
    found: Mapping[str, StoredTensor],
    style: int,
    others: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, StoredTensor]:
    """The weights in model order; raises LLC0206 (missing), LLC0207 (too many layers) or LLC0208 (shape).

    others: shapes of what comes after the text model, such as an image encoder.
    """
    expected = {**expected_shapes(config), **(others or {})}
    surplus = [name for name in found if name not in expected]
    if surplus:
        tensor = found[surplus[0]]
        reason = f"{tensor.stored_name} in {tensor.file.name} has no place in a model of {config.layers} layers"
        raise LlamacError("LLC0207", surplus[0], reason, "the config belongs to another checkpoint")
    missing = [name for name in expected if name not in found]
    if missing:
        raise missing_weight(missing, style)
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape:
            reason = f"expected shape {list(shape)} from the config, found {list(tensor.shape)} in {tensor.file.name}"
            raise LlamacError("LLC0208", name, reason, "the config belongs to another checkpoint, or is damaged")
    return {name: found[name] for name in expected}


def missing_weight(missing: Iterable[str], style: int) -> LlamacError:
    """LLC0206 for the first missing weight, with the number of the others."""
    names = list(missing)
    others = f" (and {len(names) - 1} others)" if len(names) > 1 else ""
    hint = "download the checkpoint again"
    if names == ["head"]:
        hint = "set tie_word_embeddings to true if this model shares embed and head"
    return LlamacError("LLC0206", names[0], f"the weight {stored_name(names[0], style)} is missing{others}", hint)
