"""Meta's checkpoints with image encoders: every weight of both generations, from one rank or several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_meta import PARAMS, VOCABULARY, State, llama4, published_llama4, sharded, write_meta

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.vision_config import Llama4Vision, MllamaVision
from llamac.models.llama.weights import META, expected_shapes
from llamac.models.llama4 import vision_weights as llama4_vision
from llamac.models.mllama import meta_config, weights
from llamac.models.mllama.vision_weights import expected_vision_shapes
from llamac.models.name_table import MODEL
from llamac.models.sources import open_source

IMAGES4 = PARAMS | {
    "vocab_size": VOCABULARY,
    "n_layers": 1,
    "ffn_exp": 4.0,
    "nope_layer_interval": 4,
    "vision_args": {
        "image_size": {"height": 56, "width": 56},
        "patch_size": {"height": 14, "width": 14},
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_ratio": 4.0,
        "output_dim": 48,
        "pixel_shuffle_ratio": 0.5,
    },
}
IMAGES3 = PARAMS | {
    "vocab_size": VOCABULARY,
    "n_layers": 4,
    "vision_chunk_size": 28,
    "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": 2,
}
SMALL = replace(
    meta_config.ENCODER, hidden_size=32, intermediate_size=128, layers=3, global_layers=2, heads=4, taps=(1,),
    output_size=64, image_token=VOCABULARY,
)  # fmt: skip


def values(checkpoint: Checkpoint, name: str) -> Any:
    tensor = checkpoint.tensors[name]
    return checkpoint.read_rows(name, 0, tensor.rows).view("<f4").reshape(tensor.shape)


def random_tensor(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_llama4(ranks: int, tmp_path: Path) -> None:
    state = published_llama4(llama4({key: value for key, value in IMAGES4.items() if key != "vision_args"}))
    vision = Llama4Vision(32, 128, 2, 2, 56, 14, 3, 1e4, 1e-5, 0.5, 48, 48, 200092, 200080, 200081)
    expected: State = {}
    for name, shape in llama4_vision.expected_vision_shapes(vision, 64).items():
        stored = llama4_vision.NAMES.translated(name, MODEL, META)
        assert stored is not None
        expected[name] = state[stored] = random_tensor(shape)
    checkpoint = open_source(write_meta(tmp_path / "m", sharded(state, ranks, IMAGES4), IMAGES4))
    assert checkpoint.config.vision == vision
    for name, tensor in expected.items():
        assert np.array_equal(values(checkpoint, name), tensor.numpy()), name


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_llama3_vision(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_config, "ENCODER", SMALL)
    checkpoint_config = _mllama_folder(tmp_path / "m", ranks)
    folder, expected = checkpoint_config
    checkpoint = open_source(folder)
    config = checkpoint.config
    assert config.architecture == "mllama" and config.cross_layers == (1, 4) and config.layers == 6
    assert isinstance(config.vision, MllamaVision) and config.vision.image_size == 28
    assert config.rope_style == "interleaved" and config.embedding_rows == VOCABULARY + 8
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert np.array_equal(values(checkpoint, name), tensor.numpy()), name


def _mllama_folder(folder: Path, ranks: int) -> tuple[Path, State]:
    """A folder, and its weights by model-level name."""
    from llamac.models.llama.meta_config import config_from_meta

    config, _ = config_from_meta(IMAGES3, VOCABULARY, "f32")
    assert isinstance(config.vision, MllamaVision)
    shapes = {**expected_shapes(config), **expected_vision_shapes(config.vision, config.hidden_size, grids=True)}
    expected, state = {name: random_tensor(shape) for name, shape in shapes.items()}, {}
    for name, value in expected.items():
        stored = weights.stored_name(name, META, config)
        assert stored is not None, name
        if name.endswith(".grid"):
            positions = 1 if "tile_pos_embed" in stored else config.vision.tile_tokens
            value = value.reshape(4, 4, positions, -1)
        state[stored] = value
    embed = state["text_model.tok_embeddings.weight"]
    state["text_model.tok_embeddings.weight"], state[weights.LEARNED_ROWS] = embed[:VOCABULARY], embed[VOCABULARY:]
    return write_meta(folder, sharded(state, ranks, IMAGES3), IMAGES3), expected


def test_published_shapes() -> None:
    """11B and 90B: HF's cross_attention_layers follow from Meta's schedule."""
    from llamac.models.llama.meta_config import config_from_meta

    for layers, added, cross in ((32, 8, range(3, 40, 5)), (80, 20, range(3, 100, 5))):
        params = PARAMS | {"n_layers": layers, "vision_num_cross_attention_layers": added, "vision_chunk_size": 560}
        config, _ = config_from_meta(params, 128256, "bf16")
        assert config.layers == layers + added and config.cross_layers == tuple(cross)
        assert isinstance(config.vision, MllamaVision) and config.vision.tile_tokens == 1601


@pytest.mark.parametrize(
    "changes",
    [{"vision_chunk_size": 30}, {"vision_max_num_chunks": 5}, {"vision_num_cross_attention_layers": 5}],
    ids=str,
)
def test_params_that_cannot_be(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_config, "ENCODER", SMALL)
    folder, _ = _mllama_folder(tmp_path / "m", 1)
    write_meta(folder, [], IMAGES3 | changes)
    with pytest.raises(LlamacError) as caught:
        open_source(folder)
    assert caught.value.code == "LLC0304"


def test_an_encoder_that_lost_a_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_config, "ENCODER", replace(SMALL, layers=4))
    folder, _ = _mllama_folder(tmp_path / "m", 1)
    monkeypatch.setattr(meta_config, "ENCODER", SMALL)
    with pytest.raises(LlamacError, match="LLC0207"):
        open_source(folder)
    monkeypatch.setattr(meta_config, "ENCODER", replace(SMALL, layers=5))
    with pytest.raises(LlamacError, match=r"LLC0206 vision\.layers\.4"):
        open_source(folder)
