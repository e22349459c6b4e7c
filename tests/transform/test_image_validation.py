"""Validation of the image pipeline on shrunken encoders: it passes, and wrong passes do not."""

from __future__ import annotations

import pytest
from mutations import Mutation, after

from llamac.errors import LlamacError
from llamac.image_side import compile_encoder, encoder_counts, most_vision_rows, pictures_of, validate_encoder
from llamac.ir.graph import Module
from llamac.models.image_graph import build_image_graphs
from llamac.models.image_shrink import vision_shapes
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.shrink import SyntheticWeights, shrink_config, small_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.models.presets import preset
from llamac.passes.image_pipeline import image_pipeline
from llamac.passes.pipelines import Quantization, parse_quantization
from llamac.transform.base import PassContext
from llamac.transform.image_validation import ImageValidator

SEED = 3
PAGE = 8


def small(name: str, encoding: str = "bf16", grid: bool = False) -> tuple[LlamaConfig, dict[str, str]]:
    """The shrunken model of a preset, and how its weights are stored."""
    config = shrink_config(preset(name), {})
    kinds = ["vision.pre_tile.grid"] if grid else ["vision.pre_tile"]
    shapes = expected_shapes(config) | vision_shapes(config.vision, config.hidden_size, kinds)
    return config, dict.fromkeys(shapes, encoding)


MODELS = {
    "llama4": small("llama-4-scout"),
    "llama4 in f32": small("llama-4-scout", "f32"),
    "mllama": small("llama-3.2-11b-vision"),
    "mllama, tables of places": small("llama-3.2-11b-vision", "bf16", grid=True),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantize", ["keep", "f16", "int4"])
def test_the_pipeline_holds(name: str, quantize: str) -> None:
    config, encodings = MODELS[name]
    tensors = small_tensors(config, encodings)
    weights = SyntheticWeights(tensors, SEED)
    verdicts = validate_encoder(config, tensors, parse_quantization(quantize), "f16", weights.read_rows, SEED, PAGE)
    assert all(v.passed for v in verdicts)
    assert {"plan-memory", "lower-encoder-attention", "fuse-layer-norm"} <= {v.after for v in verdicts}
    assert any(v.against == "memory without reuse" for v in verdicts)
    assert any(v.after == "dtype mode" for v in verdicts) == (quantize != "f16")


def test_a_text_model_has_nothing_to_validate() -> None:
    config, encodings = MODELS["mllama"]
    text = {name: encoding for name, encoding in encodings.items() if not name.startswith("vision.")}
    tensors = small_tensors(config, text)
    weights = SyntheticWeights(tensors, SEED)
    assert validate_encoder(config, tensors, Quantization(), "f16", weights.read_rows, SEED, PAGE) == []
    assert compile_encoder(config, tensors, Quantization(), "f16", PassContext(weights.read_rows)) is None


def _scale_differently(module: Module) -> None:
    for _, op in module.ops():
        if op.opcode == "attend_tokens":
            op.attributes["scale"] = 1.01 * float(str(op.attributes["scale"]))


def _see_all_padding(module: Module) -> None:
    for _, op in module.ops():
        if op.opcode == "order_tokens":
            op.attributes["tokens"] = op.attributes["padded"]


def _start_too_early(module: Module) -> None:
    for _, op in module.ops():
        if op.opcode == "append_tokens":
            op.attributes["layer"] = 0


def _move_a_stride(module: Module) -> None:
    op = next(op for _, op in module.ops() if op.opcode == "rearrange")
    strides = op.attributes["strides"]
    assert isinstance(strides, tuple)
    op.attributes["strides"] = (strides[1], strides[0], *strides[2:])
    shape = op.attributes["shape"]
    assert isinstance(shape, tuple)
    op.attributes["shape"] = (shape[1], shape[0], *shape[2:])


def _overlap(module: Module) -> None:
    """The pages of keys and values over the rows that the queries come from."""
    for _, op in module.ops():
        if op.opcode == "attend_tokens":
            producer = op.operands[0].producer
            assert producer is not None
            op.operands[1].producer.attributes["buffers"] = producer.attributes["buffers"]  # type: ignore[union-attr]


WRONG = [
    ("llama4", "lower-encoder-attention", _scale_differently),
    ("llama4", "fuse-rearrange", _move_a_stride),
    ("llama4", "plan-memory", _overlap),
    ("mllama", "lower-encoder-attention", _see_all_padding),
    ("mllama", "lower-image-cache", _start_too_early),
]


@pytest.mark.parametrize(("model", "name", "harm"), WRONG, ids=[f"{w[1]}: {w[2].__name__}" for w in WRONG])
def test_wrong_passes_are_found(model: str, name: str, harm: Mutation) -> None:
    config, encodings = MODELS[model]
    tensors = small_tensors(config, encodings)
    weights = SyntheticWeights(tensors, SEED)
    steps = image_pipeline(encoder_counts(config), Quantization(), "f16", most_vision_rows(config), PAGE)
    module = build_image_graphs(config, tensors)
    assert module is not None
    with pytest.raises(LlamacError, match=f"LLC0507 {name}"):
        ImageValidator(weights.read_rows, pictures_of(config, SEED)).run(module, after(name, harm)(steps))
