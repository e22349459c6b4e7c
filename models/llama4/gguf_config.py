"""GGUF metadata of architecture `llama4` -> `LlamaConfig`.

The metadata leaves most of what sets Llama 4 apart to llama.cpp's loader, so its constants are here: chunks of 8192
positions, every fourth layer without rotation and with tempered queries, q and k normalized unless there are 128
experts. A sliding window of 0 means none of it: every layer rotates and sees everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llamac.errors import LlamacError

from ..ledger import LedgerEntry, entry
from ..llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts, check_config, shape_name
from ..llama.gguf_config import FIX, READ_KEYS, GgufKeys, config_from_keys

ARCHITECTURE = "llama4"
MOE_KEYS = frozenset(
    """expert_count expert_used_count expert_feed_forward_length interleave_moe_layer_step attention.sliding_window
    expert_shared_feed_forward_length""".split()
)
CHUNK = 8192
UNROTATED_EVERY = 4
TEMPERATURE_FLOOR = 8192.0
TEMPERATURE_SCALE = 0.1
WITHOUT_QK_NORM = 128
"""The number of experts by which llama.cpp knows Maverick, the model without normalized queries and keys."""


def config_from_gguf4(
    metadata: Mapping[str, object],
    where: str,
    *,
    vocabulary_rows: int,
    tied_head: bool,
    divisors: tuple[float, ...],
    ledger: list[LedgerEntry],
) -> LlamaConfig:
    """Read the `llama4.*` keys; arguments and errors as for `config_from_gguf`."""
    keys = GgufKeys(metadata, where, ledger, ARCHITECTURE)
    keys.check_meaning(READ_KEYS | MOE_KEYS)
    dense = config_from_keys(keys, metadata, vocabulary_rows, tied_head, divisors)
    moe = _mixture(keys, dense.layers)
    config = replace(dense, architecture="llama4", moe=moe, attention=_attention(keys, dense.layers, moe.experts))
    check_config(config, where)
    return config if metadata.get("general.name") else replace(config, name=shape_name(config.parameters))


def _mixture(keys: GgufKeys, layers: int) -> MixtureOfExperts:
    experts, used = keys.integer("expert_count"), keys.integer("expert_used_count", 1)
    width, step = keys.integer("expert_feed_forward_length"), keys.integer("interleave_moe_layer_step", 1)
    if used > experts:
        reason = f"{used} of {experts} experts are used for each token"
        raise LlamacError("LLC0304", keys.where, reason, FIX)
    if keys.raw.get("expert_shared_feed_forward_length", width) != width:
        reason = "the shared expert has another width than the routed ones"
        raise LlamacError("LLC0308", keys.where, reason, "compile a checkpoint of Llama 4 as it was published")
    return MixtureOfExperts(experts, used, width, tuple(range(step - 1, layers, step)))


def _attention(keys: GgufKeys, layers: int, experts: int) -> AttentionPattern:
    window = keys.raw.get("attention.sliding_window")
    qk_norm = experts != WITHOUT_QK_NORM
    chunk, every = (0, layers + 1) if window == 0 else (CHUNK, UNROTATED_EVERY)
    what = f"chunks of {chunk}, every {every}th layer unrotated, qk norm {str(qk_norm).lower()}"
    if window == 0:
        what = f"every layer rotated and unchunked, qk norm {str(qk_norm).lower()}"
    reason = "the metadata does not say: the constants of llama.cpp"
    keys.ledger.append(entry("default", "gguf llama4 attention", what, reason))
    unrotated = tuple(range(every - 1, layers, every))
    return AttentionPattern(unrotated, chunk, qk_norm, TEMPERATURE_FLOOR, TEMPERATURE_SCALE)
