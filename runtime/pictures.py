"""What the sequences of one step show of their pictures, and the call that encodes a picture for a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from .images.placed import PromptImage
from .kv import CachedSequence
from .step_pictures import StepPictures

Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]


def pictures_of(feeds: Sequence[tuple[CachedSequence, int]]) -> StepPictures | None:
    """What sequences show that are each fed so many tokens; None when it is nothing."""
    spans = [(sequence.images, len(sequence), len(sequence) + count) for sequence, count in feeds]
    if not any(images.placed for images, _, _ in spans):
        return None
    if any(sequence.takes_vision_tokens for sequence, _ in feeds):
        return seen_by([(sequence, len(sequence), len(sequence) + count) for sequence, count in feeds])
    rows, parts, count = [], [], 0
    for images, start, stop in spans:
        own, embeddings = images.rows(start, stop)
        rows.append(np.where(own >= 0, own + count, own).astype(np.int32))
        parts += embeddings
        count += sum(map(len, embeddings))
    return StepPictures(np.concatenate(rows), np.concatenate(parts)) if parts else None


def seen_by(rows: Sequence[tuple[CachedSequence, int, int]]) -> StepPictures | None:
    """The vision tokens that positions start..stop - 1 of sequences see; None where none sees any."""
    if not any(sequence.takes_vision_tokens and sequence.images.placed for sequence, _, _ in rows):
        return None
    ranges = [sequence.images.ranges(start, stop) for sequence, start, stop in rows]
    first, end = (np.concatenate(part) for part in zip(*ranges, strict=True))
    return StepPictures(vision_start=first, vision_stop=end) if (first < end).any() else None


def encode(device: Any, sequence: CachedSequence, image: PromptImage) -> Float32s | None:
    """The embeddings of a picture, [rows, d]; None when its vision tokens went to the sequence's pages instead.

    LLC0838 for a device whose model has no image encoder.
    """
    encoder = getattr(device, "encode_image", None)
    if encoder is None:
        raise LlamacError("LLC0838", "model", "its code has no image encoder", "compile the model again")
    if image.patches is not None:
        found: Float32s = encoder(image.pixels)
        return found.reshape(-1, found.shape[-1])
    pages = np.array(sequence.vision_pages, np.int32)
    encoder(image.pixels, aspect_ratio=image.aspect_ratio, pages=pages, first=sequence.images.vision_tokens)
    return None
