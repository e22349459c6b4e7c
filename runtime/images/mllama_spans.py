"""Which vision tokens each position of a Llama 3.2 Vision prompt sees in its cross-attention layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from .placeholders import check_image_count
from .tiles import TiledImage

Rows = NDArray[np.int32]


def aspect_ratio_id(image: TiledImage, supported: Sequence[tuple[int, int]]) -> int:
    """The id of the picture's grid: 1 + its place among the (rows, columns) that the model knows; LLC0836 if none."""
    grid = (image.rows, image.columns)
    if grid not in supported:
        reason = f"a grid of {image.rows} x {image.columns} tiles, which the model has no embedding for"
        raise LlamacError(
            "LLC0836", "image", reason, f"grids it knows: {', '.join(f'{r} x {c}' for r, c in supported)}"
        )
    return list(supported).index(grid) + 1


def encoder_input(image: TiledImage, most_tiles: int) -> NDArray[np.float32]:
    """Pixels of exactly `most_tiles` tiles, those that the picture does not fill zero: [most_tiles, 3, px, px]."""
    missing = most_tiles - len(image.pixels)
    return np.concatenate([image.pixels, np.zeros((missing, *image.pixels.shape[1:]), np.float32)])


def visible_tokens(ids: Sequence[int], image_token: int, image_sizes: Sequence[int]) -> tuple[Rows, Rows]:
    """For each position the range [start, stop) of vision tokens it sees; start == stop before the first picture.

    `image_sizes` are the vision tokens of each picture, in order. A position sees the last picture at or before it,
    together with those that stand directly before that one: consecutive pictures are seen as a group by what follows.
    Positions generated later see what the last position sees.
    """
    check_image_count(sum(token == image_token for token in ids), len(image_sizes))
    ends = np.cumsum([0, *image_sizes])
    start, stop = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.int32)
    seen = first = 0
    for t, token in enumerate(ids):
        if token == image_token:
            if t == 0 or ids[t - 1] != image_token:
                first = seen
            seen += 1
        start[t], stop[t] = ends[first], ends[seen]
    return start, stop
