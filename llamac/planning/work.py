"""Operations and bytes of a prefill and of a decode step on one device: counted from the config, op by op summed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from llamac.models.llama.config import LlamaConfig

from .formats import math_of
from .kv import KvGroup
from .weights import Part, active_fraction, read_bytes

ACTIVATION_BYTES = 2
"""Bytes of an activation on its way from one device to the others: 16-bit floats."""


@dataclass(frozen=True)
class Work:
    """What one device does: operations by the type they are done in, and bytes it reads, writes and exchanges.

    A multiply-add is two operations. Activations stay in caches and are not counted.
    """

    operations: Mapping[str, float] = field(default_factory=dict)
    weight_bytes: float = 0
    cache_bytes: float = 0
    exchanged_bytes: float = 0

    @property
    def total_operations(self) -> float:
        """Over all types."""
        return sum(self.operations.values())

    @property
    def memory_bytes(self) -> float:
        """Bytes between the device and its memory."""
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True)
class Load:
    """What the work is counted for: the parts and caches of one device, of `tp` that share the model."""

    config: LlamaConfig
    parts: tuple[Part, ...]
    groups: tuple[KvGroup, ...]
    layout: str
    step_tokens: int
    tp: int = 1
    on_gpu: bool = False


def prefill_work(load: Load, tokens: int) -> Work:
    """One sequence of `tokens` tokens from an empty cache, in steps of `step_tokens`; logits of the last row."""
    operations = linear_operations(load, tokens, 1)
    math = _attention_math(load)
    cache = 0.0
    for group in load.groups:
        operations[math] += 4 * _queries(load) * group.head_dim * group.layers * _pairs(load.config, group, tokens)
        written = tokens if group.kind != "cross" else group.tokens
        cache += group.token_bytes * (written + _read_in_steps(load.config, group, tokens, load.step_tokens))
    whole, rest = divmod(tokens, load.step_tokens)
    weights = whole * read_bytes(load.parts, load.config, load.layout, load.step_tokens)
    weights += read_bytes(load.parts, load.config, load.layout, rest) if rest else 0
    return Work(dict(operations), weights, cache, _exchanged(load, tokens, 1))


def decode_work(load: Load, batch: int, context: int) -> Work:
    """One step of `batch` sequences, each with `context` tokens in all: one new row and its logits for each."""
    operations = linear_operations(load, batch, batch)
    math = _attention_math(load)
    cache = 0.0
    for group in load.groups:
        seen = group.tokens if group.kind == "cross" else visible(load.config, group, context)
        operations[math] += 4 * _queries(load) * group.head_dim * group.layers * seen * batch
        cache += batch * group.token_bytes * (seen + (0 if group.kind == "cross" else 1))
    weights = read_bytes(load.parts, load.config, load.layout, batch)
    return Work(dict(operations), weights, cache, _exchanged(load, batch, batch))


def linear_operations(load: Load, tokens: int, logit_rows: int) -> Counter[str]:
    """Operations of all products of activations with weights, by type; routed parts by the experts of a token."""
    fraction = active_fraction(load.config, 1)
    found: Counter[str] = Counter()
    rows = {"product": tokens, "head": logit_rows, "tied": logit_rows}
    for part in load.parts:
        if part.use in rows:
            share = fraction if part.routed else 1
            size = part.count * part.rows * part.columns * share
            found[math_of(part.format, load.on_gpu)] += 2 * rows[part.use] * size  # type: ignore[assignment]
    return found


def visible(config: LlamaConfig, group: KvGroup, context: int) -> int:
    """Most positions that a row sees in a sequence of `context` tokens."""
    chunk = _chunk(config, group)
    return min(context, chunk) if chunk else context


def _chunk(config: LlamaConfig, group: KvGroup) -> int:
    return config.attention.chunk if group.kind == "chunked" and config.attention is not None else 0


def _queries(load: Load) -> int:
    return -(-load.config.heads // load.tp)


def _attention_math(load: Load) -> str:
    if load.on_gpu and all(group.dtype != "f32" for group in load.groups):
        return "bf16"
    return "f32"


def _pairs(config: LlamaConfig, group: KvGroup, tokens: int) -> int:
    """Pairs of a row and a position that it sees, over a sequence."""
    if group.kind == "cross":
        return tokens * group.tokens
    chunk = _chunk(config, group) or tokens
    whole, rest = divmod(tokens, chunk)
    return whole * (chunk * (chunk + 1) // 2) + rest * (rest + 1) // 2


def _read_in_steps(config: LlamaConfig, group: KvGroup, tokens: int, step: int) -> int:
    """Positions read from the cache, once for each step that sees them."""
    if group.kind == "cross":
        return -(-tokens // step) * group.tokens
    starts = np.arange(0, tokens, step, dtype=np.int64)
    ends = np.minimum(starts + step, tokens)
    chunk = _chunk(config, group)
    first = starts // chunk * chunk if chunk else 0
    return int((ends - first).sum())


def _exchanged(load: Load, tokens: int, logit_rows: int) -> float:
    """Bytes that a device sends: two sums over all devices in each layer, and its share of the logits.

    A ring of n devices sends each value 2 (n - 1) / n times to sum it, (n - 1) / n times to gather it.
    """
    if load.tp == 1:
        return 0.0
    around = (load.tp - 1) / load.tp
    sums = 2 * load.config.layers * tokens * load.config.hidden_size * ACTIVATION_BYTES
    return around * (2 * sums + logit_rows * load.config.vocab_size * 4)
