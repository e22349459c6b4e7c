"""ModelOpt's folders: the published layout taken apart here, and read back by llamac to the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from interpreted import captured_logits, kernel_graph
from safetensors.torch import load_file, save_file
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids
from tiny_pictures import make_mllama

from llamac.certificate import certify
from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.export.model_weights import ModelWeights
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization

SCHEMES = ["fp8", "int4:g128", "int4:g64"]
SHAPE = TinyShape(group=2, head_dim=64, width=128, inner=256, scaled=False, dtype="bf16")
IDS = some_ids(SHAPE.vocab, 12)
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path_factory.mktemp("plain") / "m")


def settings_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "hf_quant_config.json").read_text()))


def stored_in(folder: Path) -> dict[str, Any]:
    """The tensors of a folder; numpy by itself has neither e4m3fn nor bf16."""
    own = {
        torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
        torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    }
    found = {}
    for name, value in load_file(folder / "model.safetensors").items():
        bits, dtype = own.get(value.dtype, (value.dtype, None))
        array = value.view(bits).numpy()
        found[name] = array if dtype is None else array.view(dtype)
    return found


def taken_apart(folder: Path) -> dict[str, Floats]:
    """Every matrix by ModelOpt's rules: a scale for all of it, or nibbles of two outputs and a scale for each group."""
    stored, found = stored_in(folder), {}
    for name, value in stored.items():
        module, _, part = name.rpartition(".")
        scale = stored.get(f"{module}.weight_scale")
        if part != "weight":
            continue
        if scale is None:
            found[module] = value.astype(np.float32)
        elif scale.shape == ():
            assert value.dtype == ml_dtypes.float8_e4m3fn and scale.dtype == np.float32
            found[module] = value.astype(np.float32) * scale
        else:
            assert value.dtype == np.uint8
            low, high = ((value >> shift & 15).astype(np.int32) for shift in (0, 4))
            quants = np.stack([low, high], axis=1).reshape(-1, value.shape[1])
            quants = np.where(quants > 7, quants - 16, quants).astype(np.float32)
            group = value.shape[1] // scale.shape[1]
            found[module] = quants * np.repeat(scale.astype(np.float32), group, axis=1)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_weight_by_the_published_layout(scheme: str, source: Path, tmp_path: Path) -> None:
    result = export(source, to="modelopt", output=tmp_path / "out", quantize=scheme, check=True)
    assert result.checks is not None and [c.name for c in result.checks] == ["config", "weights", "logits"]
    back, values = ModelWeights(open_source(tmp_path / "out")), taken_apart(tmp_path / "out")
    original = ModelWeights(open_source(source))
    bound = 2**-4 if scheme == "fp8" else 0.2
    for name in back.names:
        stored = back.stored(name)
        found = back.rows(name, 0, stored.rows)
        assert np.array_equal(found, values[stored.stored_name.rpartition(".")[0]].reshape(found.shape)), name
        before = original.rows(name, 0, stored.rows)
        assert np.abs(found - before).max() <= bound * np.abs(before).max(), name
    dense = make_reference(SHAPE)
    dense.load_state_dict({f"{m}.weight": torch.from_numpy(v) for m, v in values.items()})
    assert relative_error(captured_logits(open_source(tmp_path / "out"), IDS), reference_logits(dense, IDS)) < 1e-5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_compiles_again(scheme: str, source: Path, tmp_path: Path) -> None:
    export(source, to="modelopt", output=tmp_path / "out", quantize=scheme)
    checkpoint = open_source(tmp_path / "out")
    compiled = kernel_graph(checkpoint, "keep")
    formats = {p.format for p in compiled.placed if ".mlp.down" in p.weight.name}
    assert formats == {"e4m3fnx2" if scheme == "fp8" else f"i4{scheme[5:]}s16"}
    certificate = certify(checkpoint, parse_quantization("keep"), "f16")
    assert certificate is not None


def test_int4_is_the_compilers(source: Path, tmp_path: Path) -> None:
    """The same integers and scales as compressed-tensors' form of the scheme, which are the compiler's."""
    for form in ("modelopt", "compressed-tensors"):
        export(source, to=form, output=tmp_path / form, quantize="int4:g64")
    ours, theirs = (ModelWeights(open_source(tmp_path / form)) for form in ("modelopt", "compressed-tensors"))
    for name in ours.names:
        rows = ours.stored(name).rows
        assert np.array_equal(ours.rows(name, 0, rows), theirs.rows(name, 0, rows)), name


def test_the_settings_are_those_of_the_schema(source: Path, tmp_path: Path) -> None:
    """Keys and values as in NVIDIA's own uploads; the tensors that TensorRT-LLM asks for are there, and no others."""
    for scheme in SCHEMES:
        export(source, to="modelopt", output=tmp_path / scheme, quantize=scheme)
    fp8, int4 = (settings_of(tmp_path / scheme) for scheme in SCHEMES[:2])
    assert fp8["producer"]["name"] == "modelopt"
    assert fp8["quantization"] == {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    assert int4["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "exclude_modules": ["lm_head"],
    }
    stored = stored_in(tmp_path / SCHEMES[1])
    factors = sorted(name for name in stored if name.endswith("pre_quant_scale"))
    assert [name.split(".")[-2] for name in factors] == ["down_proj", "o_proj"] * SHAPE.layers
    assert all((stored[name] == 1).all() and stored[name].dtype == ml_dtypes.bfloat16 for name in factors)
    assert stored["model.layers.0.mlp.down_proj.weight"].shape == (64, 256)
    assert stored["model.layers.0.mlp.down_proj.weight_scale"].shape == (128, 2)
    assert not any(name.endswith("input_scale") for name in stored_in(tmp_path / "fp8"))


def test_scales_of_the_cache(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    for layer in range(SHAPE.layers):
        weights[f"model.layers.{layer}.self_attn.kv_scale"] = torch.tensor([0.5 + layer])
    save_file(weights, tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    export(tmp_path / "m", to="modelopt", output=tmp_path / "out", options={"kv": "fp8"}, check=True)
    assert settings_of(tmp_path / "out")["quantization"]["kv_cache_quant_algo"] == "FP8"
    stored = stored_in(tmp_path / "out")
    for layer in range(SHAPE.layers):
        for kind in "kv":
            scale = stored[f"model.layers.{layer}.self_attn.{kind}_proj.{kind}_scale"]
            assert scale.shape == () and scale == 0.5 + layer


def test_images_are_left_out(tmp_path: Path) -> None:
    make_mllama(tmp_path / "m")
    export(tmp_path / "m", to="modelopt", output=tmp_path / "out", check=True)
    excluded = settings_of(tmp_path / "out")["quantization"]["exclude_modules"]
    assert excluded == ["*lm_head", "*vision_model*", "*multi_modal_projector*"]


def test_what_tensorrt_llm_has_no_form_for(source: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamacError, match=r"LLC0923 --quantize: .*no form for 'int4' .*did you mean 'int4:g"):
        export(source, to="modelopt", output=tmp_path / "out", quantize="int4")


def test_factors_that_are_not_one(source: Path, tmp_path: Path) -> None:
    """A real AWQ checkpoint scales its activations, which the compiler has no place for."""
    export(source, to="modelopt", output=tmp_path / "out", quantize="int4:g128")
    path = tmp_path / "out" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.down_proj.pre_quant_scale"][5] = 2
    save_file(weights, path)
    with pytest.raises(LlamacError, match=r"LLC0222 layers\.1\.mlp\.down: its inputs are multiplied by factors"):
        open_source(tmp_path / "out")
    settings = settings_of(tmp_path / "out")
    settings["quantization"]["has_zero_point"] = True
    (tmp_path / "out" / "hf_quant_config.json").write_text(json.dumps(settings))
    with pytest.raises(LlamacError, match=r"LLC0222 .*zero points is not read"):
        open_source(tmp_path / "out")
