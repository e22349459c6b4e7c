"""Llama 3.2 Vision's text model, interpreted, against transformers (its leak mended) and Meta's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meta_mllama import load_meta_mllama
from safetensors.torch import load_file, save_file
from tiny_vision import MLLAMA_VISION, Floats, Weights, enlarge, named, relative_error, tiny_config
from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaTextConfig
from transformers.models.mllama import modeling_mllama

from llamac.errors import LlamacError
from llamac.ir.interpreter import Interpreter
from llamac.ir.verifier import verify
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.vision_config import MllamaVision
from llamac.models.llama.weights import HF, META, expected_shapes
from llamac.models.mllama.graph import build_mllama
from llamac.models.mllama.vision_graph import build_mllama_vision
from llamac.models.mllama.vision_weights import expected_vision_shapes, matrix_shape
from llamac.models.mllama.weights import model_name, stored_name
from llamac.models.sources import open_source
from llamac.runtime.images.mllama_spans import visible_tokens

TOLERANCE = 1e-5
Source = Weights | Checkpoint
CONFIG = tiny_config("mllama", MLLAMA_VISION, cross_layers=(1, 4))
IMAGE = MLLAMA_VISION.image_token
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def hf_config() -> MllamaConfig:
    from test_vision_mllama import hf_vision_config

    text = MllamaTextConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        cross_attention_layers=[1, 4],
        rope_parameters=ROPE,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return MllamaConfig(
        vision_config=hf_vision_config(MLLAMA_VISION).to_dict(), text_config=text.to_dict(), image_token_index=IMAGE
    )


def mended(attention: Any) -> Any:
    """A cross-attention layer's attention whose output is nothing in the rows that see nothing.

    transformers 5.23 masks the MLP of those rows and forgets the attention (issue 39379).
    """

    def forward(self: Any, hidden_states: Any, attention_mask: Any = None, **others: Any) -> Any:
        output, weights = attention(self, hidden_states, attention_mask=attention_mask, **others)
        return output * self.sees_something, weights

    return forward


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> MllamaForConditionalGeneration:
    kind = modeling_mllama.MllamaTextCrossAttention
    monkeypatch.setattr(kind, "forward", mended(kind.forward))
    monkeypatch.setattr(kind, "sees_something", 1.0, raising=False)
    made = MllamaForConditionalGeneration._from_config(hf_config(), attn_implementation="eager")
    enlarge(made, 5)
    return made


def hf_weights(model: torch.nn.Module) -> Weights:
    arrays = named(model.state_dict(), lambda name: model_name(name, HF, CONFIG))
    return Weights({name: array.reshape(matrix_shape(name, array.shape)) for name, array in arrays.items()})


def picture(tiles: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    given = random.uniform(-2, 2, (4, 3, 28, 28))
    given[tiles:] = 0
    return given.astype(np.float32)


RATIO_TILES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 2, 6: 4}
PROMPTS: list[tuple[list[int], list[int]]] = [
    ([1, IMAGE, 17, 18, 19], [2]),
    ([IMAGE, 17, 18], [6]),
    ([1, 5, 9, IMAGE, 17, 18, IMAGE, 3, 4], [1, 3]),
    ([1, IMAGE, IMAGE, 17, 18, IMAGE, 7, 8, 9], [2, 5, 4]),
]
"""Token ids, and the aspect ratio of each picture: rows before the first picture, of one, of a group."""


def hf_logits(model: Any, ids: list[int], ratios: list[int], pictures: list[Floats]) -> Floats:
    tiles = [RATIO_TILES[ratio] for ratio in ratios]
    start, stop = visible_tokens(ids, IMAGE, [1] * len(ratios))
    seen = (np.arange(len(ratios)) >= start[:, None]) & (np.arange(len(ratios)) < stop[:, None])
    real = np.arange(4) < np.array(tiles)[:, None]
    mask = torch.from_numpy((seen[:, :, None] & real[None]).astype(np.int64))[None]
    rows = torch.from_numpy(seen.any(axis=1).astype(np.float32))[None, :, None]
    for layer in model.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            layer.cross_attn.sees_something = rows
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.from_numpy(np.stack(pictures))[None],
            aspect_ratio_ids=torch.tensor([ratios]),
            aspect_ratio_mask=torch.from_numpy(real.astype(np.int64))[None],
            cross_attention_mask=mask,
        )
    return np.asarray(found.logits[0].float().numpy())


def cross_states(weights: Source, ratios: list[int], pictures: list[Floats]) -> tuple[dict[str, Floats], list[int]]:
    """What the text model is given of the pictures: cross_k.i and cross_v.i of the filled tiles; tokens of each."""
    image_side = Interpreter(build_mllama_vision(CONFIG, weights.tensors), weights.read_rows)
    tokens = []
    for ratio, given in zip(ratios, pictures, strict=True):
        (found,) = image_side.run({"pixels": given, "aspect_ratio": [ratio]}, "encode_image")
        tokens.append(found[: RATIO_TILES[ratio]].reshape(-1, CONFIG.hidden_size))
    states = image_side.run({"tokens": np.concatenate(tokens)}, "project_image")
    names = [f"cross_{part}.{layer}" for layer in CONFIG.cross_layers for part in "kv"]
    return dict(zip(names, states, strict=True)), [len(rows) for rows in tokens]


def text_logits(
    weights: Source, ids: list[int], states: dict[str, Floats], sizes: list[int], cuts: list[int]
) -> Floats:
    """Logits of every row, the ids given in pieces that end at `cuts`."""
    module = build_mllama(CONFIG, weights.tensors)
    verify(module)
    interpreter = Interpreter(module, weights.read_rows)
    own = [layer for layer in range(CONFIG.layers) if layer not in CONFIG.cross_layers]
    past: list[Any] = [np.zeros((CONFIG.kv_heads, 0, CONFIG.head_dim), np.float32)] * (2 * len(own))
    start, stop = visible_tokens(ids, IMAGE, sizes)
    rows = []
    for low, high in zip([0, *cuts[:-1]], cuts, strict=True):
        inputs: dict[str, Any] = {"ids": ids[low:high], "positions": np.arange(low, high), **states}
        inputs |= {"vision_start": start[low:high], "vision_stop": stop[low:high]}
        for n, layer in enumerate(own):
            inputs[f"past_k.{layer}"], inputs[f"past_v.{layer}"] = past[2 * n : 2 * n + 2]
        logits, *past = interpreter.run(inputs)
        rows.append(logits)
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize(("ids", "ratios"), PROMPTS, ids=lambda value: str(value))
def test_logits_equal_transformers(model: Any, ids: list[int], ratios: list[int]) -> None:
    weights = hf_weights(model)
    pictures = [picture(RATIO_TILES[ratio], n) for n, ratio in enumerate(ratios)]
    expected = hf_logits(model, ids, ratios, pictures)
    states, sizes = cross_states(weights, ratios, pictures)
    whole = text_logits(weights, ids, states, sizes, [len(ids)])
    assert relative_error(whole, expected) < TOLERANCE
    in_steps = text_logits(weights, ids, states, sizes, [2, *range(3, len(ids) + 1)])
    assert relative_error(in_steps, expected) < TOLERANCE


def test_a_saved_checkpoint_computes_the_same(model: Any, tmp_path: Path) -> None:
    """Through transformers' own files: published names, a nested config, a convolution of four axes."""
    (ids, ratios), weights = PROMPTS[1], hf_weights(model)
    model.save_pretrained(tmp_path)
    checkpoint = open_source(tmp_path)
    assert isinstance(checkpoint.config.vision, MllamaVision)
    taps = tuple(tap + 1 for tap in checkpoint.config.vision.taps)  # see test_vision_mllama.hf_vision_config
    assert replace(checkpoint.config, name="tiny", vision=replace(checkpoint.config.vision, taps=taps)) == CONFIG
    pictures = [picture(RATIO_TILES[ratio], n) for n, ratio in enumerate(ratios)]
    found = [
        text_logits(source, ids, *cross_states(source, ratios, pictures), [len(ids)])
        for source in (weights, checkpoint)
    ]
    assert (found[0] == found[1]).all()


def test_a_tensor_that_is_no_weight_is_named(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["vision_model.transformer.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LlamacError, match=r"LLC0207.*q_proj\.bias.*no weight of a Llama 3\.2 Vision"):
        open_source(tmp_path)


def test_pictures_change_only_what_comes_after_them(model: Any) -> None:
    weights, (ids, ratios) = hf_weights(model), PROMPTS[2]
    found = []
    for seed in (0, 100):
        pictures = [picture(RATIO_TILES[ratio], n + seed) for n, ratio in enumerate(ratios)]
        states, sizes = cross_states(weights, ratios, pictures)
        found.append(text_logits(weights, ids, states, sizes, [len(ids)]))
    assert (found[0][:3] == found[1][:3]).all(), "rows before the first picture"
    assert (np.abs(found[0][3:] - found[1][3:]).max(axis=1) > 1e-3).all()


def test_text_alone_is_the_model_without_its_cross_layers(model: Any) -> None:
    weights, ids = hf_weights(model), [1, 17, 18, 19, 20]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    anything = {f"cross_{part}.{layer}": np.ones((2, 1, 16), np.float32) for layer in (1, 4) for part in "kv"}
    assert relative_error(text_logits(weights, ids, anything, [], [len(ids)]), expected) < TOLERANCE


def test_weights_have_the_shapes_that_are_expected(model: Any) -> None:
    expected = expected_shapes(CONFIG) | expected_vision_shapes(MLLAMA_VISION, CONFIG.hidden_size)
    assert {name: array.shape for name, array in hf_weights(model).arrays.items()} == expected
    for name in expected:
        stored = stored_name(name, HF, CONFIG)
        assert stored is not None and model_name(stored, HF, CONFIG) == name
    assert model_name("language_model.model.layers.0.cross_attn.q_proj.weight", HF, CONFIG) is None
    assert model_name("language_model.model.layers.6.mlp.up_proj.weight", HF, CONFIG) is None
    assert model_name("text_model.cross_attention_layers.2.gate_attn", META, CONFIG) is None


# Meta's text model.


@pytest.fixture(scope="module")
def meta() -> Any:
    return load_meta_mllama()


def meta_text(meta: Any) -> Any:
    """4 layers of its own and 2 that see pictures: before layers 1 and 3, as CONFIG has them at 1 and 4."""
    from llama_models.llama3.args import ModelArgs

    args = ModelArgs(dim=64, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=256, max_seq_len=16, rope_theta=5e5)
    args.multiple_of, args.ffn_dim_multiplier, args.norm_eps, args.use_scaled_rope = 128, 0.75, 1e-5, True
    args.vision_num_cross_attention_layers = 2
    made = meta.CrossAttentionTransformerText(args)
    made.setup_cache(1, "cpu", torch.float32)
    enlarge(made, 7)
    return made


@pytest.mark.parametrize("first", [2, 9], ids=["nothing before the picture", "all rows"])
def test_logits_equal_metas(meta: Any, first: int) -> None:
    made = meta_text(meta)
    assert made.fusion_schedule == [1, 3]
    config = replace(CONFIG, rope_style="interleaved")
    parts = {"embed": "text_model.tok_embeddings.weight", "rest": "text_model.learnable_embedding.weight"}
    state = {f"text_model.{name}": value for name, value in made.state_dict().items()}
    table = torch.cat([state.pop(parts["embed"]), state.pop(parts["rest"])])
    arrays = named(state, lambda name: model_name(name, META, config)) | {"embed": table.detach().numpy()}
    weights = Weights(arrays)
    assert {name: array.shape for name, array in weights.arrays.items()} == expected_shapes(config)
    ids = [1, 5, IMAGE, 17, 18, 19, 20, 21, 22]
    start, stop = np.zeros(9, np.int32), np.array([0] * (9 - first) + [6] * first, np.int32)
    vision = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(3))
    expected = meta_logits(meta, made, ids, vision, stop)
    inputs: dict[str, Any] = {"ids": ids, "positions": np.arange(9), "vision_start": start, "vision_stop": stop}
    for n, layer in enumerate(config.cross_layers):
        k, v = made.cross_attention_layers[n].compute_xattn_kv_cache(vision).detach()[:, 0, ::2].numpy()
        inputs |= {f"cross_k.{layer}": k, f"cross_v.{layer}": v}
    for layer in (0, 2, 3, 5):
        inputs |= {f"past_{part}.{layer}": np.zeros((2, 0, 16), np.float32) for part in "kv"}
    found = Interpreter(build_mllama(config, weights.tensors), weights.read_rows).run(inputs)[0]
    assert relative_error(np.asarray(found, np.float32), expected) < TOLERANCE


def meta_logits(meta: Any, made: Any, ids: list[int], vision: torch.Tensor, stop: Any) -> Floats:
    least = meta.get_negative_inf_value(torch.float32)
    visible = torch.arange(8)[None] < torch.from_numpy(stop)[:, None]
    mask = torch.where(visible, 0.0, least)[None, None]
    rows = meta._get_full_row_masked_out_mask(mask, least)
    caches = torch.stack([layer.compute_xattn_kv_cache(vision) for layer in made.cross_attention_layers])
    positions = torch.arange(len(ids))
    made.mask_cache = made.mask_cache[..., : made.max_seq_len]
    with torch.no_grad():
        hidden = made.get_partially_trainable_embedding(torch.tensor([ids]))
        found = made(positions, hidden, mask * rows, rows, caches)
    return np.asarray(found[0].numpy())
