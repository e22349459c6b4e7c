"""How a model wants its pictures: the size and number of tiles, and the scaling of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamac.errors import LlamacError

LLAMA4_MEAN = LLAMA4_STD = (0.5, 0.5, 0.5)
MLLAMA_MEAN = (0.48145466, 0.4578275, 0.40821073)
MLLAMA_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation that the samples, in 0..1, are normalized with; those of mllama are CLIP's."""


@dataclass(frozen=True)
class ImageSettings:
    """Square tiles of `tile_pixels`, at most `most_tiles` of them.

    With `overview` a picture of several tiles is followed by a tile that shows all of it. `tile_tokens` is the number
    of positions (Llama 4) or of vision tokens (mllama) that one tile takes.
    """

    tile_pixels: int
    most_tiles: int
    tile_tokens: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    overview: bool


def llama4_settings(tile_pixels: int, tile_tokens: int, most_tiles: int = 16) -> ImageSettings:
    """The settings of a Llama 4 (336 pixels and 144 tokens in the released models)."""
    return ImageSettings(tile_pixels, most_tiles, tile_tokens, LLAMA4_MEAN, LLAMA4_STD, overview=True)


def mllama_settings(tile_pixels: int, tile_tokens: int, most_tiles: int = 4) -> ImageSettings:
    """The settings of a Llama 3.2 Vision (448 pixels and 1025 tokens, or 560 and 1601)."""
    return ImageSettings(tile_pixels, most_tiles, tile_tokens, MLLAMA_MEAN, MLLAMA_STD, overview=False)


def settings_of_model(vision: Mapping[str, Any]) -> ImageSettings:
    """The settings that the `vision` part of a manifest's model config implies; LLC0802 when it lacks a number."""
    tile, patch = (_number(vision, key) for key in ("image_size", "patch_size"))
    side = tile // patch
    if "taps" in vision:
        return mllama_settings(tile, side * side + 1, _number(vision, "max_tiles"))
    ratio = vision.get("pixel_shuffle_ratio")
    if not isinstance(ratio, float) or not 0 < ratio <= 1:
        raise _lacking("pixel_shuffle_ratio", ratio)
    return llama4_settings(tile, round(side * ratio) ** 2)


def _number(vision: Mapping[str, Any], key: str) -> int:
    value = vision.get(key)
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise _lacking(key, value)
    return value


def _lacking(key: str, value: object) -> LlamacError:
    reason = f"{key} is {str(value)[:40]}, and pictures cannot be cut without it"
    return LlamacError("LLC0802", f"model.config.vision.{key}", reason, "compile the model again")
