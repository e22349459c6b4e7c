"""Image encoders compiled to C: against transformers, and bit for bit the same on any number of threads.

The cache of vision tokens is compared with what transformers' features become in the interpreter's projection.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

import test_vision_llama4 as llama4
import test_vision_mllama as mllama
import torch
from tiny_llama4 import Tiny4, checkpoint_of, make_model, weights_of
from tiny_vision import LLAMA4_VISION, MLLAMA_VISION, RATIOS, Floats, enlarge, named, relative_error, tiny_config

import llamac
from llamac.driver import compile
from llamac.errors import LlamacError
from llamac.ir.interpreter import Interpreter
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.vision_config import Llama4Vision
from llamac.models.llama.weights import HF, META, expected_shapes
from llamac.models.mllama.vision_graph import build_mllama_vision
from llamac.models.name_table import MODEL
from llamac.runtime.device_cpu import CpuDevice

TOLERANCE = 1e-5
FIRST = 250
"""Where the picture begins in the cache of vision tokens: so that it reaches into the next page."""


def compiled(checkpoint: Checkpoint, folder: Path, quantize: str = "f32") -> Path:
    path = folder / f"{quantize}.llamac"
    compile(checkpoint, output=path, quantize=quantize, tokenizer=False, validate=False)
    return path


def device(path: Path, threads: int) -> CpuDevice:
    return llamac.load(path, threads=threads, images=30)._device


@pytest.fixture(scope="module")
def text() -> tuple[Any, Tiny4]:
    shape = Tiny4(layers=2)
    return make_model(shape), shape


def llama4_checkpoint(text: tuple[Any, Tiny4], vision: Llama4Vision, dtype: str = "f32") -> tuple[Any, Checkpoint]:
    model, shape = text
    config = replace(shape.config(), vision=vision, dtype=dtype)
    reference, weights = llama4.reference(vision)
    return reference, checkpoint_of({**weights_of(model, config), **weights.arrays}, config)


SHAPES = [
    llama4.SHAPES[1],
    pytest.param(replace(LLAMA4_VISION, image_size=84, adapter_hidden=40, adapter_output=40), id="37 tokens"),
]


@pytest.mark.parametrize("vision", SHAPES)
def test_llama4_tiles_equal_transformers(text: tuple[Any, Tiny4], vision: Llama4Vision, tmp_path: Path) -> None:
    reference, checkpoint = llama4_checkpoint(text, vision)
    path = compiled(checkpoint, tmp_path)
    devices = [device(path, threads) for threads in (1, 2, 3)]
    for tiles in range(1, 6):
        pixels = llama4.pixels(vision, tiles)
        with torch.no_grad():
            expected = reference(torch.from_numpy(pixels)).numpy().reshape(-1, 64)
        found = [d.encode_image(pixels) for d in devices]
        assert found[0] is not None and relative_error(found[0], expected) < TOLERANCE
        assert all(f is not None and f.tobytes() == found[0].tobytes() for f in found)


def test_tiles_by_themselves_have_the_same_bits(text: tuple[Any, Tiny4], tmp_path: Path) -> None:
    _, checkpoint = llama4_checkpoint(text, LLAMA4_VISION)
    run = device(compiled(checkpoint, tmp_path), 2)
    pixels = llama4.pixels(LLAMA4_VISION, 3)
    together = run.encode_image(pixels)
    alone = [run.encode_image(pixels[n : n + 1]) for n in range(3)]
    assert together is not None and together.tobytes() == b"".join(a.tobytes() for a in alone if a is not None)


@pytest.mark.parametrize("quantize", ["keep", "f16", "int4"])
def test_matrices_follow_float_schemes_and_stay_with_others(
    text: tuple[Any, Tiny4], quantize: str, tmp_path: Path
) -> None:
    reference, checkpoint = llama4_checkpoint(text, LLAMA4_VISION, "bf16")
    path = compiled(checkpoint, tmp_path, quantize)
    model = llamac.load(path)
    stored = {t["format"] for t in model.manifest["weights"][0]["tensors"] if t["name"].startswith("vision.layers")}
    assert stored == {"f16" if quantize == "f16" else "bf16x2", "f32"}  # f32 are biases and norms
    kept = [entry for entry in model.manifest["ledger"] if entry["where"] == "vision"]
    assert [entry["kind"] for entry in kept] == (["kept"] if quantize == "int4" else [])
    pixels = llama4.pixels(LLAMA4_VISION, 1)
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels)).numpy().reshape(-1, 64)
    found = model._device.encode_image(pixels)
    assert found is not None and 1e-5 < relative_error(found, expected) < 0.05


def mllama_checkpoint(style: int) -> tuple[Any, Checkpoint]:
    """Transformers' encoder, and its weights in the form of a style's tables, beside random text weights."""
    config = tiny_config("mllama", MLLAMA_VISION, cross_layers=(1, 4))
    reference = mllama.Reference(MLLAMA_VISION, 64)
    enlarge(reference, 1)
    names = named(reference.state_dict(), lambda name: mllama.NAMES.translated(name, HF, MODEL))
    arrays = mllama.as_matrices(names).arrays
    random = np.random.default_rng(0)
    for name, shape in expected_shapes(config).items():
        arrays[name] = (random.standard_normal(shape) * 0.2 + (len(shape) == 1)).astype(np.float32)
    if style == META:
        for name in ("vision.pre_tile", "vision.tile_position", "vision.post_tile"):
            arrays[f"{name}.grid"] = arrays.pop(name)[:1].reshape(4, -1).repeat(4, axis=0)
    return reference, checkpoint_of(arrays, config)


def cross_cache(run: CpuDevice, count: int) -> list[Floats]:
    """Keys and values [kv heads, tokens, head_dim] of every layer, of `count` tokens that lie in pages 1 and 0."""
    place = next(i for i, cache in enumerate(run.plan.caches) if cache.cross)
    layers, heads, width = len(run.plan.caches[place].layers), 2, 16
    memory = run._buffers[1 + place].view(np.float32).reshape(-1, layers, heads, 2, width * 256)
    found = []
    for layer in range(layers):
        panels = memory[:, layer, :, 0].reshape(-1, heads, 16, width, 16).swapaxes(3, 4)
        keys = np.concatenate([panels[p].reshape(heads, 256, width) for p in (1, 0)], 1)
        values = np.concatenate([memory[p, layer, :, 1].reshape(heads, 256, width) for p in (1, 0)], 1)
        found += [keys[:, FIRST : FIRST + count], values[:, FIRST : FIRST + count]]
    return found


PAGES = np.array([1, 0], np.int32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint, Path]:
    reference, checkpoint = mllama_checkpoint(HF)
    return reference, checkpoint, compiled(checkpoint, tmp_path_factory.mktemp("mllama"))


@pytest.mark.parametrize("shape", range(1, 9))
def test_mllama_pictures_fill_the_cache(pictures: tuple[Any, Checkpoint, Path], shape: int) -> None:
    reference, checkpoint, path = pictures
    tiles = int(np.prod(RATIOS[shape - 1]))
    pixels, count = mllama.pixels(MLLAMA_VISION, tiles), tiles * MLLAMA_VISION.tile_tokens
    with torch.no_grad():
        features = reference(torch.from_numpy(pixels), shape).numpy().reshape(-1, 64)[:count]
    module = build_mllama_vision(checkpoint.config, checkpoint.tensors)
    expected = Interpreter(module, checkpoint.read_rows).run({"tokens": features}, "project_image")
    memories = []
    for threads in (1, 2):
        run = device(path, threads)
        assert run.encode_image(pixels[:tiles], shape, PAGES, FIRST) is None
        found = cross_cache(run, count)
        assert all(relative_error(a, b) < TOLERANCE for a, b in zip(found, expected, strict=True))
        memories.append(b"".join(part.tobytes() for part in found))
    assert memories[0] == memories[1]


def test_mllama_with_tables_of_grid_places(tmp_path: Path) -> None:
    _, checkpoint = mllama_checkpoint(META)
    module = build_mllama_vision(checkpoint.config, checkpoint.tensors)
    interpreter = Interpreter(module, checkpoint.read_rows)
    run = device(compiled(checkpoint, tmp_path), 2)
    for shape, tiles in ((3, 3), (6, 4)):
        pixels, count = mllama.pixels(MLLAMA_VISION, tiles), tiles * MLLAMA_VISION.tile_tokens
        inputs = {"pixels": pixels, "aspect_ratio": np.array([shape], np.int32)}
        (features,) = interpreter.run(inputs, "encode_image")
        expected = interpreter.run({"tokens": features.reshape(-1, 64)[:count]}, "project_image")
        run.encode_image(pixels[:tiles], shape, PAGES, FIRST)
        assert all(relative_error(a, b) < TOLERANCE for a, b in zip(cross_cache(run, count), expected, strict=True))


@pytest.mark.parametrize(
    ("shape", "tiles", "pages", "first", "reason"),
    [
        (0, 1, [1, 0], 0, "status 11"),
        (9, 1, [1, 0], 0, "status 11"),
        (2, 1, [1, 0], 0, "status 11"),
        (1, 1, [1], 255, "status 2"),
        (1, 1, [-1], 0, "status 2"),
        (1, 1, [10**6], 0, "status 2"),
        (1, 1, [1], 2**31 - 1, "status 2"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(
    pictures: tuple[Any, Checkpoint, Path], shape: int, tiles: int, pages: list[int], first: int, reason: str
) -> None:
    run = device(pictures[2], 1)
    pixels = mllama.pixels(MLLAMA_VISION, tiles)[:tiles]
    with pytest.raises(LlamacError, match=f"LLC0806.*{reason}"):
        run.encode_image(pixels, shape, np.array(pages, np.int32), first)


def test_a_model_without_an_encoder_says_so(text: tuple[Any, Tiny4], tmp_path: Path) -> None:
    model, shape = text
    run = device(compiled(checkpoint_of(weights_of(model, shape.config()), shape.config()), tmp_path), 1)
    with pytest.raises(LlamacError, match="LLC0838"):
        run.encode_image(np.zeros((1, 3, 56, 56), np.float32))


def test_pixels_of_another_size_are_a_mistake(text: tuple[Any, Tiny4], tmp_path: Path) -> None:
    run = device(compiled(llama4_checkpoint(text, LLAMA4_VISION)[1], tmp_path), 1)
    with pytest.raises(ValueError, match="tiles of"):
        run.encode_image(np.zeros((1, 3, 28, 28), np.float32))
    with pytest.raises(TypeError):
        run.encode_image(np.zeros((1, 3, 56, 56)))


def test_diverge_makes_the_same_code_from_the_ir(text: tuple[Any, Tiny4], tmp_path: Path) -> None:
    """Both graphs are in the file, and the weights that the two of them read."""
    from llamac.artifact.read import Artifact
    from llamac.traced_build import record_artifact

    path = compiled(llama4_checkpoint(text, LLAMA4_VISION)[1], tmp_path)
    artifact = Artifact.open(path)
    try:
        recording = record_artifact(artifact, [3, 1, 4], tmp_path)
    finally:
        artifact.close()
    assert recording.faithful and "this llamac generates the same C from its IR as it carries" in recording.notes
