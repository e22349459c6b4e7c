"""The caches of a ragged step, each with its page tables: one group for each kind of attention layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Graph, Value
from .ops.cache_ops import CacheState
from .types import CacheType

CACHE, TABLES = "cache", "page_tables"


@dataclass(frozen=True)
class KvGroup:
    """A cache argument and the argument that holds its page tables."""

    cache: Value
    tables: Value

    @property
    def type(self) -> CacheType:
        """The type of the cache."""
        return self.cache.cache


def kv_groups(graph: Graph) -> list[KvGroup]:
    """The groups of a step, in the order of its arguments; none for a graph with explicit past."""
    caches = [a for a in graph.arguments if isinstance(a.type, CacheType)]
    return [KvGroup(cache, graph.argument(TABLES + cache.name.removeprefix(CACHE))) for cache in caches]


def empty_caches(graph: Graph, pages: Sequence[int], exact: bool) -> dict[str, Any]:
    """Zeroed caches of so many pages, by argument name."""
    return {
        g.cache.name: CacheState.empty(g.type, count, exact) for g, count in zip(kv_groups(graph), pages, strict=True)
    }


def single_sequence(graph: Graph, ids: Sequence[int]) -> dict[str, Any]:
    """Inputs of a step that reads all of one sequence and wants the logits of every token."""
    return whole_sequences(graph, [ids])


def whole_sequences(graph: Graph, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Inputs of a step that reads all of several sequences and wants the logits of every token."""
    lengths = [len(prompt) for prompt in prompts]
    count = sum(lengths)
    inputs: dict[str, Any] = {
        "token_ids": np.concatenate([np.asarray(prompt, np.int32) for prompt in prompts]),
        "positions": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        "sequence_of_token": np.repeat(np.arange(len(prompts), dtype=np.int32), lengths),
        "logit_rows": np.arange(count, dtype=np.int32),
    }
    groups = kv_groups(graph)
    pages = [-(-max(lengths) // g.type.page) for g in groups]
    for group, number in zip(groups, pages, strict=True):
        numbers = np.arange(number * len(prompts), dtype=np.int32)
        inputs[group.tables.name] = numbers.reshape(len(prompts), number)
    counts = [number * len(prompts) for number in pages]
    return inputs | without_pictures(graph, count) | empty_caches(graph, counts, False)


def without_pictures(graph: Graph, tokens: int) -> dict[str, Any]:
    """The picture arguments of a step that shows none."""
    names = {a.name: a for a in graph.arguments}
    found: dict[str, Any] = {n: np.zeros(tokens, np.int32) for n in ("vision_start", "vision_stop") if n in names}
    if "image_rows" in names:
        width = names["image_embeddings"].tensor.shape[1]
        assert isinstance(width, int)
        found |= {"image_rows": np.full(tokens, -1, np.int32), "image_embeddings": np.zeros((1, width), np.float32)}
    return found
