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
    Packer,
    Parts,
    awq,
    compressed_words,
    fp8_rows,
    fp8_tensor,
    gptq,
    int8_rows,
    quantize_folder,
)  # fmt: skip
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
INT8_ACTIVATIONS = 0.05
"""The CPU's integer kernels round activations to 8 bits; the weights are exact."""
SHAPE = TinyShape(group=2, head_dim=64, width=128, inner=256, scaled=False)
IDS = some_ids(SHAPE.vocab, 12)

COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head", "re:.*embed.*"]}
LAYOUTS: dict[str, tuple[dict[str, Any], Packer, str]] = {
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fp8_rows(np.float32), "e4m3fn"),
    "float-quantized": ({**COMPRESSED, "format": "float-quantized"}, fp8_rows(BF16), "e4m3fn"),
    "float-quantized tensor": ({**COMPRESSED, "format": "float-quantized"}, fp8_tensor((1,)), "e4m3fn"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, fp8_tensor(()), "e4m3fn"),
    "fp8 static": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8_tensor(()), "e4m3fn"),
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
    result = llamac.compile(folder, output=tmp_path / "m.llamac", tokenizer=False, validate=False)
    expected = kernel_logits(checkpoint, kernel_graph(checkpoint, "keep"), IDS)
    with llamac.load(result.path, threads=1) as model:
        assert relative_error(model.logits(IDS), expected) < TOLERANCE_F32
