"""Folders in compressed-tensors form: read by its own library, by transformers and by llamac, to the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from interpreted import kernel_graph
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids
from tiny_llama4 import Tiny4, make_model, save_model
from tiny_pictures import make_llama4, make_mllama

from llamac.driver import compile_graph
from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.export.model_weights import ModelWeights
from llamac.export.transformers_check import load_folder, text_logits
from llamac.ir.evaluator import WeightEvaluator
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization
from llamac.transform.base import LedgerEntry

SCHEMES = ["fp8", "int8", "int4", "int4:g64", "int4:g128", "int4:asym", "int4:g128:asym"]
SHAPE = TinyShape(group=2, head_dim=64, width=128, inner=256, scaled=False)
IDS = some_ids(SHAPE.vocab, 12)
SAME_F32 = 1e-5
EIGHT_BIT_ACTIVATIONS = 0.15
"""transformers rounds the activations of these forms to 8 bits, token by token."""
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path_factory.mktemp("plain") / "m")


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text())["quantization_config"])


def by_the_library(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight as compressed-tensors makes it of the files, with scales in f32."""
    config = QuantizationConfig(**config_of(folder))
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(config.format)
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_torch(folder / "model.safetensors").items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = value.float() if part == "weight_scale" else value
    return {
        module: (compressor.decompress(parts, scheme) if "weight_scale" in parts else parts)["weight"]
        for module, parts in modules.items()
    }


def compiled_values(checkpoint: Checkpoint, scheme: str) -> dict[str, Floats]:
    """The matrices of layers as `compile --quantize` rounds them, by model-level name."""
    module, kind = kernel_graph(checkpoint, scheme).module, {"fp8": "e4m3fn", "int4": "i4"}[scheme.split(":")[0]]
    evaluator, found = WeightEvaluator(checkpoint.read_rows), {}
    for name in checkpoint.tensors:
        if name.startswith("layers.") and "norm" not in name:
            quants, scales = (
                evaluator.whole(module.weights[f"{name}.{kind}.{part}"]).astype(np.float32)
                for part in ("quants", "scales")
            )
            rows, groups = scales.shape
            found[name] = (quants.reshape(rows, groups, -1) * scales[:, :, None]).reshape(rows, -1)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_reader_sees_the_same_model(scheme: str, source: Path, tmp_path: Path) -> None:
    result = export(source, to="compressed-tensors", output=tmp_path / "out", quantize=scheme, check=True)
    assert result.checks is not None and [c.name.split(" ")[0] for c in result.checks] == [
        "config",
        "weights",
        "logits",
        "transformers",
        "transformers",
    ]
    back = ModelWeights(open_source(tmp_path / "out"))
    library = by_the_library(tmp_path / "out")
    for name in back.names:
        stored = back.stored(name).stored_name
        module = stored.rpartition(".")[0]
        values = back.rows(name, 0, back.stored(name).rows)
        assert np.array_equal(values, library[module].float().numpy()), name
    if "asym" in scheme:
        return  # version 0.20 packs zero points when it writes, and does not expect them packed when it multiplies
    dense = make_reference(SHAPE)
    dense.load_state_dict({f"{module}.weight": value.float() for module, value in library.items()})
    loaded, missing, unexpected = load_folder(tmp_path / "out", "transformers")
    assert not missing and not unexpected
    apart = relative_error(text_logits(loaded, IDS), reference_logits(dense, IDS))
    assert apart < (SAME_F32 if scheme.startswith("int4") else EIGHT_BIT_ACTIVATIONS)


@pytest.mark.parametrize("scheme", ["fp8", "int4", "int4:g128"])
def test_the_numbers_are_the_compilers(scheme: str, source: Path, tmp_path: Path) -> None:
    """An exported and a compiled model agree bit for bit."""
    export(source, to="compressed-tensors", output=tmp_path / "out", quantize=scheme)
    compiled = compiled_values(open_source(source), scheme)
    back = ModelWeights(open_source(tmp_path / "out"))
    matrices = [name for name in back.names if name.startswith("layers.") and "norm" not in name]
    assert set(compiled) == set(matrices)
    for name, values in compiled.items():
        assert np.array_equal(back.rows(name, 0, len(values)), values), name


def test_the_settings_are_as_the_library_writes_them(source: Path, tmp_path: Path) -> None:
    for number, scheme in enumerate(SCHEMES):
        export(source, to="compressed-tensors", output=tmp_path / str(number), quantize=scheme)
        ours = config_of(tmp_path / str(number))
        assert json.loads(json.dumps(QuantizationConfig(**ours).model_dump())) == ours


@pytest.mark.parametrize("scheme", ["fp8", "int8", "int4"])
def test_llama4_has_every_expert(scheme: str, tmp_path: Path) -> None:
    """One by one, under the names that vLLM's loader joins; the router stays."""
    shape = Tiny4(hidden=64, inner=128, expert_inner=96, experts=4)
    save_model(make_model(shape), shape, tmp_path / "m")
    result = export(tmp_path / "m", to="compressed-tensors", output=tmp_path / "out", quantize=scheme, check=True)
    stored = load_torch(tmp_path / "out" / "model.safetensors")
    weight = "weight_packed" if scheme == "int4" else "weight"
    for layer in (1, 3):
        place = f"model.layers.{layer}.feed_forward"
        for expert in range(shape.experts):
            for kind in ("gate", "up", "down"):
                assert f"{place}.experts.{expert}.{kind}_proj.{weight}" in stored
        assert stored[f"{place}.router.weight"].dtype is torch.float32
        assert f"{place}.shared_expert.down_proj.{weight}" in stored
    assert config_of(tmp_path / "out")["ignore"] == ["lm_head", "re:.*router"]
    assert any(entry.kind == "kept" and "router" in entry.where for entry in result.ledger)
    library, source = by_the_library(tmp_path / "out"), ModelWeights(open_source(tmp_path / "m"))
    up = np.concatenate([library[f"model.layers.1.feed_forward.experts.{e}.up_proj"].numpy() for e in range(4)])
    rows = source.shape("layers.1.moe.up")[0]
    before = source.rows("layers.1.moe.up", 0, rows)
    assert np.abs(up - before).max() < 0.2 * np.abs(before).max()
    assert np.array_equal(ModelWeights(open_source(tmp_path / "out")).rows("layers.1.moe.up", 0, rows), up)


@pytest.mark.parametrize("make", [make_llama4, make_mllama])
def test_encoders_stay_as_they_are(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "m")
    export(tmp_path / "m", to="compressed-tensors", output=tmp_path / "out", quantize="fp8", check=True)
    before, after = (load_torch(tmp_path / name / "model.safetensors") for name in ("m", "out"))
    seeing = [name for name in after if "vision_model" in name or "multi_modal" in name]
    assert len(seeing) > 20 and all(after[name].dtype is torch.float32 for name in seeing)
    assert "re:.*vision_model.*" in config_of(tmp_path / "out")["ignore"]
    assert len([name for name in before if "vision_model" in name or "multi_modal" in name]) == len(seeing)


def with_cache_scales(source: Path, folder: Path, names: tuple[str, str]) -> Path:
    """A copy of a folder with scales of a quantized cache, as checkpoints of other tools have them."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    for layer in range(SHAPE.layers):
        for kind, name in enumerate(names):
            value = np.array([0.25 + layer + kind / 8], np.float32)
            weights[f"model.layers.{layer}.self_attn.{name}"] = value.reshape(()) if "proj" in name else value
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("names", [("k_scale", "v_scale"), ("k_proj.k_scale", "v_proj.v_scale")])
def test_scales_of_the_cache_are_kept(names: tuple[str, str], source: Path, tmp_path: Path) -> None:
    folder = with_cache_scales(source, tmp_path / "m", names)
    export(folder, to="compressed-tensors", output=tmp_path / "out", options={"kv": "fp8"}, check=True)
    stored = load_torch(tmp_path / "out" / "model.safetensors")
    for layer in range(SHAPE.layers):
        for kind, name in enumerate(("k_scale", "v_scale")):
            scale = stored[f"model.layers.{layer}.self_attn.{name}"]
            assert (scale.dtype, scale.tolist()) == (torch.float32, [0.25 + layer + kind / 8])
    assert config_of(tmp_path / "out")["kv_cache_scheme"] == {
        "num_bits": 8,
        "type": "float",
        "symmetric": True,
        "group_size": None,
        "strategy": "tensor",
        "dynamic": False,
    }


@pytest.mark.parametrize("names", [("k_scale", "v_scale"), ("k_proj.k_scale", "v_proj.v_scale")])
def test_scales_of_the_cache_reach_a_gpu(names: tuple[str, str], source: Path, tmp_path: Path) -> None:
    """As weights of each layer, once a head; the ledger says whose they are, and no longer that they are ignored."""
    checkpoint = open_source(with_cache_scales(source, tmp_path / "m", names))
    ledger = [LedgerEntry(**entry) for entry in checkpoint.ledger]
    assert sum(entry.kind == "ignored" for entry in ledger) == 2 * SHAPE.layers
    keep = parse_quantization("keep")
    module = compile_graph(checkpoint, keep, "fp8", 8, None, ledger, kind="gpu").module
    heads = checkpoint.config.kv_heads
    for layer in range(SHAPE.layers):
        found = WeightEvaluator(checkpoint.read_rows).whole(module.weights[f"layers.{layer}.attn.kv_scales"])
        assert found.tolist() == [0.25 + layer] * heads + [0.375 + layer] * heads
    assert not any(entry.kind == "ignored" for entry in ledger)
    assert any("checkpoint's own scales" in entry.reason for entry in ledger)
    compile_graph(open_source(source), keep, "fp8", 8, None, ledger, kind="gpu")
    assert any("brings no scales" in entry.reason for entry in ledger)


def test_scales_that_are_not_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamacError, match=r"LLC0950 --option kv: the source has no scales .* none are made up"):
        export(source, to="compressed-tensors", output=tmp_path / "out", options={"kv": "fp8"})
    with pytest.raises(LlamacError, match="LLC0950 --option kv: 'int4' is no form"):
        export(source, to="compressed-tensors", output=tmp_path / "out", options={"kv": "int4"})
    folder = with_cache_scales(source, tmp_path / "m", ("k_scale", "v_scale"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_scale"] = np.array([0.5, 0.5], np.float32)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(LlamacError, match=r"LLC0953 model\.layers\.1\.self_attn\.v_scale: .*one positive number"):
        export(folder, to="compressed-tensors", output=tmp_path / "out")
    del weights["model.layers.1.self_attn.v_scale"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(LlamacError, match=r"LLC0953 layers\.1\.attn"):
        export(folder, to="compressed-tensors", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_groups_that_do_not_fit(tmp_path: Path) -> None:
    shape = TinyShape(group=2, head_dim=16, width=96, inner=160, kv_heads=2)
    source = save_checkpoint(make_reference(shape), shape, tmp_path / "m")
    with pytest.raises(LlamacError) as caught:
        export(source, to="compressed-tensors", output=tmp_path / "out", quantize="int4:g128")
    assert caught.value.code == "LLC0953" and "choose groups of 32 (int4)" in caught.value.message()
    with pytest.raises(LlamacError, match=r"LLC0923 --quantize: .*no form for 'int3'.*did you mean 'int8'"):
        export(source, to="compressed-tensors", output=tmp_path / "out", quantize="int3")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_quantized_sources_are_said_to_be_quantized_again(source: Path, tmp_path: Path) -> None:
    export(source, to="compressed-tensors", output=tmp_path / "a", quantize="int8")
    result = export(tmp_path / "a", to="compressed-tensors", output=tmp_path / "b", quantize="int8", check=True)
    assert any(entry.kind == "requantized" for entry in result.ledger)
    first, second = (load_torch(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)
