"""Pages of keys and values in numpy arrays, for devices whose backend knows nothing of pages.

The pages are what the runtime has handed out (`kv.PagePool`); every write leaves a stamp on the pages it touched, so
that a copy of some of them can be known to be still the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .cpu_memory import anonymous_memory
from .run_plan import CachePlan

Array = npt.NDArray[Any]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

Past = Sequence[Array]
"""Keys and values of the first P tokens of one sequence: k.0, v.0, k.1, v.1 ..., each [KV heads, P, head size]."""


class KvPages:
    """The memory of every page of every cache; it is taken as it fills.

    shapes: (KV heads, head size) of each layer that has a cache, in the model's order. dtype: what keys and values are
    kept in.
    """

    def __init__(
        self,
        caches: Sequence[CachePlan],
        page_counts: Sequence[int],
        page_tokens: int,
        shapes: Sequence[tuple[int, int]],
        dtype: npt.DTypeLike,
    ) -> None:
        self.page_tokens = page_tokens
        self.stamps = [np.zeros(count, np.int64) for count in page_counts]
        self._shapes, self._dtype = list(shapes), np.dtype(dtype)
        places = sorted((layer, place) for place, cache in enumerate(caches) for layer in cache.layers)
        if len(places) != len(shapes):
            raise ValueError(f"the caches are those of {len(places)} layers, the model has {len(shapes)} such")
        self._cache_of = [place for _, place in places]
        self._memory = [
            [self._zeros(page_counts[self._cache_of[layer]], *shape) for _ in ("k", "v")]
            for layer, shape in enumerate(shapes)
        ]

    def _zeros(self, pages: int, heads: int, size: int) -> Array:
        shape = (pages, heads, self.page_tokens, size)
        nbytes = int(np.prod(shape)) * self._dtype.itemsize
        memory = anonymous_memory(nbytes, f"KV cache of {pages} pages")[:nbytes]
        return memory.view(self._dtype).reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for all pages."""
        return sum(part.nbytes for layer in self._memory for part in layer)

    def pages_of(self, tables: Int32s, start: int, stop: int) -> list[Int32s]:
        """For each cache the pages of positions start..stop - 1 of one sequence; tables: [caches, pages]."""
        return [table[start // self.page_tokens : -(-stop // self.page_tokens)] for table in tables]

    def write(self, tables: Int32s, start: int, present: Past, stamp: int) -> None:
        """Keep the tokens of `present` from position `start` on, in pages that get `stamp`."""
        self.put(tables, start, [rows[:, start:] for rows in present], stamp)

    def put(self, tables: Int32s, start: int, added: Past, stamp: int) -> None:
        """Keep new tokens, at positions from `start` on, in pages that get `stamp`."""
        stop = start + added[0].shape[1]
        positions = np.arange(start, stop)
        slots = positions % self.page_tokens
        for layer, pair in enumerate(self._memory):
            pages = tables[self._cache_of[layer]][positions // self.page_tokens]
            for memory, rows in zip(pair, added[2 * layer : 2 * layer + 2], strict=True):
                memory[pages, :, slots] = rows.transpose(1, 0, 2)
        for stamps, touched in zip(self.stamps, self.pages_of(tables, start, stop), strict=True):
            stamps[touched] = stamp

    def read(self, tables: Int32s, length: int) -> list[Array]:
        """The first `length` tokens of a sequence in arrays of their own; zeros where it has no page any more.

        A page is given up where no row can see it (layers that see chunks of positions), so its values do not matter.
        """
        own = self.pages_of(tables, 0, length)
        found = []
        for layer, pair in enumerate(self._memory):
            pages = own[self._cache_of[layer]]
            heads, size = self._shapes[layer]
            for memory in pair:
                rows = memory[pages]
                rows[pages < 0] = 0
                joined = rows.transpose(1, 0, 2, 3).reshape(heads, len(pages) * self.page_tokens, size)
                found.append(np.ascontiguousarray(joined[:, :length]))
        return found

    def empty(self) -> list[Array]:
        """The past of a sequence that has none."""
        return [np.empty((heads, 0, size), self._dtype) for heads, size in self._shapes for _ in ("k", "v")]
