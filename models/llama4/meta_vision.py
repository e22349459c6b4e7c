"""The `vision_args` of Meta's `params.json` -> `Llama4Vision`; what they leave out are constants of Meta's code."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.errors import LlamacError

from ..ledger import LedgerEntry
from ..llama.config_keys import MOST_LAYERS, ConfigKeys, short
from ..llama.vision_config import Llama4Vision
from .vision_limits import checked_encoder

WHERE = "params.json vision_args"
IMAGE_TOKEN, IMAGE_START, IMAGE_END = 200092, 200080, 200081
"""<|patch|>, <|image_start|> and <|image_end|> of the Llama 4 tokenizer."""


def vision_from_meta(value: object, ledger: list[LedgerEntry]) -> Llama4Vision:
    """Read vision_args; LLC0303 or LLC0304 for what cannot be."""
    if not isinstance(value, Mapping):
        raise LlamacError("LLC0303", WHERE, f"it is {short(value)}, expected an object", "correct the file")
    keys = ConfigKeys(value, WHERE, ledger, "the default of Meta's code")
    width, output = keys.integer("dim"), keys.integer("output_dim")
    found = Llama4Vision(
        hidden_size=width,
        intermediate_size=int(width * keys.number("mlp_ratio")),
        layers=keys.integer("n_layers", most=MOST_LAYERS),
        heads=keys.integer("n_heads"),
        image_size=_side(keys, "image_size"),
        patch_size=_side(keys, "patch_size"),
        channels=3,
        rope_theta=10000.0,
        norm_eps=1e-5,
        pixel_shuffle_ratio=keys.number("pixel_shuffle_ratio"),
        adapter_hidden=output,
        adapter_output=output,
        image_token=IMAGE_TOKEN,
        image_start_token=IMAGE_START,
        image_end_token=IMAGE_END,
    )
    return checked_encoder(found, WHERE)


def _side(keys: ConfigKeys, key: str) -> int:
    """Height and width, which must be equal."""
    value = keys.raw.get(key)
    if not isinstance(value, Mapping) or value.get("height") != value.get("width"):
        reason = f"{key} is {short(value)}, expected equal height and width"
        raise LlamacError("LLC0304", keys.where, reason, "take the params.json of the checkpoint")
    return ConfigKeys(value, f"{keys.where} {key}", keys.ledger).integer("height")
