"""Tiny Llamas exported in every type: read back, and compared with transformers on the values that the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from interpreted import captured_logits
from tiny_gguf import load_gguf_values
from tiny_llama import (
    TinyShape,
    make_reference,
    reference_logits,
    relative_error,
    rope_parameters,
    save_checkpoint,
    some_ids,
)

from llamac.export.entry import ExportResult, export
from llamac.models.sources import embedded_model, open_source

WIDE = TinyShape(group=2, head_dim=64, width=256, inner=512)
NARROW = TinyShape(group=2, head_dim=24, width=96, inner=160, tied=True)
"""Rows of whole blocks of 256, and rows of whole blocks of 32 alone; both with scaled rotary frequencies."""
QUANTIZED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q6_k")
LOST = {"keep": 0, "f32": 0, "f16": 1e-2, "bf16": 0.1, "q8_0": 0.3, "q6_k": 0.6}
"""Scheme -> largest difference of logits from the source's, of the largest; 1 unless given."""


def stored(path: Path) -> dict[str, Any]:
    """Name -> tensor, by the reference reader."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values_of(path: Path) -> dict[str, np.ndarray]:
    found = {n: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for n, t in stored(path).items()}
    found.pop("rope_freqs.weight", None)
    return found


def types(path: Path) -> dict[str, str]:
    return {name: tensor.tensor_type.name for name, tensor in stored(path).items()}


def whats(result: ExportResult, kind: str) -> list[tuple[str, str]]:
    return [(entry.where, entry.what) for entry in result.ledger if entry.kind == kind]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[TinyShape, tuple[Any, Path]]:
    made = {}
    for shape in (WIDE, NARROW):
        model = make_reference(shape)
        made[shape] = (model, save_checkpoint(model, shape, tmp_path_factory.mktemp(shape.name)))
    return made


@pytest.mark.parametrize("scheme", ["keep", "f32", "f16", "bf16", *QUANTIZED])
@pytest.mark.parametrize("shape", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_type(scheme: str, shape: TinyShape, sources: dict[TinyShape, tuple[Any, Path]], tmp_path: Path) -> None:
    model, folder = sources[shape]
    path = tmp_path / "m.gguf"
    result = export(folder, to="gguf", output=path, quantize=scheme, check=True)
    assert result.checks is not None and all(check.passed for check in result.checks)
    ids = some_ids(shape.vocab, 20)
    found, source = captured_logits(open_source(path), ids), reference_logits(model, ids)
    assert relative_error(found, source) <= max(LOST.get(scheme, 1), 1e-5)
    holds = make_reference(shape)
    load_gguf_values(holds, values_of(path), shape.head_dim)
    assert relative_error(found, reference_logits(holds, ids)) < 1e-5


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_simple_types_are_those_of_ggml(
    scheme: str, sources: dict[TinyShape, tuple[Any, Path]], tmp_path: Path
) -> None:
    """Bit for bit as the reference quantizes: the K types have no reference in the package."""
    model, folder = sources[WIDE]
    path = tmp_path / "m.gguf"
    export(folder, to="gguf", output=path, quantize=scheme)
    weight = model.state_dict()["model.layers.0.mlp.gate_proj.weight"].numpy()
    tensor = stored(path)["blk.0.ffn_gate.weight"]
    assert tensor.tensor_type.name == scheme.upper()
    if not scheme.endswith("_k"):
        assert np.array_equal(tensor.data, gguf.quants.quantize(weight, tensor.tensor_type))


def test_mixtures_are_llama_cpps(sources: dict[TinyShape, tuple[Any, Path]], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    export(sources[WIDE][1], to="gguf", output=path, quantize="q4_k")
    found = types(path)
    assert {found[f"blk.1.{name}.weight"] for name in ("attn_v", "ffn_down")} == {"Q6_K"}
    assert {found[f"blk.0.{name}.weight"] for name in ("attn_v", "ffn_down", "attn_q")} == {"Q4_K"}
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q6_K", "Q4_K")
    assert {found[name] for name in found if "norm" in name or "rope" in name} == {"F32"}
    result = export(sources[NARROW][1], to="gguf", output=path, quantize="q4_k", overwrite=True)
    found = types(path)
    assert (found["token_embd.weight"], found["blk.0.attn_q.weight"]) == ("Q8_0", "Q5_0")
    assert ("embed", "stored as Q8_0") in whats(result, "note")
    assert any(what == "stored as Q5_0" for _, what in whats(result, "note"))


def test_rows_that_no_block_divides_stay_floats(tmp_path: Path) -> None:
    shape = TinyShape(group=2, head_dim=24, width=96, inner=100)
    folder = save_checkpoint(make_reference(shape), shape, tmp_path / "source")
    result = export(folder, to="gguf", output=tmp_path / "m.gguf", quantize="q8_0", check=True)
    found = types(tmp_path / "m.gguf")
    assert (found["blk.0.ffn_down.weight"], found["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
    assert whats(result, "unquantized") == [("layers.0.mlp.down and 1 other", "stored as F16")]


def test_metadata(sources: dict[TinyShape, tuple[Any, Path]], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    export(sources[WIDE][1], to="gguf", output=path, quantize="q4_k")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    rope = rope_parameters(True)
    expected = {
        "general.architecture": "llama",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_Q4_K_M),
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": WIDE.context,
        "llama.embedding_length": WIDE.hidden,
        "llama.feed_forward_length": WIDE.inner,
        "llama.vocab_size": WIDE.vocab,
        "llama.attention.head_count": WIDE.heads,
        "llama.attention.head_count_kv": WIDE.kv_heads,
        "llama.attention.key_length": 64,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": rope["rope_theta"],
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "tokenizer.ggml.model": "none",
    }
    assert {key: fields[key] for key in expected} == expected
    assert stored(path)["rope_freqs.weight"].data[[0, -1]].tolist() == [1.0, rope["factor"]]


def test_a_gguf_source_comes_out_as_it_went_in(tmp_path: Path) -> None:
    """SmolLM2: not only its tensors, the whole file is the same."""
    path = tmp_path / "smollm2.gguf"
    export("smollm2-135m", to="gguf", output=path)
    original, found = stored(embedded_model()), stored(path)
    assert list(found) == list(original) and len(found) == 272
    for name, tensor in original.items():
        assert (found[name].tensor_type, found[name].data.tobytes()) == (tensor.tensor_type, tensor.data.tobytes())
    assert path.read_bytes() == embedded_model().read_bytes()
