"""Llama 3.2 Vision in Meta's layout: loaded and computed by Meta's own code, and back again by way of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meta_pictures import meta_model, meta_picture_logits
from safetensors.torch import load_file, save_file
from test_meta_images import SMALL, _mllama_folder
from tiny_llama import relative_error, some_ids
from tiny_pictures import VOCABULARY, make_mllama, mllama_logits, picture, prompt_of

from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.vision_config import MllamaVision
from llamac.models.mllama import meta_config
from llamac.models.presets import preset
from llamac.models.sources import open_source
from llamac.runtime.images.model_images import MllamaImages
from llamac.runtime.images.settings import mllama_settings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Checkpoint, Path]:
    """The folder of transformers, its model, the checkpoint, and Meta's folder, whose encoder is the constant one."""
    place = tmp_path_factory.mktemp("mllama")
    model = make_mllama(place / "m")
    agree_on_places(model, place / "m" / "model.safetensors")
    checkpoint = open_source(place / "m")
    assert isinstance(checkpoint.config.vision, MllamaVision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meta_config, "ENCODER", checkpoint.config.vision)
        result = export(place / "m", to="meta", output=place / "out", check=True)
        assert result.checks is not None and [check.name for check in result.checks] == ["config", "weights", "logits"]
        (zeros,) = [entry for entry in result.ledger if entry.where == "vision"]
        assert zeros.kind == "default" and zeros.what.startswith("8 of 16 places")
    return place / "m", model, checkpoint, place / "out"


def agree_on_places(model: Any, path: Path) -> None:
    """Tables of tiles as Meta's models have them: what a tile adds follows from its row and column."""
    stored = load_file(path)
    for name, table in model.named_parameters():
        if "tile" in name and name.endswith("embedding.weight"):
            with torch.no_grad():
                grid = table[1:5].reshape(4, 4, -1).clone()
                for index, (high, wide) in enumerate(SMALL.supported_aspect_ratios, start=1):
                    table[index].view(4, -1)[: high * wide] = grid[:high, :wide].reshape(high * wide, -1)
                    table[index].view(4, -1)[high * wide :] = 0
                table[0] = 0
            (key,) = [key for key in stored if key.split("vision_model.")[-1] == name.split("vision_model.")[-1]]
            stored[key] = table.detach().clone()
    save_file(stored, path, {"format": "pt"})


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    found = torch.load(folder / "consolidated.00.pth", weights_only=True)
    assert isinstance(found, dict)
    return found


def test_metas_own_code_sees_the_same(tiny: tuple[Path, Any, Checkpoint, Path]) -> None:
    """Loaded with nothing missing and nothing unknown; logits of a text and of pictures of three shapes."""
    from llamac.export.interpreted_logits import interpreted_logits

    _, model, checkpoint, folder = tiny
    vision = checkpoint.config.vision
    assert isinstance(vision, MllamaVision)
    theirs = meta_model(json.loads((folder / "params.json").read_text()), vision)
    theirs.load_state_dict(state_of(folder), strict=True)
    ids = some_ids(VOCABULARY, 20)
    with torch.no_grad():
        nothing, seen = torch.zeros(1, 1, 20, 1), torch.ones(1, 1, 20, 1)
        text = theirs(torch.arange(20), torch.tensor([ids]), nothing, seen, None, text_only_inference=True)
    assert relative_error(text[0].numpy(), interpreted_logits(checkpoint, ids)) < 1e-5
    settings = mllama_settings(vision.image_size, vision.tile_tokens, vision.max_tiles)
    images = MllamaImages(settings, vision.image_token, None, vision.supported_aspect_ratios)
    for size in ((28, 28), (100, 40), (30, 90)):
        prompt = prompt_of(images, [256, vision.image_token, 65, 66, 67], [picture(*size, seed=3)])
        found, wanted = meta_picture_logits(theirs, prompt, vision), mllama_logits(model, prompt)
        assert relative_error(found, wanted) < 1e-4, size


def test_names_and_shapes_are_metas(tiny: tuple[Path, Any, Checkpoint, Path]) -> None:
    state = state_of(tiny[3])
    assert tuple(state["text_model.tok_embeddings.weight"].shape) == (VOCABULARY, 64)
    assert tuple(state["text_model.learnable_embedding.weight"].shape) == (8, 64)
    encoder = "vision_model.vision_encoder."
    assert tuple(state[f"{encoder}gated_positional_embedding"].shape) == (4, 4, 5, 32)
    assert tuple(state[f"{encoder}pre_tile_pos_embed.embedding"].shape) == (4, 4, 1, 32)
    params = json.loads((tiny[3] / "params.json").read_text())
    assert params["n_layers"] == 4 and params["vision_num_cross_attention_layers"] == 2
    assert (params["vision_chunk_size"], params["vision_max_num_chunks"]) == (28, 4)


def published(name: str) -> str:
    """The name in published files for transformers' own."""
    name = name.replace("model.language_model.", "language_model.model.").removeprefix("model.")
    return f"language_model.{name}" if name.startswith("lm_head") else name


def test_back_to_hugging_face(
    tiny: tuple[Path, Any, Checkpoint, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor of the folder that transformers wrote, bit for bit."""
    monkeypatch.setattr(meta_config, "ENCODER", tiny[2].config.vision)
    export(tiny[3], to="hf", output=tmp_path / "hf", check=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny[0], tmp_path / "hf"))
    assert {published(name) for name in before} == set(after)
    assert all(after[published(name)].equal(value) for name, value in before.items())


def test_from_metas_folder_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors, bit for bit; by way of Hugging Face all but the places of tiles that no shape has."""
    monkeypatch.setattr(meta_config, "ENCODER", SMALL)
    folder, _ = _mllama_folder(tmp_path / "m", 1)
    before = state_of(folder)
    export(folder, to="meta", output=tmp_path / "straight", check=True)
    straight = state_of(tmp_path / "straight")
    assert set(straight) == set(before) and all(straight[name].equal(value) for name, value in before.items())
    export(folder, to="hf", output=tmp_path / "hf", check=True)
    export(tmp_path / "hf", to="meta", output=tmp_path / "out", check=True)
    after = state_of(tmp_path / "out")
    assert set(after) == set(before)
    for name, value in before.items():
        if value.ndim < 4:
            assert after[name].equal(value), name
            continue
        for row in range(4):
            for column in range(4):
                reached = any(row < high and column < wide for high, wide in SMALL.supported_aspect_ratios)
                wanted = value[row, column] if reached else torch.zeros_like(value[row, column])
                assert after[name][row, column].equal(wanted), (name, row, column)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((3, 0), "what a tile at row 0, column 0 adds differs by the shape of the picture"),
        ((1, 40), "a picture of 1 x 1 tiles adds to tiles that it lacks"),
    ],
)
def test_tables_that_have_no_grid(
    place: tuple[int, int],
    said: str,
    tiny: tuple[Path, Any, Checkpoint, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model tuned in transformers' form, whose shapes went their own ways."""
    monkeypatch.setattr(meta_config, "ENCODER", tiny[2].config.vision)
    folder = tmp_path / "m"
    folder.mkdir()
    for path in tiny[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    (name,) = [name for name in state if name.endswith("pre_tile_positional_embedding.embedding.weight")]
    state[name][place] += 1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(LlamacError, match=rf"LLC0951 vision\.pre_tile: {said}"):
        export(folder, to="meta", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_is_not_metas(tiny: tuple[Path, Any, Checkpoint, Path], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meta_config, "ENCODER", SMALL)
        with pytest.raises(LlamacError, match="LLC0951 vision: its image encoder is not the one of Meta's code"):
            export(tiny[0], to="meta", output=tmp_path / "out")


@pytest.mark.parametrize("name", ["llama-3.2-11b-vision", "llama-3.2-90b-vision"])
def test_published_shapes(name: str) -> None:
    from dataclasses import replace

    from llamac.export.meta_params import meta_params

    config = preset(name)
    params, found = meta_params(config)
    wanted = replace(config, rope_style="interleaved", name="", context_length=found.context_length, dtype=found.dtype)
    assert replace(found, name="") == wanted
    assert params["n_layers"] == {"llama-3.2-11b-vision": 32, "llama-3.2-90b-vision": 80}[name]
    assert np.isclose(params["ffn_dim_multiplier"], 1.3)
