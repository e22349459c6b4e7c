"""A picture ready for a model: cut into tiles, and recognized when it comes again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Union

from .picture import open_picture
from .settings import ImageSettings
from .tiles import TiledImage, cut_into_tiles

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class LoadedPicture:
    """The tiles of a picture; `digest` is equal for equal tiles on equal grids, whatever file they came from."""

    tiles: TiledImage
    digest: bytes = field(repr=False)


PictureSource = Union[str, Path, bytes, "Image", LoadedPicture]
"""A path, the bytes of a file, a Pillow image, or a picture that was loaded before."""


def load_picture(source: PictureSource, settings: ImageSettings, name: str = "image") -> LoadedPicture:
    """The picture cut for a model with these settings; LLC0830..LLC0833 for what cannot be one (`name` says which)."""
    if isinstance(source, LoadedPicture):
        return source
    tiles = cut_into_tiles(open_picture(source, name), settings)
    found = hashlib.sha256(f"{tiles.rows} {tiles.columns} ".encode())
    found.update(tiles.pixels.tobytes())
    return LoadedPicture(tiles, found.digest())
