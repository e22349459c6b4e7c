"""What a validation scenario shows of pictures, at any level, to graphs that take them.

Early fusion: random embeddings stand at random positions. Cross-attention: every sequence has vision tokens of its own,
around a page and over two, of which each position sees a random range, often none. Keys and values are arguments before
`lower-kv-cache` and lie in `cache.cross` after it; both hold the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamac.ir.definition import Array
from llamac.ir.graph import Graph
from llamac.ir.kv_groups import KvGroup
from llamac.ir.ops.cache_ops import CacheState

EMBEDDINGS = 7
PAST = ("past_k.", "past_v.")


@dataclass(frozen=True)
class Pictures:
    """Pictures for sequences of these lengths; `page` is the size that vision tokens are spread around."""

    lengths: tuple[int, ...]
    page: int
    seed: int

    def tokens(self, sequence: int) -> int:
        """Vision tokens of a sequence."""
        counts = (self.page + 1, 1, 0, self.page, 2 * self.page + 3, 5)
        return counts[sequence % len(counts)]

    def of_sequence(self, graph: Graph, sequence: int, start: int, stop: int) -> dict[str, Any]:
        """The picture arguments of a graph that runs positions start..stop - 1 of one sequence with explicit past."""
        found = self._of_positions(graph, [(sequence, p) for p in range(start, stop)])
        places = [a for a in graph.arguments if a.name.startswith("cross_")]
        for number, argument in enumerate(places):
            heads, _, width = argument.tensor.shape
            assert isinstance(heads, int) and isinstance(width, int)
            # A graph needs one vision token at least; it is seen by nobody.
            found[argument.name] = self._states(sequence, number, heads, max(self.tokens(sequence), 1), width)
        return found

    def of_rows(self, graph: Graph, rows: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The picture arguments of a ragged step over (sequence, position) rows."""
        return self._of_positions(graph, rows)

    def fill(self, group: KvGroup, state: CacheState, tables: Array) -> None:
        """Write every sequence's vision tokens into its pages."""
        kind = group.type
        for sequence in range(len(self.lengths)):
            count = self.tokens(sequence)
            for number in range(2 * kind.layers):
                values = self._states(sequence, number, kind.kv_heads, count, kind.head_dim)
                store = (state.keys, state.values)[number % 2]
                for token in range(count):
                    page = tables[sequence, token // kind.page]
                    store[page, number // 2, :, token % kind.page] = values[:, token]

    def _of_positions(self, graph: Graph, rows: Sequence[tuple[int, int]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        names = {a.name: a for a in graph.arguments}
        if "image_rows" in names:
            width = names["image_embeddings"].tensor.shape[1]
            assert isinstance(width, int)
            found["image_embeddings"] = _floats(self._random(0, 0), (EMBEDDINGS, width))
            found["image_rows"] = np.array([self._image_row(*row) for row in rows], np.int32)
        if "vision_start" in names:
            ranges = [self._range(*row) for row in rows]
            found["vision_start"], found["vision_stop"] = np.array(ranges, np.int32).reshape(-1, 2).T.copy()
        return found

    def _image_row(self, sequence: int, position: int) -> int:
        random = self._random(1 + sequence, position)
        return int(random.integers(0, EMBEDDINGS)) if random.random() < 0.4 else -1

    def _range(self, sequence: int, position: int) -> tuple[int, int]:
        """The vision tokens that a position sees: a third of them see nothing."""
        random, count = self._random(100 + sequence, position), self.tokens(sequence)
        first, second = sorted(int(n) for n in random.integers(0, count + 1, 2))
        return (second, first) if random.random() < 0.2 else (first, second)

    def _states(self, sequence: int, number: int, heads: int, count: int, width: int) -> Array:
        return _floats(self._random(200 + sequence, number), (heads, count, width))

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self.seed, key[0] << 32 | key[1]], np.uint64)))


def _floats(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers of unit variance that f32 and f64 both hold."""
    return ((random.random(shape, np.float32) * 2 - 1) * np.float32(1.75)).astype(np.float64)
