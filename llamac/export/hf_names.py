"""How a Hugging Face folder holds the weights of a model: names, shapes, and which weights make which tensor."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.models.hf_weights import LLAMA4_MODULES
from llamac.models.image_shrink import vision_shapes
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision
from llamac.models.llama.weights import HF, expected_shapes, stored_name
from llamac.models.llama4 import vision_weights as llama4_vision
from llamac.models.mllama import weights as mllama
from llamac.models.name_table import MODEL

ROUTED = re.compile(r"(layers\.\d+)\.moe\.(gate|up|down)")
"""Model-level names of stacked experts: the layer, the kind."""

TILES = {"vision.pre_tile", "vision.tile_position", "vision.post_tile"}
"""Tables of what a tile adds; Meta's files have them by the place of the tile, under the same names with `.grid`."""


@dataclass(frozen=True)
class HfTensor:
    """A tensor of a plain folder. `weights` are the model-level weights it holds.

    layout "rows": their elements in order, one weight after the other. "experts": for each expert its matrices
    transposed, side by side. "tiles": for each picture's aspect ratio what its tiles add, made of a table by places.
    """

    name: str
    shape: tuple[int, ...]
    weights: tuple[str, ...]
    layout: str = "rows"


def hf_tensors(config: LlamaConfig, names: Collection[str]) -> list[HfTensor]:
    """Every tensor of a plain folder, in the order the model applies them; `names` are the source's weights."""
    shapes = expected_shapes(config) | vision_shapes(config.vision, config.hidden_size, names)
    found: list[HfTensor] = []
    for name, shape in shapes.items():
        match = ROUTED.fullmatch(name)
        if match is None:
            found.append(_plain(config, name, shape))
        elif match.group(2) != "up":
            found.append(_experts(config, match.group(1), match.group(2)))
    return found


def module_name(config: LlamaConfig, name: str) -> str:
    """The name of the module that holds a matrix, and of one expert's where `name` ends with `.NUMBER`."""
    stacked, _, expert = name.rpartition(".")
    match = ROUTED.fullmatch(stacked)
    if match is None:
        return _plain(config, name, ()).name.removesuffix(".weight")
    place = match.group(1).replace("layers.", f"{_text_prefix(config)}model.layers.")
    return f"{place}.feed_forward.experts.{expert}.{match.group(2)}_proj"


def _plain(config: LlamaConfig, name: str, shape: tuple[int, ...]) -> HfTensor:
    """A weight that is a tensor by itself."""
    base = name.removesuffix(".grid")
    if base in TILES and base != name:
        assert isinstance(config.vision, MllamaVision)
        v = config.vision
        shape = (len(v.supported_aspect_ratios) + 1, v.max_tiles * shape[1])
        return HfTensor(_stored(config, base), shape, (name,), "tiles")
    if name == "vision.patch" and isinstance(config.vision, MllamaVision):
        shape = (config.vision.hidden_size, config.vision.channels, *[config.vision.patch_size] * 2)
    return HfTensor(_stored(config, name), shape, (name,))


def _stored(config: LlamaConfig, name: str) -> str:
    if config.architecture == "mllama":
        found = mllama.stored_name(name, HF, config)
    elif name.startswith("vision."):
        found = llama4_vision.NAMES.translated(name, MODEL, HF)
    elif config.architecture == "llama4":
        module = LLAMA4_MODULES.translated(name, MODEL, HF)
        found = _text_prefix(config) + (f"{module}.weight" if module else stored_name(name, HF))
    else:
        found = stored_name(name, HF)
    if found is None or found == name:
        reason = "Hugging Face's files have no such weight"
        raise LlamacError("LLC0951", name, reason, "report this: nothing was written")
    return found


def _experts(config: LlamaConfig, layer: str, kind: str) -> HfTensor:
    """gate and up side by side, [experts, in, 2 * out], or down, [experts, in, out]."""
    assert config.moe is not None
    experts, inner, hidden = config.moe.experts, config.moe.intermediate_size, config.hidden_size
    place = layer.replace("layers.", f"{_text_prefix(config)}model.layers.") + ".feed_forward.experts"
    if kind == "gate":
        weights = (f"{layer}.moe.gate", f"{layer}.moe.up")
        return HfTensor(f"{place}.gate_up_proj", (experts, hidden, 2 * inner), weights, "experts")
    return HfTensor(f"{place}.down_proj", (experts, inner, hidden), (f"{layer}.moe.down",), "experts")


def _text_prefix(config: LlamaConfig) -> str:
    return "language_model." if isinstance(config.vision, Llama4Vision) else ""
