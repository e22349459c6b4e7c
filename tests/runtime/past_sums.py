"""A backend of one sequence whose logits depend on every token before them and where it stands, exactly in integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.runtime.run_plan import CachePlan, MemoryPlan
from llamac.runtime.sequence_pictures import SequencePictures

VOCAB = 23
SHAPES = ((2, 3), (1, 4))
CHUNK = 8
PAGE = 4

Array = NDArray[Any]


def memory_plan(step_tokens: int = 16) -> MemoryPlan:
    """Layer 0 sees everything before it, layer 1 its own chunk of positions."""
    caches = (CachePlan(0, (0,), 2 * 6 * 4 * PAGE), CachePlan(CHUNK, (1,), 2 * 4 * 4 * PAGE))
    return MemoryPlan(0, PAGE, caches, "f32", step_tokens, 0, 0)


def expected(ids: Sequence[int]) -> Array:
    """What the model gives after each of `ids`, [T, VOCAB]."""
    rows = []
    for position in range(len(ids)):
        seen = sum((s + 1) * ids[s] for s in range(position + 1))
        near = sum((s + 2) * ids[s] for s in range(position // CHUNK * CHUNK, position + 1))
        rows.append([(seen * (v + 1) + near * (v + 3)) % 9973 for v in range(VOCAB)])
    return np.array(rows, np.float32)


class PastSums:
    """Keys are (position + 1) * id and values (position + 2) * id, of any head and column."""

    name = "sums"
    vocab_size = VOCAB
    cache_shapes = SHAPES
    cache_dtype = np.float32
    threads = 1
    encodes = False

    def __init__(self) -> None:
        self.calls = 0
        self.continued = 0
        self.fails = False
        self.is_closed = False
        self._last: list[Array] = []

    def forward(
        self,
        ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        past: Sequence[Array],
        rows: NDArray[np.int32],
        pictures: SequencePictures | None,
    ) -> tuple[NDArray[np.float32], list[Array]]:
        """As `SequenceBackend.forward`; `continued` counts calls whose past is the very present of the last."""
        assert pictures is None
        if self.fails:
            raise RuntimeError("no")
        start = int(positions[0])
        assert all(array.flags.c_contiguous and array.shape[1] == start for array in past)
        assert [array.shape[::2] for array in past] == [shape for shape in SHAPES for _ in "kv"]
        self.calls += 1
        self.continued += bool(self._last) and all(a is b for a, b in zip(past, self._last, strict=True))
        new = [np.float32((positions + 1) * ids), np.float32((positions + 2) * ids)]
        present = [np.ascontiguousarray(_grown(array, new[index % 2])) for index, array in enumerate(past)]
        self._last = present
        return np.array([self._row(present, int(positions[row])) for row in rows], np.float32).reshape(
            -1, VOCAB
        ), present

    def _row(self, present: Sequence[Array], position: int) -> list[int]:
        k, v = present[0][:, : position + 1], present[3][:, position // CHUNK * CHUNK : position + 1]
        assert (k == k[:1, :, :1]).all() and (v == v[:1, :, :1]).all()
        seen, near = int(k[0, :, 0].sum()), int(v[0, :, 0].sum())
        return [(seen * (column + 1) + near * (column + 3)) % 9973 for column in range(VOCAB)]

    def encode(self, pixels: Array, aspect_ratio: int, tokens: int) -> list[Array]:
        """Never called: it does not encode."""
        raise NotImplementedError

    def close(self) -> None:
        """Remembered."""
        self.is_closed = True


def _grown(past: Array, new: Array) -> Array:
    heads, _, size = past.shape
    return np.concatenate([past, np.broadcast_to(new[:, None], (heads, new.size, size))], 1)
