"""Llama 4 and Guard 4 as transformers saves them: config, names, values of every weight, and the logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import captured_logits
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tiny_llama import relative_error, some_ids
from tiny_llama4 import Tiny4, make_model, reference_logits, weights_of

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.models.hf_config import read_config
from llamac.models.llama.vision_config import Llama4Vision
from llamac.models.sources import open_source

TOLERANCE_F32 = 1e-5
SHAPE = Tiny4()
IDS = some_ids(SHAPE.vocab, 20)
Weights = dict[str, NDArray[Any]]

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 48,
    "projector_output_dim": 48,
    "vision_output_dim": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(SHAPE)


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def changed_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def changed_weights(folder: Path, change: Any) -> Path:
    weights = load_file(folder / "model.safetensors")
    save_file({k: np.ascontiguousarray(v) for k, v in change(weights).items()}, folder / "model.safetensors")
    return folder


def refusal(folder: Path) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        open_source(folder)
    return caught.value


def assert_weights(checkpoint: Checkpoint, expected: Weights) -> None:
    assert set(checkpoint.tensors) >= set(expected)
    for name, values in expected.items():
        tensor = checkpoint.tensors[name]
        found = checkpoint.read_rows(name, 0, tensor.rows).view("<f4").reshape(tensor.shape)
        assert np.array_equal(found, values), name
        if tensor.rows > 7:
            assert np.array_equal(checkpoint.read_rows(name, 3, 7).view("<f4"), values[3:7]), name


@pytest.mark.parametrize(
    "shape",
    [SHAPE, Tiny4(step=1, top_k=2, qk_norm=False, seed=1), Tiny4(tied=True, tempered=False, layers=5, seed=2)],
    ids=["tiny", "every layer a mixture", "tied"],
)
def test_text_model(shape: Tiny4, tmp_path: Path) -> None:
    model = make_model(shape)
    model.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    checkpoint = open_source(tmp_path / "m")
    expected = shape.config()
    assert replace(checkpoint.config, name=expected.name) == expected
    assert {item["kind"] for item in checkpoint.ledger if item["where"] != "tokenizer"} == set()
    assert_weights(checkpoint, weights_of(model, expected))
    assert relative_error(captured_logits(checkpoint, IDS), reference_logits(model, IDS)) < TOLERANCE_F32


def test_guard4_is_dense(tmp_path: Path) -> None:
    shape = Tiny4(experts=0)
    model = make_model(shape)
    model.save_pretrained(tmp_path / "m")
    changed_config(tmp_path / "m", attention_chunk_size=None, no_rope_layer_interval=None, no_rope_layers=[],
                   layer_types=None, interleave_moe_layer_step=0)  # fmt: skip
    checkpoint = open_source(tmp_path / "m")
    pattern = checkpoint.config.attention
    assert checkpoint.config.moe is None and checkpoint.config.intermediate_size == shape.inner
    assert pattern is not None and (pattern.unrotated, pattern.chunk) == ((), 0)
    assert_weights(checkpoint, weights_of(model, shape.config()))


@pytest.mark.parametrize("prefixes", ["published", "newer"])
def test_with_image_encoder(model: Any, prefixes: str, tmp_path: Path) -> None:
    import transformers

    config = transformers.Llama4Config(
        vision_config=VISION, text_config=model.config.to_dict(), image_token_index=130, boi_token_index=128,
        eoi_token_index=129,
    )  # fmt: skip
    whole = transformers.Llama4ForConditionalGeneration(config).eval()
    whole.language_model.load_state_dict(model.state_dict())
    whole.save_pretrained(tmp_path / "m")
    if prefixes == "newer":
        changed_weights(tmp_path / "m", lambda w: {
            k.replace("language_model.lm_head", "lm_head") if "lm_head" in k
            else "model." + k.replace("language_model.model.", "language_model."): v for k, v in w.items()
        })  # fmt: skip
    checkpoint = open_source(tmp_path / "m")
    vision = checkpoint.config.vision
    assert isinstance(vision, Llama4Vision) and (vision.image_token, vision.tile_tokens) == (130, 4)
    assert replace(checkpoint.config, name="tiny-llama4", vision=None) == SHAPE.config()
    assert_weights(checkpoint, weights_of(model, SHAPE.config()))
    state = {name: value.detach().numpy() for name, value in whole.state_dict().items()}
    assert_weights(checkpoint, {
        "vision.patch": state["vision_model.patch_embedding.linear.weight"],
        "vision.layers.1.attn.o.bias": state["vision_model.model.layers.1.self_attn.o_proj.bias"],
        "vision.adapter.down": state["vision_model.vision_adapter.mlp.fc2.weight"],
        "vision.projector": state["multi_modal_projector.linear_1.weight"],
    })  # fmt: skip
    text = replace(checkpoint, config=replace(checkpoint.config, vision=None))
    assert sum(name.startswith("vision.") for name in checkpoint.tensors) == sum(
        "vision" in k or "multi" in k for k in state
    )
    assert relative_error(captured_logits(text, IDS), reference_logits(model, IDS)) < TOLERANCE_F32


def one_by_one(weights: Weights) -> Weights:
    """Every expert's matrices stored for themselves, [out, in]."""
    found: Weights = {}
    for name, value in weights.items():
        place = name.removesuffix("gate_up_proj").removesuffix("down_proj")
        for index in range(value.shape[0]) if "experts" in name else ():
            if name.endswith("gate_up_proj"):
                gate, up = np.split(value[index], 2, axis=1)
                found |= {f"{place}{index}.gate_proj.weight": gate.T, f"{place}{index}.up_proj.weight": up.T}
            else:
                found[f"{place}{index}.down_proj.weight"] = value[index].T
        if "experts" not in name:
            found[name] = value
    return found


def test_experts_stored_one_by_one(model: Any, folder: Path) -> None:
    checkpoint = open_source(changed_weights(folder, one_by_one))
    assert_weights(checkpoint, weights_of(model, SHAPE.config()))
    lost = "model.layers.3.feed_forward.experts.2.up_proj.weight"
    changed_weights(folder, lambda w: {k: v for k, v in w.items() if k != lost})
    error = refusal(folder)
    assert (error.code, error.where) == ("LLC0206", "layers.3.moe.up") and "expert 2" in error.reason
    changed_weights(
        folder,
        lambda w: w | {lost: w[lost.replace("2.up", "1.up")], lost.replace("2", "4"): w[lost.replace("2.up", "1.up")]},
    )
    assert (refusal(folder).code, refusal(folder).where) == ("LLC0207", "layers.3.moe.up")


def test_bad_weights(folder: Path) -> None:
    fused = "model.layers.1.feed_forward.experts.gate_up_proj"
    original = load_file(folder / "model.safetensors")

    def error_with(changes: Weights, dropped: str = "") -> LlamacError:
        changed_weights(folder, lambda _: {k: v for k, v in (original | changes).items() if k != dropped})
        return refusal(folder)

    error = error_with({}, fused)
    assert (error.code, error.where) == ("LLC0206", "layers.1.moe.gate")
    assert error_with({fused: original[fused][:3]}).code == "LLC0208"
    assert error_with({fused: original[fused][0]}).where == "layers.1.moe"
    assert error_with({fused: original[fused][:, :, :-2]}).where == "layers.1.moe.gate"
    assert error_with({fused.replace("experts.gate_up_proj", "router.bias"): np.ones(4, np.float32)}).code == "LLC0207"
    dense = error_with({fused.replace("layers.1", "layers.0"): original[fused]})
    assert (dense.code, dense.where) == ("LLC0207", "layers.0") and "Llama 4" in dense.reason
    assert error_with({"model.layers.1.mlp.gate_proj.weight": np.ones((2, 2), np.float32)}).code == "LLC0207"
    assert error_with({"vision_model.class_embedding": np.ones(2, np.float32)}).code == "LLC0207"


BASE: dict[str, Any] = {
    "architectures": ["Llama4ForCausalLM"],
    "num_hidden_layers": 8,
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    "dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("changes", "unrotated"),
    [
        ({}, (3, 7)),
        ({"no_rope_layers": None}, (3, 7)),
        ({"no_rope_layers": []}, (3, 7)),
        ({"no_rope_layers": [1, 0, 1, 1, 0, 1, 1, 1]}, (1, 4)),
        ({"no_rope_layer_interval": 3}, (2, 5)),
        ({"no_rope_layer_interval": None}, ()),
        ({"no_rope_layer_interval": None, "no_rope_layers": [1] * 8}, ()),
    ],
)
def test_layers_without_rope(changes: dict[str, Any], unrotated: tuple[int, ...]) -> None:
    """As transformers reads them (it refuses a null interval, which Guard 4 has)."""
    import transformers

    config, _ = read_config(BASE | changes)
    assert config.attention is not None and config.attention.unrotated == unrotated
    if changes.get("no_rope_layer_interval", 4) is not None:
        theirs = transformers.Llama4TextConfig(**{k: v for k, v in (BASE | changes).items() if k != "architectures"})
        assert tuple(i for i, rope in enumerate(theirs.no_rope_layers[:8]) if not rope) == unrotated


def test_defaults_are_those_of_transformers() -> None:
    import transformers

    config, ledger = read_config(BASE)
    theirs = transformers.Llama4TextConfig(**{k: v for k, v in BASE.items() if k != "architectures"})
    assert config.moe is not None and config.attention is not None
    assert (config.hidden_size, config.heads, config.head_dim) == (theirs.hidden_size, theirs.num_attention_heads, 128)
    assert (config.moe.experts, config.moe.layers) == (theirs.num_local_experts, tuple(theirs.moe_layers))
    assert config.attention.chunk == theirs.attention_chunk_size and config.attention.temperature_scale == 0.1
    assert (config.vocab_size, config.context_length) == (theirs.vocab_size, theirs.max_position_embeddings)
    assert {item["kind"] for item in ledger} == {"default"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"num_experts_per_tok": 17}, "LLC0304"),
        ({"no_rope_layers": [1, 0]}, "LLC0304"),
        ({"no_rope_layers": [1] * 7 + [2]}, "LLC0303"),
        ({"moe_layers": [8]}, "LLC0303"),
        ({"attention_chunk_size": -1}, "LLC0303"),
        ({"attention_bias": True}, "LLC0307"),
        ({"hidden_act": "gelu"}, "LLC0306"),
        ({"layer_types": ["full_attention"] * 8}, "LLC0308"),
        ({"layer_types": 5}, "LLC0308"),
        ({"text_config": 5}, "LLC0303"),
        ({"text_config": {**BASE, "tie_word_embeddings": True}, "tie_word_embeddings": False}, "LLC0304"),
        ({"text_config": BASE, "vision_config": {"hidden_act": "relu"}}, "LLC0308"),
        ({"text_config": BASE, "vision_config": {}}, "LLC0304"),
        ({"num_hidden_layers": 10**9}, "LLC0303"),
        ({"num_local_experts": 10**12}, "LLC0303"),
        ({"text_config": BASE, "vision_config": VISION | {"num_hidden_layers": 10**9}}, "LLC0303"),
        ({"text_config": BASE, "vision_config": VISION | {"hidden_size": 1 << 30}}, "LLC0303"),
        ({"text_config": BASE, "vision_config": VISION | {"num_attention_heads": 3}}, "LLC0304"),
        ({"text_config": BASE, "vision_config": VISION | {"image_size": [56, 28]}}, "LLC0303"),
    ],
    ids=str,
)
def test_configs_that_cannot_be(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(LlamacError) as caught:
        read_config(BASE | changes)
    assert caught.value.code == code


def test_a_number_for_temperature_tuning_is_a_flag() -> None:
    """The configs of 2025 have 4 here; it says that tuning is on."""
    for value, scale in ((4, 0.1), (0, 0.0), (True, 0.1), (False, 0.0)):
        config, _ = read_config(BASE | {"attn_temperature_tuning": value})
        assert config.attention is not None and config.attention.temperature_scale == scale


def test_transformers_runs_what_was_saved(folder: Path, model: Any) -> None:
    """The oracle reads its own folder back: the comparison above is with the model that the folder holds."""
    import transformers

    again = transformers.Llama4ForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert torch.equal(torch.tensor(reference_logits(again, IDS)), torch.tensor(reference_logits(model, IDS)))
