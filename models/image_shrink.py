"""Shrunken image encoders: what passes over the image side are validated on.

What decides which rewrites fire is kept: the kind of encoder, how many patches join to one token, the shapes of
pictures and the number of tiles, whether there are global blocks and taps, and the form of the tables of places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from .llama.vision_config import Llama4Vision, MllamaVision
from .llama4.vision_weights import expected_vision_shapes as llama4_shapes
from .mllama.vision_weights import expected_vision_shapes as mllama_shapes

PATCH = 2
LAYERS = 2
GRID = "vision.pre_tile.grid"
"""The weight whose presence says that tables hold a row for each place of a grid of tiles."""


def shrink_vision(vision: Llama4Vision | MllamaVision | None) -> Llama4Vision | MllamaVision | None:
    """The same kind of encoder, with few blocks, narrow heads and patches of 2 x 2 pixels."""
    if isinstance(vision, Llama4Vision):
        joined = round(1 / vision.pixel_shuffle_ratio)
        return dataclasses.replace(
            vision,
            hidden_size=24,
            intermediate_size=40,
            layers=min(vision.layers, LAYERS),
            heads=2,
            image_size=2 * joined * PATCH,
            patch_size=PATCH,
            adapter_hidden=20,
            adapter_output=28,
        )
    if isinstance(vision, MllamaVision):
        taps = tuple(range(min(len(vision.taps), LAYERS)))
        return dataclasses.replace(
            vision,
            hidden_size=24,
            intermediate_size=40,
            layers=min(vision.layers, LAYERS),
            global_layers=min(vision.global_layers, LAYERS),
            heads=2,
            image_size=2 * PATCH,
            patch_size=PATCH,
            taps=taps,
            output_size=24 * (1 + len(taps)),
        )
    return None


def vision_shapes(
    vision: Llama4Vision | MllamaVision | None, hidden_size: int, names: Collection[str] = ("vision.pre_tile",)
) -> dict[str, tuple[int, ...]]:
    """Shapes of the encoder's weights, in the form that `names` have; nothing when these are of a text model alone."""
    if vision is None or not any(name.startswith("vision.") for name in names):
        return {}
    if isinstance(vision, Llama4Vision):
        return llama4_shapes(vision, hidden_size)
    return mllama_shapes(vision, hidden_size, GRID in names)
