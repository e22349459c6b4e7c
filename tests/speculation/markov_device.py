"""A device without memory: the logits of a row are a table's row for its token. So every distribution is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llamac.runtime.ranked import RankedRows
from llamac.runtime.run_plan import CachePlan, MemoryPlan
from llamac.runtime.session import Session


class MarkovDevice:
    """`table[token]` are the logits of what follows a token."""

    def __init__(self, table: np.ndarray, pages: int = 2000) -> None:
        self.plan = MemoryPlan(0, 4, (CachePlan(0, (0,), 64),), "f32", 64, 0, 0)
        self.vocab_size = len(table)
        self.page_counts: Sequence[int] = [pages]
        self.steps = 0
        self._table = table.astype(np.float32)

    def step(self, *arguments: Any) -> None:
        """Fill the logits of the wanted rows."""
        token_ids, _, _, _, rows, logits = arguments
        self.steps += 1
        logits[:] = self._table[token_ids[rows]]


class RankingMarkovDevice(MarkovDevice):
    """The same, ranking its logits as the compiled code does; `written` counts the whole rows it was asked for."""

    most_top = 8

    def __init__(self, table: np.ndarray, pages: int = 2000) -> None:
        super().__init__(table, pages)
        self.written = 0

    def step(self, *arguments: Any) -> None:
        """Fill the logits of the wanted rows, where they are wanted, and the best of them."""
        token_ids, _, _, _, rows, logits, *others = arguments
        self.steps += 1
        found = self._table[token_ids[rows]]
        if logits is not None:
            self.written += len(rows)
            logits[:] = found
        if len(others) < 2:
            return
        ranked: RankedRows = others[1]
        order = np.argsort(-found, axis=1, kind="stable")[:, : ranked.ids.shape[1]]
        ranked.ids[:], ranked.values[:] = order, np.take_along_axis(found, order, axis=1)
        if ranked.sums is not None and ranked.inverse_temperature is not None:
            below = (found - found.max(axis=1, keepdims=True)).astype(np.float64)
            ranked.sums[:] = np.exp(below * ranked.inverse_temperature[:, None]).sum(axis=1)


def markov_session(table: np.ndarray, context: int = 100) -> Session:
    """A session of such a model."""
    return Session(MarkovDevice(table), context)
