"""A Llama 4 that ModelOpt itself exported (make_modelopt_model.py): ours beside it, tensor by tensor, and read here."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from interpreted import captured_logits
from safetensors.torch import load_file
from tiny_llama import relative_error, some_ids
from tiny_llama4 import reference_logits

from llamac.export.entry import export
from llamac.export.model_weights import ModelWeights
from llamac.models.sources import open_source

FOLDER = Path(__file__).parent / "modelopt_model"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def theirs() -> State:
    found: State = load_file(FOLDER / "fp8" / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    folder = tmp_path_factory.mktemp("modelopt") / "out"
    export(FOLDER / "plain", to="modelopt", output=folder, check=True)
    return folder, load_file(folder / "model.safetensors")


def meant(state: State) -> State:
    """Every weight as the numbers that it stands for."""
    found: State = {}
    for name, value in state.items():
        if not name.endswith("_scale"):
            scale = state.get(f"{name}_weight_scale", state.get(f"{name.removesuffix('.weight')}.weight_scale"))
            found[name] = value.float() if scale is None else value.float() * scale
    return found


def test_names_shapes_and_types(ours: tuple[Path, State], theirs: State) -> None:
    """All the same; scales of activations are the experts' alone, where nobody has measured the others."""
    assert set(theirs) - set(ours[1]) == {name for name in theirs if name.endswith(".input_scale")}
    assert set(ours[1]) <= set(theirs)
    for name, value in ours[1].items():
        assert (value.shape, value.dtype) == (theirs[name].shape, theirs[name].dtype), name


def test_the_same_scales_and_nearly_the_same_numbers(ours: tuple[Path, State], theirs: State) -> None:
    """Scales bit for bit. ModelOpt divides in bf16, which may move a number to the next one."""
    for name, value in ours[1].items():
        if name.endswith("weight_scale") or value.dtype != torch.float8_e4m3fn:
            assert name.endswith("input_scale") or value.equal(theirs[name]), name
            continue
        steps = (value.view(torch.uint8).int() - theirs[name].view(torch.uint8).int()).abs()
        assert steps.max() <= 1 and (steps > 0).float().mean() < 0.1, name
    source = load_file(FOLDER / "plain" / "model.safetensors")
    mine, other = meant(ours[1]), meant(theirs)
    for name, value in source.items():
        assert (mine[name] - value.float()).norm() <= (other[name] - value.float()).norm() * 1.0001, name


def test_what_they_leave_out_is_left_out(ours: tuple[Path, State]) -> None:
    mine, other = (
        json.loads((f / "hf_quant_config.json").read_text())["quantization"] for f in (ours[0], FOLDER / "fp8")
    )
    assert mine.keys() == other.keys() and mine["quant_algo"] == other["quant_algo"]
    products = [module for module in other["exclude_modules"] if not module.endswith("embed_tokens")]
    assert products and all(any(fnmatch(module, rule) for rule in mine["exclude_modules"]) for module in products)


def test_llamac_reads_it(theirs: State) -> None:
    """The same numbers, and with them transformers' logits; what is measured of activations is noted."""
    import transformers

    checkpoint = open_source(FOLDER / "fp8")
    for name in ("gate", "up", "down"):
        assert checkpoint.tensors[f"layers.1.moe.{name}"].encoding == "fp8-tensor-sym-f32"
    assert sum("gate_up_proj_input_scale" in entry["what"] for entry in checkpoint.ledger) == 1
    weights, values = ModelWeights(checkpoint), meant(theirs)
    found = weights.rows("layers.1.moe.down", 0, weights.shape("layers.1.moe.down")[0])
    expected = values["model.layers.1.feed_forward.experts.down_proj"].transpose(1, 2).reshape(found.shape)
    assert np.array_equal(found, expected.numpy())
    config = transformers.AutoConfig.from_pretrained(FOLDER / "plain")
    config._attn_implementation = "eager"
    model = transformers.Llama4ForCausalLM(config).eval()
    model.load_state_dict(values)
    ids = some_ids(config.vocab_size, 16)
    assert relative_error(captured_logits(checkpoint, ids), reference_logits(model.float(), ids)) < 1e-5


def test_exported_again_it_is_the_same(theirs: State, tmp_path: Path) -> None:
    """Bit for bit, with the experts' scales of activations as ModelOpt has measured them."""
    result = export(FOLDER / "fp8", to="modelopt", output=tmp_path / "out", check=True)
    assert not [entry for entry in result.ledger if entry.kind == "default" and entry.where == "layers.N.moe"]
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in after.items():
        assert value.float().equal(theirs[name].float()), name
