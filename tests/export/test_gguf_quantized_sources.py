"""Quantized Hugging Face folders as GGUF: integers that a block can hold stay, whatever packed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from quantized_folders import BF16, awq, compressed_words, fp8_rows, gptq, int8_rows, quantize_folder
from tiny_gguf import to_pairs
from tiny_llama import TinyShape, make_reference, save_checkpoint

from llamac.export.entry import ExportResult, export
from llamac.models.sources import embedded_model

SHAPE = TinyShape(group=2, head_dim=64, width=128, inner=256, scaled=False, tied=True)
COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head", "re:.*embed.*"]}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
CASES: dict[str, tuple[dict[str, Any], Any, str, str]] = {
    # name             config                                     packer                                  type    kept
    "gptq": (GPTQ, gptq(4, 32, True), "Q4_0", "exactly"),
    "gptq rows": (GPTQ | {"group_size": -1}, gptq(4, 0, True), "Q4_0", "exactly"),
    "gptq 8 bits": (GPTQ | {"bits": 8, "group_size": 128}, gptq(8, 128, True), "Q8_0", "exactly"),
    "bf16 scales": (COMPRESSED | {"format": "pack-quantized"}, compressed_words(4, 32, True, BF16), "Q4_0", "exactly"),
    "f16 scales": (COMPRESSED, compressed_words(4, 128, True, np.float16), "Q4_0", "exactly"),
    "int8 rows": (COMPRESSED | {"format": "int-quantized"}, int8_rows(True), "Q8_0", "integers"),
    "gptq zeros": (GPTQ | {"sym": False}, gptq(4, 32, False), "Q4_1", "integers"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, awq(128), "Q4_1", "integers"),
    "int8 zeros": (COMPRESSED | {"format": "int-quantized"}, int8_rows(False), "Q8_0", "values"),
    "fp8": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fp8_rows(np.float32), "Q8_0", "values"),
}  # fmt: skip
"""`kept`: to the last bit; integers with factors rounded to f16; or only values, rounded again."""
GATE = "model.layers.0.mlp.gate_proj.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def tensor(path: Path, name: str) -> tuple[str, np.ndarray]:
    found = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return found.tensor_type.name, gguf.quants.dequantize(found.data, found.tensor_type)


def folder_of(case: str, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    config, packer, _, _ = CASES[case]
    folder = save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path / "source")
    return folder, quantize_folder(folder, config, packer)


def requantized(result: ExportResult) -> list[str]:
    return [entry.what for entry in result.ledger if entry.kind == "requantized"]


@pytest.mark.parametrize("case", CASES)
def test_keep(case: str, tmp_path: Path) -> None:
    folder, values = folder_of(case, tmp_path)
    path = tmp_path / "m.gguf"
    result = export(folder, to="gguf", output=path, check=True)
    assert result.checks is not None and all(check.passed for check in result.checks)
    _, _, kind, kept = CASES[case]
    for name, wanted in (("blk.0.ffn_gate.weight", values[GATE]), ("blk.1.attn_q.weight", to_pairs(values[QUERY], 64))):
        stored, found = tensor(path, name)
        assert stored == kind
        apart = np.abs(found - wanted).max() / np.abs(wanted).max()
        assert apart == 0 if kept == "exactly" else apart <= (2**-10 if kept == "integers" else 5e-3)
    said = {"exactly": [], "integers": ["scales or minima rounded"], "values": ["rounded again to Q8_0"]}
    assert requantized(result) == said[kept]


def test_a_scheme_keeps_integers_that_its_blocks_hold(tmp_path: Path) -> None:
    """Four bits fit into Q4_0 as they are, and into Q8_0; Q4_K has scales of its own."""
    folder, values = folder_of("gptq", tmp_path)
    for scheme in ("q4_0", "q8_0"):
        result = export(folder, to="gguf", output=tmp_path / f"{scheme}.gguf", quantize=scheme, check=True)
        assert np.array_equal(tensor(tmp_path / f"{scheme}.gguf", "blk.0.ffn_gate.weight")[1], values[GATE])
        assert requantized(result) == []
    result = export(folder, to="gguf", output=tmp_path / "q5_1.gguf", quantize="q5_1", check=True)
    assert requantized(result) == ["rounded again to Q5_1"]


def test_a_gguf_source_rounded_again_is_said_to_be(tmp_path: Path) -> None:
    result = export(embedded_model(), to="gguf", output=tmp_path / "m.gguf", quantize="q4_0")
    (entry,) = [entry for entry in result.ledger if entry.kind == "requantized"]
    assert entry.where.endswith("and 209 others") and "q4_1, which Q4_0 blocks cannot hold" in entry.reason
    assert tensor(tmp_path / "m.gguf", "token_embd.weight")[0] == "Q8_0"
