"""Cuts a picture into the normalized tiles that an image encoder reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .canvas import best_grid, drawn_size
from .settings import ImageSettings

if TYPE_CHECKING:
    from PIL.Image import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TiledImage:
    """`pixels` [tiles, 3, px, px] f32, row by row of a grid of rows x columns, then the overview if there is one."""

    pixels: Floats
    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        """Tiles of the grid, without the overview."""
        return self.rows * self.columns


def cut_into_tiles(picture: Image, settings: ImageSettings) -> TiledImage:
    """`picture` (RGB) drawn on its grid from the top left, black elsewhere, cut and normalized.

    Resized by Pillow's bilinear filter on 8-bit samples and normalized in f32, as Meta's code does. transformers'
    processor for Llama 4 resizes by another filter and normalizes in bf16: it differs by up to 1.5 grey levels of 255.
    """
    tile = settings.tile_pixels
    rows, columns = best_grid(picture.height, picture.width, tile, settings.most_tiles)
    height, width = drawn_size(picture.height, picture.width, tile, (rows, columns))
    canvas = np.zeros((rows * tile, columns * tile, 3), np.uint8)
    canvas[:height, :width] = _resized(picture, height, width)
    tiles = canvas.reshape(rows, tile, columns, tile, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, tile, tile)
    if settings.overview and rows * columns > 1:
        overview = _resized(picture, tile, tile).transpose(2, 0, 1)[None]
        tiles = np.concatenate([tiles, overview])
    return TiledImage(_normalized(tiles, settings), rows, columns)


def _resized(picture: Image, height: int, width: int) -> Bytes:
    from PIL.Image import Resampling

    return np.asarray(picture.resize((width, height), Resampling.BILINEAR), np.uint8)


def _normalized(tiles: Bytes, settings: ImageSettings) -> Floats:
    """(sample / 255 - mean) / std of each channel, in f32: a table lookup, for there are 256 samples."""
    samples = np.arange(256, dtype=np.float32) / np.float32(255)
    out = np.empty(tiles.shape, np.float32)
    for channel, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
        out[:, channel] = ((samples - np.float32(mean)) / np.float32(std))[tiles[:, channel]]
    return out
