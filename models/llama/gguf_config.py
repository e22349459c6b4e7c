"""GGUF metadata of architecture `llama` -> `LlamaConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from llamac.errors import LlamacError

from ..ledger import LedgerEntry, entry
from .config import LlamaConfig, RopeScaling, check_config, shape_name

READ_KEYS = frozenset(
    """block_count context_length embedding_length feed_forward_length vocab_size attention.head_count
    attention.head_count_kv attention.layer_norm_rms_epsilon attention.key_length attention.value_length
    rope.freq_base rope.dimension_count rope.scaling.type rope.scaling.factor rope.scale_linear""".split()
)
NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "use_parallel_residual": (False,),
}
"""Keys that change the function the model computes, with the values under which they change nothing."""

HARMLESS = frozenset({"rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"})
FIX = "convert the checkpoint again"


def config_from_gguf(
    metadata: Mapping[str, object],
    where: str,
    *,
    vocabulary_rows: int,
    tied_head: bool,
    divisors: tuple[float, ...],
    ledger: list[LedgerEntry],
) -> LlamaConfig:
    """Read the `llama.*` keys. `divisors` are the values of `rope_freqs.weight`, empty when the file has none.

    Raises LLC0301..LLC0308; every default taken is added to `ledger`.
    """
    keys = GgufKeys(metadata, where, ledger)
    keys.check_meaning()
    return config_from_keys(keys, metadata, vocabulary_rows, tied_head, divisors)


def config_from_keys(
    keys: GgufKeys,
    metadata: Mapping[str, object],
    vocabulary_rows: int,
    tied_head: bool,
    divisors: tuple[float, ...],
) -> LlamaConfig:
    """What every architecture has in common."""
    heads, hidden_size = keys.integer("attention.head_count"), keys.integer("embedding_length")
    head_dim = _head_dim(keys, hidden_size, heads)
    name = metadata.get("general.name")
    config = LlamaConfig(
        name=name[:120] if isinstance(name, str) else "",
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length"),
        layers=keys.integer("block_count"),
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(keys, metadata, vocabulary_rows),
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(keys, divisors),
        context_length=keys.integer("context_length"),
        tied_head=tied_head,
        dtype="f32",
        rope_style="interleaved",
    )
    reason = "GGUF names no working type; its runtimes compute in f32"
    keys.ledger.append(entry("default", "gguf dtype", "f32", reason))
    check_config(config, keys.where)
    return config if config.name else replace(config, name=shape_name(config.parameters))


class GgufKeys:
    """Typed access to the keys of an architecture, `llama.*` or `llama4.*`."""

    def __init__(
        self, metadata: Mapping[str, object], where: str, ledger: list[LedgerEntry], architecture: str = "llama"
    ) -> None:
        self.prefix = f"{architecture}."
        self.raw = {key.removeprefix(self.prefix): v for key, v in metadata.items() if key.startswith(self.prefix)}
        self.where = where
        self.ledger = ledger

    def check_meaning(self, read: frozenset[str] = READ_KEYS) -> None:
        """Refuse keys that change the model, unless they are among those `read`; note the ones nobody knows."""
        for key, value in self.raw.items():
            if key in read:
                continue
            if key in NEUTRAL and value not in NEUTRAL[key]:
                shown = f"{self.prefix}{key} is {str(value)[:60]}"
                reason = f"{shown}, which changes what the model computes and is not supported"
                raise LlamacError("LLC0308", self.where, reason, "compile a plain dense Llama checkpoint")
            if key not in NEUTRAL and key not in HARMLESS:
                what, reason = str(value)[:60], "this key is not known: ignored"
                self.ledger.append(entry("unknown-key", f"gguf {self.prefix}{key[:80]}", what, reason))

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number; a list of equal ones, one for each layer, counts as one."""
        value = self._value(key, default)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]  # one number per layer, all of them equal
        if isinstance(value, list):
            reason = f"{self.prefix}{key} differs between layers, which is not supported"
            raise LlamacError("LLC0308", self.where, reason, "compile a plain dense Llama checkpoint")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            reason = f"{self.prefix}{key} is {str(value)[:60]}, expected a positive whole number"
            raise LlamacError("LLC0303", self.where, reason, FIX)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A stored f32 as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            reason = f"{self.prefix}{key} is {str(value)[:60]}, expected a positive number"
            raise LlamacError("LLC0303", self.where, reason, FIX)
        return float(str(np.float32(value)))

    def _value(self, key: str, default: object, reason: str = "not given: the GGUF default") -> object:
        value = self.raw.get(key)
        if value is not None:
            return value
        if default is None:
            raise LlamacError("LLC0302", self.where, f"the key '{self.prefix}{key}' is missing", FIX)
        self.ledger.append(entry("default", f"gguf {self.prefix}{key}", str(default), reason))
        return default


def _head_dim(keys: GgufKeys, hidden_size: int, heads: int) -> int:
    """key_length, or embedding_length / head_count; keys, values and the rotated part must all be that long."""
    if "attention.key_length" not in keys.raw and hidden_size % heads:
        reason = f"embedding_length {hidden_size} is no multiple of {heads} heads and key_length is not given"
        raise LlamacError("LLC0304", keys.where, reason, FIX)
    head_dim = keys.integer("attention.key_length", hidden_size // heads or None)
    for key in ("attention.value_length", "rope.dimension_count"):
        value = keys.raw.get(key, head_dim)
        if value != head_dim:
            reason = f"{keys.prefix}{key} is {str(value)[:60]} while a head has {head_dim} dimensions"
            raise LlamacError("LLC0304", keys.where, reason, "compile a plain dense Llama checkpoint")
    return head_dim


def _vocab_size(keys: GgufKeys, metadata: Mapping[str, object], vocabulary_rows: int) -> int:
    """llama.vocab_size, else the length of the token list, else the rows of the embedding table."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    return keys.integer("vocab_size", len(tokens) if isinstance(tokens, list) and tokens else vocabulary_rows)


def _rope_scaling(keys: GgufKeys, divisors: tuple[float, ...]) -> RopeScaling | None:
    kind = keys.raw.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        reason = f"the rope scaling {str(kind)[:60]!r} is not supported"
        raise LlamacError(
            "LLC0305", keys.where, reason, "supported: none, linear, and llama3 through rope_freqs.weight"
        )
    old_factor = keys.number("rope.scale_linear") if "rope.scale_linear" in keys.raw else 1.0
    factor = keys.number("rope.scaling.factor", old_factor) if kind == "linear" else old_factor
    if divisors and factor != 1.0:
        reason = f"rope_freqs.weight and a linear scaling by {factor} are given together"
        raise LlamacError("LLC0304", keys.where, reason, FIX)
    if divisors:
        return RopeScaling("divisors", divisors=divisors)
    return RopeScaling("linear", factor=factor) if factor != 1.0 else None
