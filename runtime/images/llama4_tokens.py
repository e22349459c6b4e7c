"""The tokens that stand for pictures in a Llama 4 prompt, and which row of image embeddings each of them takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from .placeholders import check_image_count
from .tiles import TiledImage

NO_IMAGE = -1
"""The row of a position that is text."""


@dataclass(frozen=True)
class Llama4ImageTokens:
    """Ids of the special tokens around and inside a picture.

    `image` is also the placeholder in a prompt; only positions that hold `patch` become image embeddings.
    """

    start: int
    image: int
    patch: int
    column_separator: int
    row_separator: int
    end: int


TOKEN_NAMES: dict[str, str] = {
    "start": "<|image_start|>",
    "image": "<|image|>",
    "patch": "<|patch|>",
    "column_separator": "<|tile_x_separator|>",
    "row_separator": "<|tile_y_separator|>",
    "end": "<|image_end|>",
}
"""What the special tokens are called in Llama 4's vocabulary."""


def image_tokens(special: Mapping[str, int]) -> Llama4ImageTokens:
    """The ids of a vocabulary's special tokens; LLC0837 when it lacks one."""
    for name in TOKEN_NAMES.values():
        if name not in special:
            reason = f"the vocabulary has no token {name}, which stands around or inside pictures"
            raise LlamacError("LLC0837", "tokenizer", reason, "compile the model with the tokenizer it came with")
    return Llama4ImageTokens(**{field: special[name] for field, name in TOKEN_NAMES.items()})


@dataclass(frozen=True)
class ImagePrompt:
    """Token ids with every picture spelled out; image_rows[t] is the image embedding of position t, or NO_IMAGE.

    Rows count the patches of all tiles of all pictures in order: tile n of the first picture starts at n * tile_tokens.
    """

    ids: list[int]
    image_rows: NDArray[np.int32]


def spelled_out(image: TiledImage, tile_tokens: int, tokens: Llama4ImageTokens) -> list[int]:
    """The tokens of one picture: its tiles with separators when there are several, then the overview or only tile."""
    patches = [tokens.patch] * tile_tokens
    ids = [tokens.start]
    if image.tiles > 1:
        row = [*patches, *[tokens.column_separator, *patches] * (image.columns - 1), tokens.row_separator]
        ids += row * image.rows
    return [*ids, tokens.image, *patches, tokens.end]


def place_images(
    ids: Sequence[int], images: Sequence[TiledImage], tile_tokens: int, tokens: Llama4ImageTokens
) -> ImagePrompt:
    """`ids` with the placeholders replaced by the pictures in order; LLC0834 unless there is one for each.

    LLC0835 when the prompt holds patches of its own, which would take other pictures' places.
    """
    check_image_count(sum(token == tokens.image for token in ids), len(images))
    if tokens.patch in ids:
        hint = "leave the patches out: a picture brings its own"
        raise LlamacError("LLC0835", f"token {tokens.patch}", "the prompt holds the token of an image patch", hint)
    waiting = iter(images)
    placed: list[int] = []
    for token in ids:
        placed += spelled_out(next(waiting), tile_tokens, tokens) if token == tokens.image else [token]
    is_patch = np.array(placed, np.int64) == tokens.patch
    rows = np.where(is_patch, np.cumsum(is_patch) - 1, NO_IMAGE)
    return ImagePrompt(placed, rows.astype(np.int32))
