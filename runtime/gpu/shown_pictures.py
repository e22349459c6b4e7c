"""What a step shows of pictures, as its inputs on a GPU: checked, and no more rows of them than the step shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..step_pictures import StepPictures

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
INPUTS = frozenset({"image_rows", "image_embeddings", "vision_start", "vision_stop"})
"""The inputs of a plan that speak of pictures."""


@dataclass(frozen=True)
class ShownPictures:
    """The pictures of T rows: `embeddings` [M, d] are those that some row is, `rows` [T] says which, -1 for none."""

    rows: Int32s
    embeddings: Float32s
    vision_start: Int32s
    vision_stop: Int32s

    @property
    def count(self) -> int:
        """Rows of pictures that the step shows."""
        return len(self.embeddings)

    def input(self, name: str) -> npt.NDArray[np.int32]:
        """An input of `INPUTS` as the 32-bit words of it."""
        if name == "image_rows":
            return self.rows
        if name == "image_embeddings":
            return self.embeddings.reshape(-1).view(np.int32)
        return self.vision_start if name == "vision_start" else self.vision_stop


def shown(pictures: StepPictures | None, tokens: int) -> ShownPictures | None:
    """What T rows show; None for text alone. IndexError for a row of the pictures that is not there."""
    if pictures is None:
        return None
    pictures.check(tokens)
    nothing = np.zeros(tokens, np.int32)
    rows, embeddings = np.full(tokens, -1, np.int32), np.zeros((0, 0), np.float32)
    if pictures.image_rows is not None and pictures.image_embeddings is not None:
        is_picture = pictures.image_rows >= 0
        embeddings = np.ascontiguousarray(pictures.image_embeddings[pictures.image_rows[is_picture]])
        rows[is_picture] = np.arange(len(embeddings))
    start, stop = pictures.vision_start, pictures.vision_stop
    return ShownPictures(rows, embeddings, nothing if start is None else start, nothing if stop is None else stop)
