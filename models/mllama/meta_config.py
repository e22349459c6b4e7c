"""Meta's `params.json` of a Llama 3.2 Vision -> `LlamaConfig`: its encoder's sizes are constants of Meta's code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llamac.errors import LlamacError

from ..llama.config import LlamaConfig
from ..llama.config_keys import ConfigKeys
from ..llama.vision_config import MllamaVision

IMAGE_TOKEN = 128256
"""The first id beyond the vocabulary, which Meta's code puts in place of <|image|>."""

ENCODER = MllamaVision(
    hidden_size=1280,
    intermediate_size=5120,
    layers=32,
    global_layers=8,
    heads=16,
    image_size=448,
    patch_size=14,
    channels=3,
    norm_eps=1e-5,
    max_tiles=4,
    taps=(3, 7, 15, 23, 30),
    output_size=7680,
    supported_aspect_ratios=((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)),
    image_token=IMAGE_TOKEN,
)
"""The encoder of 11B and 90B (CrossAttentionTransformerVision); `image_size` is the tile size of params.json."""


def is_mllama(raw: Mapping[str, object]) -> bool:
    """Whether params.json has cross-attention layers."""
    count = _cross_layers(raw)
    return isinstance(count, int) and count > 0


def _cross_layers(raw: Mapping[str, object]) -> object:
    vision = raw.get("vision_model")
    adapter = vision.get("cross_attention_adapter") if isinstance(vision, Mapping) else None
    if isinstance(adapter, Mapping):
        return adapter.get("num_layers")
    return raw.get("vision_num_cross_attention_layers")


def with_images(text: LlamaConfig, keys: ConfigKeys, encoder: MllamaVision | None = None) -> LlamaConfig:
    """The text model of params.json with its cross-attention layers and its encoder.

    n_layers counts the layers that attend to text; a cross-attention layer comes before every k-th of them, counted
    from the last, where k is n_layers / layers rounded up.
    """
    added = ConfigKeys({"layers": _cross_layers(keys.raw)}, keys.where, keys.ledger).integer("layers")
    if added > text.layers:
        reason = f"{added} cross-attention layers among {text.layers} layers"
        raise LlamacError("LLC0304", keys.where, reason, "take the params.json of the checkpoint")
    step = -(-text.layers // added)
    before = list(range(text.layers))[::-1][::step][:added][::-1]
    cross = tuple(layer + index for index, layer in enumerate(before))
    encoder = encoder or ENCODER
    pixels = keys.integer("vision_chunk_size", encoder.image_size)
    if pixels % encoder.patch_size:
        reason = f"vision_chunk_size {pixels} is no multiple of the patch size {encoder.patch_size}"
        raise LlamacError("LLC0304", keys.where, reason, "take the params.json of the checkpoint")
    tiles = keys.integer("vision_max_num_chunks", encoder.max_tiles)
    if tiles != encoder.max_tiles:
        reason = f"vision_max_num_chunks is {tiles}, and Meta's encoder has tables for {encoder.max_tiles} tiles"
        raise LlamacError("LLC0304", keys.where, reason, "take the params.json of the checkpoint")
    vision = replace(encoder, image_size=pixels)
    return replace(text, architecture="mllama", layers=text.layers + len(cross), cross_layers=cross, vision=vision)
