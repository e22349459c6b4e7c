"""Llama 4's image encoder and the merge of its output, interpreted, against transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_vision import LLAMA4_VISION, Weights, enlarge, named, relative_error, tiny_config, unread_weights
from transformers import Llama4Config, Llama4TextConfig, Llama4VisionConfig
from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionModel

from llamac.errors import LlamacError
from llamac.ir.builder import Builder, new_graph
from llamac.ir.dims import symbol
from llamac.ir.dtypes import F32
from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.types import tensor
from llamac.ir.verifier import verify
from llamac.models.image_graph import build_image_graphs
from llamac.models.llama.vision_config import Llama4Vision
from llamac.models.llama.weights import HF, META
from llamac.models.llama4.merge import image_arguments, merge_images
from llamac.models.llama4.vision_graph import build_llama4_vision
from llamac.models.llama4.vision_weights import NAMES, expected_vision_shapes
from llamac.models.name_table import MODEL
from llamac.models.presets import preset

TOLERANCE = 1e-5
BF16_FACTOR = 1.5
"""How much further from f32 another order of sums may lead than the reference's own."""


class Reference(torch.nn.Module):
    """Tower, adapter and projector under the names that checkpoints use."""

    def __init__(self, vision: Llama4Vision, hidden_size: int) -> None:
        super().__init__()
        config = Llama4VisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            pixel_shuffle_ratio=vision.pixel_shuffle_ratio,
            projector_input_dim=vision.adapter_hidden,
            projector_output_dim=vision.adapter_output,
            vision_output_dim=vision.adapter_output,
            rope_parameters={"rope_type": "default", "rope_theta": vision.rope_theta},
            attn_implementation="eager",
        )
        text = Llama4TextConfig(hidden_size=hidden_size, num_hidden_layers=1, num_local_experts=1)
        self.vision_model = Llama4VisionModel(config)
        self.multi_modal_projector = Llama4MultiModalProjector(Llama4Config(vision_config=config, text_config=text))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.multi_modal_projector(self.vision_model(pixels).last_hidden_state)


def reference(vision: Llama4Vision, seed: int = 0) -> tuple[Reference, Weights]:
    model = Reference(vision, 64)
    enlarge(model, seed)
    return model, Weights(named(model.state_dict(), lambda name: NAMES.translated(name, HF, MODEL)))


def pixels(vision: Llama4Vision, tiles: int) -> np.ndarray:
    size = vision.image_size
    return np.random.default_rng(tiles).uniform(-1, 1, (tiles, 3, size, size)).astype(np.float32)


SHAPES = [
    pytest.param(LLAMA4_VISION, id="tiny"),
    pytest.param(
        replace(LLAMA4_VISION, hidden_size=24, intermediate_size=96, heads=3, rope_theta=100.0), id="heads of 8"
    ),
    pytest.param(
        replace(LLAMA4_VISION, image_size=84, layers=1, adapter_hidden=40, adapter_output=40), id="6 x 6 patches"
    ),
]
"""transformers ties intermediate_size to hidden_size / ratio^2, which its adapter reads, and the adapter's widths."""


@pytest.mark.parametrize("vision", SHAPES)
@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_encoder_equals_transformers(vision: Llama4Vision, tiles: int) -> None:
    model, weights = reference(vision)
    given = pixels(vision, tiles)
    module = build_llama4_vision(tiny_config("llama4", vision), weights.tensors)
    verify(module)
    (found,) = Interpreter(module, weights.read_rows).run({"pixels": given}, "encode_image")
    with torch.no_grad():
        expected = model(torch.from_numpy(given)).numpy()
    assert found.shape == (tiles, vision.tile_tokens, 64)
    assert relative_error(found, expected) < TOLERANCE


def test_in_bf16_no_further_from_f32_than_transformers() -> None:
    model, _ = reference(LLAMA4_VISION)
    given = torch.from_numpy(pixels(LLAMA4_VISION, 2)).bfloat16()
    with torch.no_grad():
        theirs = model.bfloat16()(given).float().numpy()
        exact = model.float()(given.float()).numpy()
    weights = Weights(named(model.state_dict(), lambda name: NAMES.translated(name, HF, MODEL)))
    module = build_llama4_vision(tiny_config("llama4", LLAMA4_VISION, dtype="bf16"), weights.tensors)
    inputs = {"pixels": given.float().numpy()}
    (ours,) = Interpreter(module, weights.read_rows).run(inputs, "encode_image")
    assert relative_error(ours, exact) < BF16_FACTOR * relative_error(theirs, exact)
    (unrounded,) = Interpreter(module, weights.read_rows, exact=True).run(inputs, "encode_image")
    assert relative_error(unrounded, exact) < TOLERANCE


def test_tiles_do_not_see_one_another() -> None:
    _, weights = reference(LLAMA4_VISION)
    run = Interpreter(build_llama4_vision(tiny_config("llama4", LLAMA4_VISION), weights.tensors), weights.read_rows)
    given = pixels(LLAMA4_VISION, 3)
    (together,) = run.run({"pixels": given}, "encode_image")
    alone = [run.run({"pixels": given[n : n + 1]}, "encode_image")[0] for n in range(3)]
    assert relative_error(np.concatenate(alone), together) < 1e-6


def test_weights_have_the_shapes_that_are_expected() -> None:
    _, weights = reference(LLAMA4_VISION)
    expected = expected_vision_shapes(LLAMA4_VISION, 64)
    assert {name: array.shape for name, array in weights.arrays.items()} == expected
    for name in expected:
        meta = NAMES.translated(name, MODEL, META)
        assert meta is not None and NAMES.translated(meta, META, MODEL) == name
    assert NAMES.translated("vision_model.model.layers.01.mlp.fc1.weight", HF, MODEL) is None


def test_the_released_shape_builds_and_prints() -> None:
    config = preset("llama-4-scout")
    assert isinstance(config.vision, Llama4Vision)
    shapes = expected_vision_shapes(config.vision, config.hidden_size)
    with torch.device("meta"):
        state = Reference(config.vision, config.hidden_size).state_dict()
    assert {NAMES.translated(name, HF, MODEL): tuple(value.shape) for name, value in state.items()} == shapes
    module = build_image_graphs(config, unread_weights(shapes))
    assert module is not None
    verify(module)
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    assert str(module.graphs["encode_image"].outputs[0].type) == "tensor<N x 144 x 5120 x bf16>"


def test_shapes_that_no_tower_has() -> None:
    for changes in ({"pixel_shuffle_ratio": 0.4}, {"image_size": 70}, {"hidden_size": 36}):
        with pytest.raises(LlamacError, match="LLC0304 vision"):
            build_llama4_vision(tiny_config("llama4", replace(LLAMA4_VISION, **changes)), {})


def test_missing_weights_are_named() -> None:
    with pytest.raises(LlamacError, match=r"LLC0205 vision\.patch"):
        build_llama4_vision(tiny_config("llama4", LLAMA4_VISION), {})


@pytest.mark.parametrize("rows", [[-1, 2, 0, -1, 1], [-1] * 5, [0, 1, 2, 0, 1]], ids=str)
def test_merge_replaces_the_positions_of_patches(rows: list[int]) -> None:
    config = tiny_config("llama4", LLAMA4_VISION)
    module = Module("merge", "captured")
    tokens = symbol("T")
    graph = new_graph(module, "step", [("hidden", tensor(tokens, 64, F32)), *image_arguments(config, tokens)])
    b = Builder(module, graph)
    graph.outputs = [merge_images(b, *graph.arguments)]
    verify(module)
    random = np.random.default_rng(0)
    hidden, images = (random.standard_normal((n, 64)).astype(np.float32) for n in (5, 3))
    (found,) = Interpreter(module).run({"hidden": hidden, "image_rows": rows, "image_embeddings": images})
    expected = torch.from_numpy(hidden.copy())
    at = torch.tensor(rows) >= 0
    if sorted(row for row in rows if row >= 0) == [row for row in rows if row >= 0]:  # in order, as transformers fills
        source = torch.from_numpy(images[[row for row in rows if row >= 0]])
        expected = expected.masked_scatter(at[:, None].expand(-1, 64), source)
        assert (found == expected.numpy()).all()
    assert all((found[t] == (hidden[t] if row < 0 else images[row])).all() for t, row in enumerate(rows))
