"""preprocessor_config.json: how transformers makes tiles of pictures, by the image encoder's own numbers."""

from __future__ import annotations

import json
from typing import Any

from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision
from llamac.runtime.images.settings import LLAMA4_MEAN, LLAMA4_STD, MLLAMA_MEAN, MLLAMA_STD

_MLLAMA = {"image_mean": list(MLLAMA_MEAN), "image_std": list(MLLAMA_STD)}
_LLAMA4 = {"image_mean": list(LLAMA4_MEAN), "image_std": list(LLAMA4_STD)}
_MOST_PATCHES = 16
"""Tiles of a picture as Llama 4 was published."""


def processor_files(config: LlamaConfig) -> dict[str, bytes]:
    """File name -> content; empty for a text model."""
    vision = config.vision
    if vision is None:
        return {}
    side = {"height": vision.image_size, "width": vision.image_size}
    found: dict[str, Any] = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True}
    found |= {"resample": 2, "rescale_factor": 1 / 255, "size": side}
    if isinstance(vision, MllamaVision):
        found |= _MLLAMA | {
            "do_pad": True,
            "image_processor_type": "MllamaImageProcessor",
            "max_image_tiles": vision.max_tiles,
        }
    else:
        assert isinstance(vision, Llama4Vision)
        own = {"image_processor_type": "Llama4ImageProcessorFast", "max_patches": _MOST_PATCHES}
        found |= _LLAMA4 | own | {"processor_class": "Llama4Processor", "resize_to_max_canvas": False}
    return {"preprocessor_config.json": (json.dumps(dict(sorted(found.items())), indent=2) + "\n").encode("utf-8")}
