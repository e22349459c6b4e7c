"""Quantized Hugging Face checkpoints: every layout's exact values, kept as they are through to the compiled code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import captured_logits, kernel_graph, kernel_logits
from quantized_folders import (
    BF16,
    FP8,
    Packer,
    Parts,
    awq,
    compressed_words,
    fp8_rows,
    fp8_tensor,
    gptq,
    int8_rows,
    quantize_folder,
)
from safetensors.numpy import load_file, save_file
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids

import llamac
from llamac.certificate import certify
from llamac.errors import LlamacError
from llamac.ir.evaluator import WeightEvaluator
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization

TOLERANCE_F32 = 1e-5
INT8_ACTIVATIONS = 8e-2
"""The CPU's integer kernels round activations to 8 bits; the weights are exact."""
ROUNDING_FLIP = 3e-2
"""The last bit of an activation decides how it rounds to 8 bits, and then differs between two correct sums."""
SHAPE = TinyShape(group=2, head_dim=64, width=128, inner=256, scaled=False)
IDS = some_ids(SHAPE.vocab, 12)

COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head", "re:.*embed.*"]}
LAYOUTS: dict[str, tuple[dict[str, Any], Packer, str]] = {
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fp8_rows(np.float32), "e4m3fnx2"),
    "float-quantized": ({**COMPRESSED, "format": "float-quantized"}, fp8_rows(BF16), "e4m3fnx2"),
    "float-quantized tensor": ({**COMPRESSED, "format": "float-quantized"}, fp8_tensor((1,)), "e4m3fnx2"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, fp8_tensor(()), "e4m3fnx2"),
    "fp8 static": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8_tensor(()), "e4m3fnx2"),
    "int-quantized": ({**COMPRESSED, "format": "int-quantized"}, int8_rows(True), "i8g128s32"),
    "int-quantized asymmetric": ({**COMPRESSED, "format": "int-quantized"}, int8_rows(False), "i8g128s32m32"),
    "pack-quantized": ({**COMPRESSED, "format": "pack-quantized"}, compressed_words(4, 32, True), "i4g32s32"),
    "pack-quantized f16": (COMPRESSED, compressed_words(4, 128, True, np.float16), "i4g128s16"),
    "pack-quantized asymmetric": (COMPRESSED, compressed_words(4, 64, False), "u4g64s32m32"),
    "pack-quantized rows": (COMPRESSED, compressed_words(4, 0, True), "i4g128s32"),
    "pack-quantized 8 bits": (COMPRESSED, compressed_words(8, 32, False), "u8g32s32m32"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}, gptq(4, 32, True), "i4g32s16"),
    "gptq asymmetric": (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "desc_act": False},
        gptq(4, 64, False),
        "u4g64s16m32",
    ),
    "gptq rows": ({"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True}, gptq(4, 0, True), "i4g128s16"),
    "gptq 8 bits": (
        {"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": True},
        gptq(8, 128, True),
        "i8g128s16",
    ),
    "gptq v2": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"},
        gptq(4, 32, False, first_version=False),
        "u4g32s16m32",
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, awq(128), "u4g128s16m32"),
    "awq g32": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM"}, awq(32), "u4g32s16m32"),
}
every_layout = pytest.mark.parametrize("layout", list(LAYOUTS))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path_factory.mktemp("plain") / "m")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "m"))


def refusal(folder: Path) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        open_source(folder)
    return caught.value


def all_values(checkpoint: Checkpoint) -> Parts:
    """Every weight as the module defines it, under its Hugging Face name."""
    module = build_graph(checkpoint.config, checkpoint.tensors)
    evaluator = WeightEvaluator(checkpoint.read_rows)
    found: Parts = {}
    for name, tensor in checkpoint.tensors.items():
        for part in ("weight", "weight_packed", "qweight", "weight_scale", "scales"):
            stored = tensor.stored_name.removesuffix(f".{part}")
            if stored != tensor.stored_name:
                found[f"{stored}.weight"] = evaluator.whole(module.weights[name]).astype(np.float32)
    return found


@every_layout
def test_values_and_logits(layout: str, folder: Path) -> None:
    quantization, pack, weight_format = LAYOUTS[layout]
    expected = quantize_folder(folder, quantization, pack)
    checkpoint = open_source(folder)
    found = all_values(checkpoint)
    assert set(found) == set(expected)
    for name, values in expected.items():
        # scale * q + (-scale * zero) and scale * (q - zero): equal in exact arithmetic, and in f32 to its last bits.
        assert np.allclose(found[name], values, rtol=0, atol=1e-6 * np.abs(values).max()), name
    model = make_reference(SHAPE)
    model.load_state_dict({name: torch.from_numpy(np.asarray(v, np.float32)) for name, v in expected.items()})
    reference = reference_logits(model, IDS)
    assert relative_error(captured_logits(checkpoint, IDS), reference) < TOLERANCE_F32
    compiled = kernel_graph(checkpoint, "keep")
    formats = {p.format for p in compiled.placed if ".mlp.down" in p.weight.name}
    assert formats == {weight_format}
    assert relative_error(kernel_logits(checkpoint, compiled, IDS), reference) < INT8_ACTIVATIONS
    floats = kernel_graph(checkpoint, "f32", "f32")
    assert relative_error(kernel_logits(checkpoint, floats, IDS), reference) < TOLERANCE_F32


@every_layout
def test_the_pipeline_is_certified_on_a_shrunken_model(layout: str, folder: Path) -> None:
    quantization, pack, _ = LAYOUTS[layout]
    quantize_folder(folder, quantization, pack)
    certificate = certify(open_source(folder), parse_quantization("keep"), "f16")
    assert all(verdict["passed"] for verdict in certificate["verdicts"])
    json.dumps(certificate)


@pytest.mark.parametrize("layout", ["fbgemm", "pack-quantized asymmetric", "gptq asymmetric", "awq", "int-quantized"])
def test_compiled_code(layout: str, folder: Path, tmp_path: Path) -> None:
    """The artifact computes what the kernel-level graph means."""
    quantization, pack, _ = LAYOUTS[layout]
    quantize_folder(folder, quantization, pack)
    checkpoint = open_source(folder)
    result = llamac.compile(folder, output=tmp_path / "m.llamac", kv="f32", tokenizer=False, validate=False)
    expected = kernel_logits(checkpoint, kernel_graph(checkpoint, "keep", "f32"), IDS)
    with llamac.load(result.path, threads=1) as model:
        found = model.logits(IDS)
    assert relative_error(found, expected) < ROUNDING_FLIP


def _words(checkpoint: Checkpoint) -> str:
    return " / ".join(f"{item['where']}: {item['what']}" for item in checkpoint.ledger)


def test_what_is_not_quantized_is_read_as_it_is(folder: Path) -> None:
    """405B FP8 leaves attention and the first layer alone."""
    quantization = LAYOUTS["fbgemm"][0] | {"modules_to_not_convert": ["model.layers.0.mlp", "lm_head"]}
    quantize_folder(folder, quantization, fp8_rows(np.float32), skipped="self_attn")
    checkpoint = open_source(folder)
    encodings = {name: t.encoding for name, t in checkpoint.tensors.items()}
    assert encodings["layers.0.attn.q"] == "f32" and encodings["layers.1.mlp.up"] == "fp8-row-sym-f32"
    assert "activations clipped to 1200.0" in _words(checkpoint) and "8 matrices are not quantized" in _words(
        checkpoint
    )
    compiled = kernel_graph(checkpoint, "keep")
    formats = {p.weight.name.split(".e4")[0]: p.format for p in compiled.placed}
    assert {"e4m3fnx2", "f32"} <= set(formats.values())


def test_caches_and_activations_are_noted(folder: Path) -> None:
    quantization = COMPRESSED | {
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {}, "input_activations": {"num_bits": 8}}},
    }
    one = np.ones(1, np.float32)
    scales = {"model.layers.0.self_attn.k_proj.k_scale": one, "model.layers.0.self_attn.v_scale": one}
    quantize_folder(folder, quantization, fp8_rows(BF16), edit=lambda stored: stored | scales)
    words = _words(open_source(folder))
    assert "kv_cache_scheme: the key-value cache quantized" in words and "group_0: activations quantized" in words
    assert "v_scale" in words and "k_scale" in words


def test_modelopt_keeps_its_config_beside(folder: Path) -> None:
    quantize_folder(folder, {}, fp8_tensor(()))
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert refusal(folder).code == "LLC0207"
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    assert open_source(folder).tensors["layers.0.attn.o"].encoding == "fp8-tensor-sym-f32"


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}}, "rotated"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 24, "sym": True}, "groups of 24"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero points"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "block"),
        ({"bits": 4}, "method None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_methods_that_are_refused(quantization: dict[str, Any], words: str, folder: Path) -> None:
    quantize_folder(folder, quantization, gptq(4, 32, True))
    error = refusal(folder)
    assert error.code == "LLC0222" and words in error.reason and error.hint


def _damaged(folder: Path, layout: str, change: Any) -> LlamacError:
    """The refusal of a checkpoint whose parts of one matrix went through `change`."""
    quantization, pack, _ = LAYOUTS[layout]
    module = "model.layers.1.mlp.up_proj."

    def edit(stored: Parts) -> Parts:
        parts = {name.removeprefix(module): value for name, value in stored.items() if name.startswith(module)}
        others = {name: value for name, value in stored.items() if not name.startswith(module)}
        return others | {module + part: value for part, value in change(parts).items()}

    quantize_folder(folder, quantization, pack, edit=edit)
    return refusal(folder)


@pytest.mark.parametrize(
    ("layout", "change", "code", "where"),
    [
        ("fbgemm", lambda p: {"weight": p["weight"]}, "LLC0206", "layers.1.mlp.up"),
        ("fbgemm", lambda p: p | {"weight_scale": p["weight_scale"][:-1]}, "LLC0208", "layers.1.mlp.up"),
        ("fbgemm", lambda p: p | {"weight_scale": np.ones((256, 2), np.float32)}, "LLC0222", "layers.1.mlp.up"),
        ("fbgemm", lambda p: p | {"weight": p["weight"][:, 1:]}, "LLC0208", "layers.1.mlp.up.quants"),
        ("fbgemm", lambda p: p | {"weight_scale": p["weight_scale"].astype(np.int32)}, "LLC0209", "layers.1.mlp.up"),
        ("fbgemm", lambda p: p | {"lora_A": np.ones(3, np.float32)}, "LLC0207", "layers.1.mlp.up"),
        ("fbgemm", lambda p: p | {"weight": p["weight"].view(np.uint8)}, "LLC0209", "layers.1.mlp.up"),
        ("pack-quantized", lambda p: p | {"weight_packed": p["weight_packed"][:, 1:]}, "LLC0222", "layers.1.mlp.up"),
        ("pack-quantized", lambda p: p | {"weight_scale": p["weight_scale"][:, :3]}, "LLC0222", "layers.1.mlp.up"),
        ("pack-quantized", lambda p: {"weight_packed": p["weight_packed"]}, "LLC0206", "layers.1.mlp.up"),
        ("gptq", lambda p: p | {"g_idx": p["g_idx"][::-1]}, "LLC0222", "layers.1.mlp.up"),
        ("gptq", lambda p: p | {"g_idx": p["g_idx"][1:]}, "LLC0208", "layers.1.mlp.up"),
        ("gptq", lambda p: p | {"bias": p["bias"] + 1}, "LLC0307", "layers.1.mlp.up"),
        ("gptq", lambda p: p | {"qzeros": p["qzeros"][1:]}, "LLC0208", "layers.1.mlp.up.zeros"),
        ("gptq", lambda p: p | {"qweight": p["qweight"].T}, "LLC0208", "layers.1.mlp.up.words"),
        ("gptq", lambda p: {k: v for k, v in p.items() if k != "scales"}, "LLC0206", "layers.1.mlp.up"),
        ("gptq", lambda p: {k: v for k, v in p.items() if k != "qzeros"}, "LLC0206", "layers.1.mlp.up"),
        ("awq", lambda p: p | {"qweight": p["qweight"][:, 1:]}, "LLC0208", "layers.1.mlp.up.words"),
    ],
)
def test_damaged_parts(layout: str, change: Any, code: str, where: str, folder: Path) -> None:
    error = _damaged(folder, layout, change)
    assert (error.code, error.where) == (code, where) and error.hint


def test_zero_points_that_contradict_the_config(folder: Path) -> None:
    """`sym: true` lets zero points be left out; they are looked at all the same when the weights are packed."""
    quantize_folder(folder, LAYOUTS["gptq"][0], gptq(4, 32, False))
    with pytest.raises(LlamacError, match=r"LLC0224 .*the zero points are not all 8"):
        all_values(open_source(folder))


def test_scales_that_are_not_finite(folder: Path) -> None:
    def pack(w: Any) -> Any:
        parts, values = fp8_rows(np.float32)(w)
        parts["weight_scale"][1] = np.inf
        return parts, values

    quantize_folder(folder, LAYOUTS["fbgemm"][0], pack)
    with pytest.raises(LlamacError, match="LLC0219"):
        all_values(open_source(folder))


def test_quantized_again(folder: Path) -> None:
    quantize_folder(folder, LAYOUTS["awq"][0], awq(128))
    checkpoint = open_source(folder)
    compiled = kernel_graph(checkpoint, "int8")
    assert {e.kind for e in compiled.context.ledger if "mlp" in e.where} == {"requantized"}
    reference = captured_logits(checkpoint, IDS)
    assert relative_error(kernel_logits(checkpoint, compiled, IDS), reference) < INT8_ACTIVATIONS


def test_compressed_tensors_itself(folder: Path) -> None:
    """The library's own packer and its own decompression, where it is installed."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    def pack(w: Any) -> tuple[Parts, Any]:
        _, values = compressed_words(4, 64, False, np.float32)(w)
        parts, _ = compressed_words(4, 64, False, np.float32)(w)
        x = torch.from_numpy(np.array(parts["weight_packed"]))
        shape = torch.Size(w.shape)
        quants = unpack_from_int32(x, 4, shape)
        assert torch.equal(pack_to_int32(quants, 4), x)
        zero_words = torch.from_numpy(np.array(parts["weight_zero_point"]))
        zeros = unpack_from_int32(zero_words, 4, torch.Size(parts["weight_scale"].shape), packed_dim=0)
        assert torch.equal(pack_to_int32(zeros.contiguous(), 4, packed_dim=0), zero_words)
        scale = np.repeat(parts["weight_scale"], 64, axis=1)
        theirs = (quants.numpy().astype(np.float32) - np.repeat(zeros.numpy(), 64, axis=1)) * scale
        assert np.array_equal(theirs, values)
        return parts, theirs

    expected = quantize_folder(folder, COMPRESSED, pack)
    found = all_values(open_source(folder))
    assert all(np.allclose(found[name], values, rtol=0, atol=1e-6) for name, values in expected.items())


def test_fp8_experts_of_llama4(tmp_path: Path) -> None:
    """Maverick's FP8 release: routed experts alone, fused, with a scale for each output of each expert."""
    from tiny_llama4 import Tiny4, make_model
    from tiny_llama4 import reference_logits as logits4

    model = make_model(Tiny4())
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    stored: Parts = {}
    for name, value in weights.items():
        if not name.endswith(("gate_up_proj", "down_proj")) or value.ndim != 3:
            stored[name] = value
            continue
        scale = np.abs(value).max(axis=1, keepdims=True) / np.float32(448)
        stored[name] = np.clip(value / scale, -448, 448).astype(FP8)
        down = name.endswith("down_proj")
        stored[f"{name}_scale"] = (scale.transpose(0, 2, 1) if down else scale).astype(BF16)
        values = stored[name].astype(np.float32) * scale.astype(BF16).astype(np.float32)
        model.state_dict()[name].copy_(torch.from_numpy(values))
    model.save_pretrained(tmp_path / "m")
    save_file({k: np.ascontiguousarray(v) for k, v in stored.items()}, tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    checkpoint = open_source(tmp_path / "m")
    assert checkpoint.tensors["layers.1.moe.down"].encoding == "fp8-row-sym-bf16"
    assert checkpoint.tensors["layers.1.moe.shared.down"].encoding == "f32"
    assert relative_error(captured_logits(checkpoint, IDS), logits4(model, IDS)) < TOLERANCE_F32


def test_packed_experts_stored_one_by_one(tmp_path: Path) -> None:
    """compressed-tensors Scout: four bits, every expert's matrices by themselves."""
    from tiny_llama4 import Tiny4, make_model
    from tiny_llama4 import reference_logits as logits4

    model, pack, stored = make_model(Tiny4()), compressed_words(4, 32, True), {}
    for name, value in model.state_dict().items():
        if value.ndim != 3:
            stored[name] = value.numpy()
            continue
        place, _, kind = name.rpartition(".")
        for index, expert in enumerate(value):
            halves = expert.chunk(2, dim=1) if kind == "gate_up_proj" else (expert,)
            for matrix, module in zip(halves, ("gate_proj", "up_proj") if len(halves) == 2 else (kind,), strict=True):
                parts, exact = pack(np.ascontiguousarray(matrix.T.numpy()))
                stored |= {f"{place}.{index}.{module}.{part}": array for part, array in parts.items()}
                matrix.copy_(torch.from_numpy(exact.T))
    model.save_pretrained(tmp_path / "m")
    save_file({k: np.ascontiguousarray(v) for k, v in stored.items()}, tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"quantization_config": COMPRESSED}))
    checkpoint = open_source(tmp_path / "m")
    assert checkpoint.tensors["layers.3.moe.up"].encoding == "ct4-g32-sym-bf16"
    assert relative_error(captured_logits(checkpoint, IDS), logits4(model, IDS)) < TOLERANCE_F32


def test_the_405b_that_stores_its_heads_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first Hugging Face upload did, in small."""
    from llamac.models.llama import kv_heads

    monkeypatch.setattr(kv_heads, "DOUBLED", (128, 4, 4))

    def doubled(stored: Parts) -> Parts:
        return {
            name: value.reshape(2, 1, 64, 128).repeat(2, 1).reshape(256, 128) if "k_proj" in name or "v_proj" in name
            else value for name, value in stored.items()
        }  # fmt: skip

    expected = captured_logits(open_source(folder), IDS)
    save_file({k: np.ascontiguousarray(v) for k, v in doubled(load_file(folder / "model.safetensors")).items()},
              folder / "model.safetensors")  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    checkpoint = open_source(folder)
    assert checkpoint.config.kv_heads == 2
    assert relative_error(captured_logits(checkpoint, IDS), expected) == 0
