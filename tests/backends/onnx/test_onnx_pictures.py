"""The ONNX graphs of models that see, in onnxruntime, against transformers in fp32."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from emitted_models import Floats
from tiny_llama import relative_error
from tiny_pictures import (
    IDS4,
    MLLAMA_IMAGE,
    RATIOS,
    llama4_logits,
    make_llama4,
    make_mllama,
    mllama_logits,
    picture,
    prompt_of,
    seen_pictures,
)

from llamac.backends.onnx.seeing_session import SeeingSession
from llamac.export.entry import export
from llamac.models.sources import open_source
from llamac.runtime.images.mllama_spans import encoder_input
from llamac.runtime.images.model_images import ModelImages, model_images

TOLERANCE = 1e-5
Seeing = tuple[Any, Path, ModelImages, SeeingSession]
"""transformers' model, the exported folder, what is done with pictures, and a session over the folder."""

PARTS = ("vision_encoder", "embed_tokens", "decoder_model_merged")
CUTS = (0, 3, 9, 12, 13, 14)
"""Where prompts are cut: inside and between pictures, then single tokens."""


def images_of(folder: Path, special: dict[str, int]) -> ModelImages:
    """What the model does with pictures, as an artifact's manifest says it."""
    from dataclasses import asdict

    config = open_source(folder).config
    assert config.vision is not None
    given = {"name": "tiny", "architecture": config.architecture, "config": {"vision": asdict(config.vision)}}
    return model_images({"model": given}, special)


def in_steps(length: int) -> list[tuple[int, int]]:
    return list(pairwise([*(cut for cut in CUTS if cut < length), length]))


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    place = tmp_path_factory.mktemp("llama4")
    model = make_llama4(place / "source")
    export(place / "source", to="onnx", output=place / "out")
    return model, place / "out", images_of(place / "source", IDS4), SeeingSession(place / "out")


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    place = tmp_path_factory.mktemp("mllama")
    model = make_mllama(place / "source")
    export(place / "source", to="onnx", output=place / "out")
    images = images_of(place / "source", {"<|image|>": MLLAMA_IMAGE})
    return model, place / "out", images, SeeingSession(place / "out")


@pytest.mark.parametrize("pictures", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_llama4(pictures: int, llama4: Seeing) -> None:
    """Pictures of several tiles and of one, at once and cut anywhere."""
    model, _, images, session = llama4
    shown = [picture(60, 50, 1), picture(25, 27, 3)][:pictures]
    prompt = prompt_of(images, [65, *[IDS4["<|image|>"], 66, 67] * pictures, *range(70, 84)], shown)
    rows = np.full((len(prompt.ids), 64), np.nan, np.float32)
    for image in prompt.images:
        features = session.encode_tiles(image.picture.tiles.pixels)
        assert image.patches is not None
        places = image.start + np.flatnonzero(image.patches >= 0)
        rows[places] = features
    meant = llama4_logits(model, prompt)
    session.restart()
    assert relative_error(session.step(prompt.ids, rows), meant) < TOLERANCE
    session.restart()
    found = [session.step(prompt.ids[start:stop], rows[start:stop]) for start, stop in in_steps(len(prompt.ids))]
    assert relative_error(np.concatenate(found), meant) < TOLERANCE


def test_the_encoder_of_llama4(llama4: Seeing) -> None:
    import torch

    model, _, _, session = llama4
    pixels = np.random.default_rng(3).standard_normal((3, 3, 28, 28)).astype(np.float32)
    with torch.no_grad():
        seen = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
        meant = model.multi_modal_projector(seen).reshape(-1, 64).numpy()
    assert relative_error(session.encode_tiles(pixels), meant) < TOLERANCE


def test_the_encoder_of_mllama(mllama: Seeing) -> None:
    """Keys and values of all tokens of the tiles that are filled, of two pictures of different shapes."""
    import torch

    model, folder, _, _ = mllama
    pixels, filled = np.zeros((2, 4, 3, 28, 28), np.float32), (2, 3)
    shapes = [RATIOS.index(ratio) + 1 for ratio in ((1, 2), (3, 1))]
    for place, count in enumerate(filled):
        pixels[place, :count] = np.random.default_rng(place).standard_normal((count, 3, 28, 28))
    real = np.arange(4) < np.array(filled)[:, None]
    with torch.no_grad():
        ids, mask = torch.tensor([shapes]), torch.from_numpy(real.astype(np.int64))[None]
        seen = model.model.vision_model(torch.from_numpy(pixels)[None], ids, mask).last_hidden_state
        states = model.model.multi_modal_projector(seen).reshape(1, -1, 64)
        layer = model.model.language_model.layers[4].cross_attn
        keys, values = (part(states).view(1, -1, 2, 16).transpose(1, 2) for part in (layer.k_proj, layer.v_proj))
        keys = layer.k_norm(keys)
    encoder = onnxruntime.InferenceSession(str(folder / "vision_encoder.onnx"))
    given = {"pixel_values": pixels[None], "aspect_ratio_ids": np.array([shapes], np.int64)}
    found = encoder.run([f"cross_attn_key_values.4.{side}" for side in ("key", "value")], given)
    kept = np.repeat(real.reshape(-1), 5)
    for mine, theirs in zip(found, (keys, values), strict=True):
        assert mine.shape == (1, 2, 40, 16)
        assert relative_error(mine[:, :, kept], theirs.numpy()[:, :, kept]) < TOLERANCE


def test_a_batch_of_two_with_pictures_of_their_own(mllama: Seeing) -> None:
    """What one sequence sees does not depend on the other."""
    _, folder, _, _ = mllama
    encoder = onnxruntime.InferenceSession(str(folder / "vision_encoder.onnx"))
    pixels = np.random.default_rng(0).standard_normal((2, 1, 4, 3, 28, 28)).astype(np.float32)
    shapes = np.array([[6], [4]], np.int64)
    both = encoder.run(None, {"pixel_values": pixels, "aspect_ratio_ids": shapes})
    alone = [
        encoder.run(None, {"pixel_values": pixels[n : n + 1], "aspect_ratio_ids": shapes[n : n + 1]}) for n in (0, 1)
    ]
    for together, first, second in zip(both, *alone, strict=True):
        assert relative_error(together, np.concatenate([first, second])) < TOLERANCE


@pytest.mark.parametrize("pictures", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 3])
def test_mllama(pictures: int, mllama: Seeing) -> None:
    """Pictures of one tile and of several; positions before, between and behind them; none at all."""
    model, _, images, session = mllama
    shown = [picture(20, 100, 2), picture(25, 27, 3), picture(60, 50, 1)][:pictures]
    text = [65, 66, *[MLLAMA_IMAGE] * min(pictures, 2), *range(70, 80), *[MLLAMA_IMAGE] * (pictures > 2), 81, 82]
    prompt = prompt_of(images, text, shown)
    seen, meant = seen_tiles(prompt), mllama_logits(model, prompt)
    for cuts in ([(0, len(text))], in_steps(len(text))):
        session.restart()
        if shown:
            pixels = np.stack([encoder_input(image.picture.tiles, 4) for image in prompt.images])
            session.show_pictures(pixels, [image.aspect_ratio for image in prompt.images])
        found = [session.step(text[start:stop], seen=seen[start:stop]) for start, stop in cuts]
        assert relative_error(np.concatenate(found), meant) < TOLERANCE


def seen_tiles(prompt: Any) -> Floats:
    """transformers' cross_attention_mask: [tokens, pictures, tiles]."""
    tiles = np.array([image.picture.tiles.tiles for image in prompt.images], np.int64)
    return np.asarray(seen_pictures(prompt)[:, :, None] & (np.arange(4) < tiles[:, None])[None])


@pytest.mark.parametrize("kind", ["llama4", "mllama"])
def test_files_and_names(kind: str, request: pytest.FixtureRequest) -> None:
    _, folder, _, _ = request.getfixturevalue(kind)
    files = {path.name for path in folder.iterdir()}
    assert files >= {f"{part}.onnx{end}" for part in PARTS for end in ("", "_data")}
    assert not files & {"model.onnx", "model.onnx.data"}
    assert "preprocessor_config.json" in files
    named: dict[str, dict[str, list[str | int]]] = {}
    for part in PARTS:
        model = onnx.load(folder / f"{part}.onnx", load_external_data=False)
        onnx.checker.check_model(str(folder / f"{part}.onnx"), full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
        for value in (*model.graph.input, *model.graph.output):
            named.setdefault(part, {})[value.name] = [
                d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim
            ]
    assert named["embed_tokens"] == {"input_ids": ["batch", "tokens"], "inputs_embeds": ["batch", "tokens", 64]}
    decoder, encoder = named["decoder_model_merged"], named["vision_encoder"]
    assert {"inputs_embeds", "attention_mask", "position_ids", "past_key_values.0.key", "logits"} <= set(decoder)
    if kind == "llama4":
        assert encoder == {"pixel_values": ["tiles", 3, 28, 28], "image_features": ["tiles", 4, 64]}
        return
    assert decoder["cross_attention_mask"] == ["batch", "tokens", "pictures", "tiles"]
    shared = {f"cross_attn_key_values.{layer}.{side}" for layer in (1, 4) for side in ("key", "value")}
    assert shared <= set(decoder) and shared | {"pixel_values", "aspect_ratio_ids"} == set(encoder)
    assert encoder["cross_attn_key_values.4.value"] == ["batch", 2, "vision_tokens", 16]
