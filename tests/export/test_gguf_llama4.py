"""Llama 4 as GGUF: experts in llama.cpp's layout against transformers, and the models that llama.cpp cannot run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from interpreted import captured_logits
from tiny_llama import relative_error, some_ids
from tiny_llama4 import Tiny4, checkpoint_of, make_model, reference_logits, save_model, weights_of

from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.config import AttentionPattern, LlamaConfig
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import open_source

SHAPE = Tiny4(hidden=256, inner=512, expert_inner=256, head_dim=64, chunk=8192, floor=8192)
IDS = some_ids(SHAPE.vocab, 20)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(SHAPE)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(model, SHAPE, tmp_path_factory.mktemp("llama4"))


@pytest.mark.parametrize(("scheme", "lost"), [("keep", 1e-5), ("q8_0", 0.3), ("q4_k", 1.0)])
def test_experts(scheme: str, lost: float, model: Any, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    result = export(folder, to="gguf", output=path, quantize=scheme, check=True)
    assert result.checks is not None and all(check.passed for check in result.checks)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    experts = {part: tensors[f"blk.1.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")}
    assert [t.shape.tolist()[::-1] for t in experts.values()] == [[4, 256, 256]] * 3
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"
    assert relative_error(captured_logits(open_source(path), IDS), reference_logits(model, IDS)) <= lost
    if scheme != "keep":
        return
    for name, wanted in weights_of(model, SHAPE.config()).items():
        part = name.removeprefix("layers.1.moe.")
        if part in experts:
            assert np.array_equal(experts[part].data.reshape(wanted.shape), wanted)


def test_the_metadata_says_how_experts_lie(folder: Path, tmp_path: Path) -> None:
    export(folder, to="gguf", output=tmp_path / "m.gguf")
    fields = {n: f.contents() for n, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items() if n.startswith("llama4")}
    expected = {"expert_count": 4, "expert_used_count": 1, "expert_feed_forward_length": 256}
    expected |= {"interleave_moe_layer_step": 2, "feed_forward_length": 512}
    assert {name: fields[f"llama4.{name}"] for name in expected} == expected
    assert "llama4.attention.sliding_window" not in fields


def test_a_model_that_rotates_and_sees_everything(tmp_path: Path) -> None:
    shape = Tiny4(chunk=0, interval=0, tempered=False)
    made = make_model(shape)
    checkpoint = checkpoint_of(weights_of(made, shape.config()), shape.config())
    export(checkpoint, to="gguf", output=tmp_path / "m.gguf", check=True)
    found = open_source(tmp_path / "m.gguf")
    assert found.config.attention is not None and found.config.attention.unrotated == ()
    assert relative_error(captured_logits(found, IDS), reference_logits(made, IDS)) < 1e-5


def test_what_only_later_positions_could_tell_is_no_difference(tmp_path: Path) -> None:
    """No chunk ends and no query is tempered below 8192 positions, whatever the constants are."""
    shape = Tiny4(chunk=0, tempered=False)
    config = replace(shape.config(), context_length=4096)
    export(random_checkpoint(config, 0), to="gguf", output=tmp_path / "m.gguf", check=True)


def refused(config: LlamaConfig, tmp_path: Path) -> str:
    checkpoint: Checkpoint = random_checkpoint(config, 0)
    with pytest.raises(LlamacError) as caught:
        export(checkpoint, to="gguf", output=tmp_path / "m.gguf")
    assert caught.value.code == "LLC0945" and list(tmp_path.iterdir()) == []
    return caught.value.message()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (Tiny4(), "chunks of 8 positions, not 8192; attention temperature of (4.0, 0.1)"),
        (Tiny4(chunk=8192, floor=8192, interval=3), "the layers without rotation are [2], not every 4th"),
        (Tiny4(chunk=8192, floor=8192, qk_norm=False), "queries and keys are not normalized beside 4 experts"),
        (Tiny4(chunk=8192, tempered=False), "attention temperature of (4.0, 0.0)"),
        (Tiny4(chunk=8192, floor=8192, experts=0), "no Llama 4 without routed experts"),
    ],
    ids=str,
)
def test_llama4_that_llama_cpp_would_run_as_another(shape: Tiny4, said: str, tmp_path: Path) -> None:
    assert said in refused(shape.config(), tmp_path)


def test_mixture_layers_without_a_step(tmp_path: Path) -> None:
    config = Tiny4(chunk=8192, floor=8192).config()
    assert config.moe is not None
    assert "(0, 3 ...) do not come at one step" in refused(
        replace(config, moe=replace(config.moe, layers=(0, 3))), tmp_path
    )


def test_llama_3_2_vision_has_no_architecture(tmp_path: Path) -> None:
    config = replace(preset("llama-3.2-11b-vision"), layers=4, cross_layers=(3,))
    with pytest.raises(LlamacError, match=r"LLC0945 .*cross-attention.*--to hf"):
        export(random_checkpoint(config, 0), to="gguf", output=tmp_path / "m.gguf")


def test_the_constants_are_those_of_the_reader() -> None:
    """Scout and Maverick, as published, can be said."""
    from llamac.export.gguf.architecture import check_architecture

    for name in ("llama-4-scout", "llama-4-maverick-instruct"):
        config = preset(name)
        check_architecture(config)
        assert config.attention == AttentionPattern(tuple(range(3, 48, 4)), 8192, "scout" in name, 8192.0, 0.1)


def test_one_file_has_no_image_encoder_and_it_is_said(tmp_path: Path) -> None:
    config = replace(Tiny4(chunk=8192, floor=8192).config(), vision=preset("llama-4-scout").vision)
    checkpoint = random_checkpoint(replace(config, vision=None), 0)
    checkpoint = replace(checkpoint, config=config)
    result = export(checkpoint, to="gguf", output=tmp_path / "m.gguf", check=True)
    assert any(entry.where == "vision" and "mmproj" in entry.reason for entry in result.ledger)
    with pytest.raises(LlamacError, match="LLC0105 vision"):
        export(checkpoint, to="gguf", output=tmp_path / "n.gguf", strict=True)
