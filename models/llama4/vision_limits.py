"""What the sizes of Llama 4's image encoder may be."""

from __future__ import annotations

from llamac.errors import LlamacError

from ..llama.config_keys import MOST_IN_ENCODER, MOST_LAYERS
from ..llama.vision_config import Llama4Vision


def checked_encoder(vision: Llama4Vision, where: str) -> Llama4Vision:
    """`vision` unchanged, or LLC0303/LLC0304 naming what cannot be."""
    sizes = (vision.hidden_size, vision.intermediate_size, vision.image_size, vision.adapter_hidden, vision.channels)
    if max(sizes) > MOST_IN_ENCODER or vision.adapter_output > MOST_IN_ENCODER:
        raise LlamacError("LLC0303", where, f"a size is larger than {MOST_IN_ENCODER}", "check the model's config")
    if vision.layers > MOST_LAYERS:
        reason = f"the image encoder has {vision.layers} layers, expected at most {MOST_LAYERS}"
        raise LlamacError("LLC0303", where, reason, "check the model's config")
    ratio = vision.pixel_shuffle_ratio
    for wrong, reason in (
        (vision.hidden_size % vision.heads, f"hidden_size {vision.hidden_size} in {vision.heads} heads"),
        (vision.image_size % vision.patch_size, f"images of {vision.image_size} in patches of {vision.patch_size}"),
        (not 0 < ratio <= 1 or not vision.tile_tokens, f"pixel_shuffle_ratio {ratio}"),
    ):
        if wrong:
            raise LlamacError("LLC0304", where, reason, "take the config of the checkpoint")
    return vision
