"""Pictures for devices of one sequence: what each call is shown, and the cache of vision tokens behind it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .kv_pages import KvPages, Past
from .run_plan import CachePlan
from .step_pictures import StepPictures

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]

_REMEMBERED = 4
"""Sequences whose vision tokens are kept beside the pages, as one call after another wants them."""


@dataclass(frozen=True)
class SequencePictures:
    """What T rows of one sequence show or see of pictures, as `StepPictures`.

    vision: keys and values of the vision tokens that rows may see, as a past holds those of the text: layer by layer of
    those that see pictures, [KV heads, M, head size], M as far as the last one that a row sees.
    """

    image_rows: Int32s | None = None
    image_embeddings: Float32s | None = None
    vision_start: Int32s | None = None
    vision_stop: Int32s | None = None
    vision: Past = ()


class VisionCache:
    """The pages of vision tokens of all sequences.

    place: of the cache among those of the plan. shapes: (KV heads, head size) of each layer that sees pictures.
    """

    def __init__(
        self,
        place: int,
        cache: CachePlan,
        pages: int,
        page_tokens: int,
        shapes: Sequence[tuple[int, int]],
        dtype: npt.DTypeLike,
    ) -> None:
        self.place, self._count, self._page_tokens = place, pages, page_tokens
        self._pages = KvPages([cache], [pages], page_tokens, shapes, dtype)
        self._stamp = 0
        self._remembered: OrderedDict[bytes, list[npt.NDArray[Any]]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes reserved for the pages."""
        return self._pages.nbytes

    def has(self, table: Int32s, stop: int) -> bool:
        """Whether there are pages for the first `stop` vision tokens."""
        pages = table[: -(-stop // self._page_tokens)]
        return bool(pages.size * self._page_tokens >= stop and (pages >= 0).all() and (pages < self._count).all())

    def put(self, table: Int32s, first: int, made: Past) -> None:
        """Keep keys and values of new vision tokens, the first of which is number `first` of its sequence."""
        self._stamp += 1
        self._pages.put(table[None], first, made, self._stamp)

    def seen(self, table: Int32s, stop: int) -> Past:
        """Keys and values of the first `stop` vision tokens of a sequence."""
        pages = table[: -(-stop // self._page_tokens)]
        key = pages.tobytes() + self._pages.stamps[0][pages].tobytes() + stop.to_bytes(8, "little")
        if key not in self._remembered:
            self._remembered[key] = self._pages.read(table[None], stop)
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(key)
        return self._remembered[key]


def shown_to(pictures: StepPictures, rows: npt.NDArray[np.intp]) -> SequencePictures:
    """The part of a step's pictures that some of its rows are shown, without vision tokens."""

    def part(values: Int32s | None) -> Int32s | None:
        return None if values is None else np.ascontiguousarray(values[rows])

    return SequencePictures(
        part(pictures.image_rows), pictures.image_embeddings, part(pictures.vision_start), part(pictures.vision_stop)
    )
