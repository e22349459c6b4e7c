"""Prompts and messages that hold pictures: where they stand, and which pictures they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamac.errors import LlamacError

from ..text.tokenizer import TokenizerBase
from .loaded import LoadedPicture, load_picture
from .model_images import PLACEHOLDER, ModelImages

SOURCES = ("image", "path")
"""Keys of an image part that may hold the picture: anything that `load_picture` takes, or a path."""


def encode_with_places(text: str, tokenizer: TokenizerBase, placeholder: int) -> list[int]:
    """Ids of a prompt that gets pictures: `<|image|>` in it is the place of one; without any, all stand in front."""
    first, *rest = text.split(PLACEHOLDER)
    ids = tokenizer.encode(first)
    for piece in rest:
        ids.append(placeholder)
        ids += tokenizer.encode(piece, add_bos=False) if piece else []
    return ids


def with_places(ids: Sequence[int], images: ModelImages, count: int, bos_id: int | None) -> list[int]:
    """`ids` as they are when they hold a place for a picture, else with `count` places at their beginning."""
    found = list(ids)
    if not images.placeholders.isdisjoint(found):
        return found
    at = 1 if bos_id is not None and found[:1] == [bos_id] else 0
    return found[:at] + [images.placeholder] * count + found[at:]


def take_pictures(
    messages: Sequence[Mapping[str, Any]], images: ModelImages
) -> tuple[list[Mapping[str, Any]], list[LoadedPicture]]:
    """Messages whose image parts only say where a picture stands, and the pictures in order.

    LLC0914 for an image part without a picture, LLC0830..LLC0833 for one that cannot be read.
    """
    pictures: list[LoadedPicture] = []
    taken: list[Mapping[str, Any]] = []
    for place, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)) and has_picture(content):
            where = f"messages[{place}].content"
            parts = [_taken(part, images, pictures, f"{where}[{n}]") for n, part in enumerate(content)]
            message = {**message, "content": parts}
        taken.append(message)
    return taken, pictures


def hold_pictures(messages: object) -> bool:
    """Whether any message of a conversation holds a picture."""
    if not isinstance(messages, Sequence):
        return False
    return any(isinstance(message, Mapping) and has_picture(message.get("content")) for message in messages)


def has_picture(content: object) -> bool:
    """Whether the content of a message holds a picture, rather than text and places for pictures alone."""
    return isinstance(content, (list, tuple)) and any(_is_image(part) and "tiles" not in part for part in content)


def _is_image(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"


def _taken(part: Any, images: ModelImages, pictures: list[LoadedPicture], where: str) -> Any:
    """The part without its picture, which goes to `pictures`; its tokens are spelled out later."""
    if not _is_image(part):
        return part
    source = next((part[key] for key in SOURCES if part.get(key) is not None), None)
    if source is None:
        hint = 'give {"type": "image", "path": "photo.jpg"}, or "image" with its bytes or a Pillow image'
        raise LlamacError("LLC0914", where, "the image part holds no picture", hint)
    name = source if isinstance(source, str) else where
    pictures.append(load_picture(source, images.settings, name))
    return {"type": "image", "tiles": None}
