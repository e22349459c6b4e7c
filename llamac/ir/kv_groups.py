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
        g.cache.name: CacheState.empty(g.type, count, exact)
        for g, count in zip(kv_groups(graph), pages, strict=True)
    }


def single_sequence(graph: Graph, ids: Sequence[int]) -> dict[str, Any]:
    """Inputs of a step that reads all of one sequence and wants the logits of every token."""
    count = len(ids)
    inputs: dict[str, Any] = {
        "token_ids": np.array(ids, np.int32),
        "positions": np.arange(count, dtype=np.int32),
        "sequence_of_token": np.zeros(count, np.int32),
        "logit_rows": np.arange(count, dtype=np.int32),
    }
    groups = kv_groups(graph)
    pages = [-(-count // g.type.page) for g in groups]
    for group, number in zip(groups, pages, strict=True):
        inputs[group.tables.name] = np.arange(number, dtype=np.int32)[None]
    return inputs | empty_caches(graph, pages, False)
