"""Pictures among the positions of a prompt, and of the sequence that the prompt becomes.

Two things can stand for a picture: rows of embeddings at its own positions (Llama 4), or vision tokens in a cache of
their own that it and later positions see (Llama 3.2 Vision).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .llama4_tokens import NO_IMAGE
from .loaded import LoadedPicture

Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]


@dataclass(frozen=True)
class PromptImage:
    """A picture at positions start..stop - 1 of a prompt.

    patches: for each of those positions the row of the picture's embeddings that it takes, -1 where it is a separator;
    none where vision tokens stand for the picture. vision_tokens: how many do. aspect_ratio: the number of its shape,
    which the encoder of vision tokens wants to know.
    """

    start: int
    stop: int
    picture: LoadedPicture
    patches: Int32s | None = None
    vision_tokens: int = 0
    aspect_ratio: int = 0

    @property
    def pixels(self) -> Float32s:
        """What the encoder reads, [tiles, 3, px, px]."""
        return self.picture.tiles.pixels


@dataclass(frozen=True)
class PicturePrompt:
    """Token ids in which every picture is spelled out, and the pictures in order."""

    ids: list[int]
    images: tuple[PromptImage, ...] = ()

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of all pictures."""
        return sum(image.vision_tokens for image in self.images)


@dataclass
class PlacedImage:
    """A picture of a sequence. `first` is its first vision token; `embeddings` are there until they have been fed."""

    image: PromptImage
    first: int = 0
    embeddings: Float32s | None = None


@dataclass
class SequenceImages:
    """The pictures of one sequence, in order."""

    placed: list[PlacedImage] = field(default_factory=list)

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of all pictures: the next one's first."""
        return self.placed[-1].first + self.placed[-1].image.vision_tokens if self.placed else 0

    def add(self, image: PromptImage, embeddings: Float32s | None) -> None:
        """Append a picture that has been encoded."""
        self.placed.append(PlacedImage(image, self.vision_tokens, embeddings))

    def copy(self) -> SequenceImages:
        """The same pictures for a sequence that goes its own way."""
        return SequenceImages([replace(placed) for placed in self.placed])

    def agreeing(self, images: Sequence[PromptImage], limit: int) -> int:
        """How many of the first `limit` positions agree with a prompt that holds `images`, as far as pictures go."""
        for number in range(max(len(self.placed), len(images))):
            mine = self.placed[number].image if number < len(self.placed) else None
            theirs = images[number] if number < len(images) else None
            if mine is None or theirs is None or not _are_equal(mine, theirs):
                return min([limit, *(image.start for image in (mine, theirs) if image is not None)])
        return limit

    def resumable(self, tokens: int) -> int:
        """The last position up to `tokens` from which rows can go on: inside a picture its embeddings must be there."""
        for placed in self.placed:
            image = placed.image
            if image.patches is not None and placed.embeddings is None and image.start < tokens < image.stop:
                return image.start
        return tokens

    def truncate(self, tokens: int) -> None:
        """Forget the pictures from position `tokens` on."""
        self.placed = [placed for placed in self.placed if placed.image.start < tokens]

    def fed(self, tokens: int) -> None:
        """Let go of embeddings that lie before position `tokens`: they are in the cache now."""
        for placed in self.placed:
            if placed.image.stop <= tokens:
                placed.embeddings = None

    def ranges(self, start: int, stop: int) -> tuple[Int32s, Int32s]:
        """For positions start..stop - 1, which vision tokens each sees: first and end, equal where it sees none.

        A position sees the last picture at or before it, together with those that stand directly before that one.
        """
        first, end = np.zeros(stop - start, np.int32), np.zeros(stop - start, np.int32)
        group = 0
        for number, placed in enumerate(self.placed):
            at, before = placed.image.start, self.placed[number - 1].image.stop if number else -1
            if at != before:
                group = placed.first
            first[max(at - start, 0) :] = group
            end[max(at - start, 0) :] = placed.first + placed.image.vision_tokens
        return first, end

    def rows(self, start: int, stop: int) -> tuple[Int32s, list[Float32s]]:
        """For positions start..stop - 1 the row each takes of the embeddings, joined in order; -1 where it is text."""
        rows, parts, count = np.full(stop - start, NO_IMAGE, np.int32), [], 0
        for placed in self.placed:
            image, low, high = placed.image, max(placed.image.start, start), min(placed.image.stop, stop)
            if image.patches is None or low >= high:
                continue
            assert placed.embeddings is not None
            own = image.patches[low - image.start : high - image.start]
            rows[low - start : high - start] = np.where(own >= 0, own + count, NO_IMAGE)
            parts.append(placed.embeddings)
            count += len(placed.embeddings)
        return rows, parts


def _are_equal(one: PromptImage, other: PromptImage) -> bool:
    return (one.start, one.stop, one.picture.digest) == (other.start, other.stop, other.picture.digest)
