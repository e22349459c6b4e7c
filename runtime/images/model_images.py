"""What a model does with pictures in a prompt: one class for each architecture that takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamac.errors import LlamacError

from .llama4_tokens import Llama4ImageTokens, image_tokens, place_images
from .loaded import LoadedPicture, PictureSource, load_picture
from .mllama_spans import aspect_ratio_id
from .placed import PicturePrompt, PromptImage
from .placeholders import check_image_count
from .settings import ImageSettings, settings_of_model

PLACEHOLDER = "<|image|>"
"""The text of the control token that stands for a picture in a prompt."""


@dataclass(frozen=True)
class Llama4Images:
    """Pictures become rows of embeddings among those of the text."""

    settings: ImageSettings
    tokens: Llama4ImageTokens

    @property
    def placeholder(self) -> int:
        """The id that a prompt holds for each picture."""
        return self.tokens.image

    @property
    def placeholders(self) -> frozenset[int]:
        """Every id that a prompt may hold for a picture."""
        return frozenset({self.placeholder})

    def place(self, ids: Sequence[int], pictures: Sequence[LoadedPicture]) -> PicturePrompt:
        """`ids` with every placeholder spelled out; LLC0834 unless there is one for each picture."""
        prompt = place_images(ids, [p.tiles for p in pictures], self.settings.tile_tokens, self.tokens)
        images, at = [], 0
        for picture in pictures:
            start = prompt.ids.index(self.tokens.start, at)
            at = prompt.ids.index(self.tokens.end, start) + 1
            rows = prompt.image_rows[start:at]
            first = int(rows[rows >= 0][0])
            images.append(PromptImage(start, at, picture, np.where(rows >= 0, rows - first, rows).astype(np.int32)))
        return PicturePrompt(prompt.ids, tuple(images))


@dataclass(frozen=True)
class MllamaImages:
    """Pictures become vision tokens that positions attend to; one token of the prompt stands for each."""

    settings: ImageSettings
    token: int
    spelled: int | None
    aspect_ratios: tuple[tuple[int, int], ...]

    @property
    def placeholder(self) -> int:
        """The id that a prompt holds for each picture."""
        return self.token

    @property
    def placeholders(self) -> frozenset[int]:
        """Every id that a prompt may hold for a picture."""
        return frozenset({self.placeholder} if self.spelled is None else {self.placeholder, self.spelled})

    def place(self, ids: Sequence[int], pictures: Sequence[LoadedPicture]) -> PicturePrompt:
        """`ids` with the model's own id for each picture; LLC0834 unless there is one for each, LLC0836 for its grid.

        Meta's tokenizer spells the placeholder with another id than the one that the embedding has a row for.
        """
        found = [self.token if token == self.spelled else token for token in ids]
        places = [place for place, token in enumerate(found) if token == self.token]
        check_image_count(len(places), len(pictures))
        return PicturePrompt(found, tuple(map(self._image, places, pictures)))

    def _image(self, place: int, picture: LoadedPicture) -> PromptImage:
        ratio = aspect_ratio_id(picture.tiles, self.aspect_ratios)
        tokens = picture.tiles.tiles * self.settings.tile_tokens
        return PromptImage(place, place + 1, picture, None, tokens, ratio)


ModelImages = Llama4Images | MllamaImages


def model_images(manifest: Mapping[str, Any], special: Mapping[str, int]) -> ModelImages:
    """What the model of a manifest does with pictures; `special` are its tokenizer's control tokens.

    LLC0838 for a model that takes none, LLC0837 when the tokenizer lacks what stands for them.
    """
    config = manifest["model"]["config"]
    vision, architecture = config.get("vision"), manifest["model"]["architecture"]
    if not isinstance(vision, Mapping) or architecture not in ("llama4", "mllama"):
        raise LlamacError("LLC0838", manifest["model"]["name"], "the model takes no pictures", "leave them out")
    settings = settings_of_model(vision)
    if architecture == "llama4":
        return Llama4Images(settings, image_tokens(special))
    ratios, token = vision.get("supported_aspect_ratios"), vision.get("image_token")
    rows = ratios if isinstance(ratios, (list, tuple)) else ()
    pairs = [tuple(pair) for pair in rows if isinstance(pair, (list, tuple))]
    good = [(pair[0], pair[1]) for pair in pairs if [type(size) for size in pair] == [int, int] and min(pair) > 0]
    if not good or len(good) != len(rows) or type(token) is not int:
        reason = "supported_aspect_ratios are no pairs of sizes, or image_token is no number"
        raise LlamacError("LLC0802", "model.config.vision", reason, "compile the model again")
    return MllamaImages(settings, token, special.get(PLACEHOLDER), tuple(good))


def load_all(sources: Sequence[PictureSource], settings: ImageSettings) -> list[LoadedPicture]:
    """Every picture; errors name it by its path, or by its number."""
    return [load_picture(source, settings, _name(source, number)) for number, source in enumerate(sources, 1)]


def _name(source: object, number: int) -> str:
    return str(source) if isinstance(source, str) or hasattr(source, "__fspath__") else f"image {number}"
