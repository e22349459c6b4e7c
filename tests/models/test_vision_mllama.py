"""Llama 3.2 Vision's image encoder, interpreted, against transformers' and Meta's, in both forms of its tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from meta_mllama import load_meta_mllama
from tiny_vision import (
    MLLAMA_VISION,
    RATIOS,
    Floats,
    Weights,
    enlarge,
    named,
    relative_error,
    tiny_config,
    unread_weights,
)
from transformers import MllamaVisionConfig
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.verifier import verify
from llamac.models.image_graph import build_image_graphs
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.vision_config import MllamaVision
from llamac.models.llama.weights import HF, META, expected_shapes
from llamac.models.mllama.vision_graph import build_mllama_vision
from llamac.models.mllama.vision_weights import NAMES, expected_vision_shapes, matrix_shape
from llamac.models.name_table import MODEL
from llamac.models.presets import preset

TOLERANCE = 1e-5
BF16_FACTOR = 1.5
"""How much further from f32 another order of sums may lead than the reference's own."""
CONFIG = tiny_config("mllama", MLLAMA_VISION, cross_layers=(1, 4))


def hf_vision_config(vision: MllamaVision) -> MllamaVisionConfig:
    """transformers 5.23 counts a tap by the block before it: its index t is the input of block t + 1."""
    return MllamaVisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_hidden_layers=vision.layers,
        num_global_layers=vision.global_layers,
        attention_heads=vision.heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        max_num_tiles=vision.max_tiles,
        intermediate_layers_indices=[tap - 1 for tap in vision.taps],
        vision_output_dim=vision.output_size,
        norm_eps=vision.norm_eps,
        attn_implementation="eager",
    )


class Reference(torch.nn.Module):
    """Encoder and projector under the names that checkpoints use."""

    def __init__(self, vision: MllamaVision, hidden_size: int) -> None:
        super().__init__()
        self.vision_model = MllamaVisionModel(hf_vision_config(vision))
        self.multi_modal_projector = torch.nn.Linear(vision.output_size, hidden_size)

    def forward(self, pixels: torch.Tensor, aspect_ratio: int) -> torch.Tensor:
        tiles = int(np.prod(RATIOS[aspect_ratio - 1]))
        mask = (torch.arange(4) < tiles).int()[None, None]
        ids = torch.tensor([[aspect_ratio]])
        found = self.vision_model(pixels[None, None], ids, mask).last_hidden_state
        return self.multi_modal_projector(found)[0, 0]


def as_matrices(arrays: dict[str, Floats]) -> Weights:
    return Weights({name: array.reshape(matrix_shape(name, array.shape)) for name, array in arrays.items()})


def pixels(vision: MllamaVision, tiles: int) -> Floats:
    given = np.random.default_rng(tiles).uniform(-2, 2, (4, 3, vision.image_size, vision.image_size))
    given[tiles:] = 0
    return given.astype(np.float32)


def encode(config: LlamaConfig, weights: Weights, given: Floats, aspect_ratio: int) -> Floats:
    module = build_mllama_vision(config, weights.tensors | unread_weights(cross_shapes(config)))
    verify(module)
    inputs = {"pixels": given, "aspect_ratio": [aspect_ratio]}
    (found,) = Interpreter(module, weights.read_rows).run(inputs, "encode_image")
    return np.asarray(found, np.float32)


def cross_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in expected_shapes(config).items() if ".cross." in name}


SHAPES = [
    pytest.param(MLLAMA_VISION, id="tiny"),
    pytest.param(replace(MLLAMA_VISION, taps=(1, 2, 3), output_size=128), id="3 taps"),
    pytest.param(
        replace(MLLAMA_VISION, image_size=42, layers=2, global_layers=1, taps=(1,), output_size=64), id="10 tokens"
    ),
]


@pytest.mark.parametrize("vision", SHAPES)
@pytest.mark.parametrize("aspect_ratio", range(1, 9))
def test_encoder_equals_transformers(vision: MllamaVision, aspect_ratio: int) -> None:
    model = Reference(vision, 64)
    enlarge(model, aspect_ratio)
    weights = as_matrices(named(model.state_dict(), lambda name: NAMES.translated(name, HF, MODEL)))
    given = pixels(vision, int(np.prod(RATIOS[aspect_ratio - 1])))
    with torch.no_grad():
        expected = model(torch.from_numpy(given), aspect_ratio).numpy()
    found = encode(replace(CONFIG, vision=vision), weights, given, aspect_ratio)
    assert relative_error(found, expected) < TOLERANCE


def test_in_bf16_no_further_from_f32_than_transformers() -> None:
    model = Reference(MLLAMA_VISION, 64)
    enlarge(model, 3)
    given = torch.from_numpy(pixels(MLLAMA_VISION, 3)).bfloat16()
    with torch.no_grad():
        theirs = model.bfloat16()(given, 3).float().numpy()
        exact = model.float()(given.float(), 3).numpy()
    weights = as_matrices(named(model.state_dict(), lambda name: NAMES.translated(name, HF, MODEL)))
    ours = encode(replace(CONFIG, dtype="bf16"), weights, given.float().numpy(), 3)
    assert relative_error(ours, exact) < BF16_FACTOR * relative_error(theirs, exact)


@pytest.fixture(scope="module")
def meta() -> Any:
    return load_meta_mllama()


def meta_encoder(meta: Any, vision: MllamaVision, seed: int) -> torch.nn.Module:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = torch.nn.Module()
            self.vision_model.vision_encoder = meta.VisionEncoder(
                max_num_tiles=4,
                image_size=vision.image_size,
                width=vision.hidden_size,
                layers=vision.layers,
                heads=vision.heads,
                n_global_layers=vision.global_layers,
                return_intermediate=list(vision.taps),
            )
            self.vision_model.vision_projection = torch.nn.Linear(vision.output_size, 64)

        def forward(self, given: torch.Tensor, ratio: tuple[int, int]) -> torch.Tensor:
            found = self.vision_model.vision_encoder(given[None, None], torch.tensor([[ratio]]))
            return self.vision_model.vision_projection(found)[0, 0]

    model = Both()
    enlarge(model, seed)
    return model


@pytest.mark.parametrize("aspect_ratio", range(1, 9))
def test_encoder_equals_metas(meta: Any, aspect_ratio: int) -> None:
    """Its tile tables are grids, its taps the inputs of blocks, and block 0 may be one."""
    vision = replace(MLLAMA_VISION, taps=(0, 1, 3), output_size=128)
    model, ratio = meta_encoder(meta, vision, aspect_ratio), RATIOS[aspect_ratio - 1]
    weights = as_matrices(named(model.state_dict(), lambda name: NAMES.translated(name, META, MODEL)))
    given = pixels(vision, int(np.prod(ratio)))
    with torch.no_grad():
        expected = model(torch.from_numpy(given), ratio).numpy()
    found = encode(replace(CONFIG, vision=vision), weights, given, aspect_ratio)
    assert relative_error(found, expected) < TOLERANCE
    shapes = {name: array.shape for name, array in weights.arrays.items()}
    assert shapes == expected_vision_shapes(vision, 64, grids=True)


def test_the_smallest_tile(meta: Any) -> None:
    """One patch and the class token, and three times as much padding."""
    vision = replace(MLLAMA_VISION, layers=1, taps=(0,), output_size=64, image_size=14)
    model = meta_encoder(meta, vision, 0)
    weights = as_matrices(named(model.state_dict(), lambda name: NAMES.translated(name, META, MODEL)))
    given = pixels(vision, 2)
    with torch.no_grad():
        expected = model(torch.from_numpy(given), (2, 1)).numpy()
    assert relative_error(encode(replace(CONFIG, vision=vision), weights, given, 5), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["llama-3.2-11b-vision", "llama-3.2-90b-vision"])
def test_the_released_shapes_build_and_print(name: str) -> None:
    config = preset(name)
    assert isinstance(config.vision, MllamaVision)
    shapes = expected_vision_shapes(config.vision, config.hidden_size)
    with torch.device("meta"):
        state = Reference(config.vision, config.hidden_size).state_dict()
    found = {NAMES.translated(stored, HF, MODEL): tuple(value.shape) for stored, value in state.items()}
    assert {name: matrix_shape(str(name), shape) for name, shape in found.items()} == shapes
    module = build_mllama_vision(config, unread_weights(shapes | cross_shapes(config)))
    verify(module)
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    tokens = {448: 1025, 560: 1601}[config.vision.image_size]
    (output,) = module.graphs["encode_image"].outputs
    assert str(output.type) == f"tensor<4 x {tokens} x {config.hidden_size} x bf16>"
    assert len(module.graphs["project_image"].outputs) == 2 * len(config.cross_layers)


def test_only_image_models_have_an_image_side() -> None:
    config = preset("llama-3.2-11b-vision")
    assert isinstance(config.vision, MllamaVision)
    shapes = expected_vision_shapes(config.vision, config.hidden_size) | expected_shapes(config)
    module = build_image_graphs(config, unread_weights(shapes))
    assert module is not None and list(module.graphs) == ["encode_image", "project_image"]
    unused = [name for name, weight in module.weights.items() if not weight.users]
    assert not unused, "weights of the text model"
    assert build_image_graphs(preset("tiny"), {}) is None
