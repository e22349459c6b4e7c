"""What no GGUF file can hold: one coded error each, and nothing is left behind."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_llama4 import checkpoint_of

from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.export.gguf import exporter
from llamac.export.gguf.library import gguf_library
from llamac.models.checkpoint import Checkpoint, TokenizerSource
from llamac.models.llama.weights import expected_shapes
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint


def refused(source: Checkpoint | str, tmp_path: Path, **options: Any) -> LlamacError:
    for output in ("m.gguf", "folder"):
        with pytest.raises(LlamacError) as caught:
            export(source, to="gguf", output=tmp_path / output, **options)
        assert list(tmp_path.iterdir()) == []
    return caught.value


@pytest.mark.parametrize(("scheme", "near"), [("q4_k_m", "q4_k"), ("int4", ""), ("q2_k", "q"), ("q80", "q8_0")])
def test_a_type_that_is_not_written(scheme: str, near: str, tmp_path: Path) -> None:
    error = refused("tiny", tmp_path, quantize=scheme, random_weights=1)
    assert error.code == "LLC0923" and near in error.message() and "q6_k" in error.hint


def test_rows_of_which_no_block_can_be_made(tmp_path: Path) -> None:
    config = replace(preset("tiny"), hidden_size=40, intermediate_size=72, heads=2, kv_heads=1, head_dim=20)
    error = refused(random_checkpoint(config, 0), tmp_path, quantize="q4_k")
    assert error.message().startswith("LLC0947 --quantize: no matrix has rows of whole Q4_K blocks: they have 40, 72")
    assert error.hint == "choose f16, bf16 or f32"


@pytest.mark.parametrize("scheme", ["f16", "q8_0", "q4_k"])
def test_values_beyond_f16(scheme: str, tmp_path: Path) -> None:
    config = replace(preset("tiny"), hidden_size=256, heads=4, kv_heads=2, head_dim=64, dtype="f32")
    shapes = expected_shapes(config)
    arrays = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    arrays["layers.1.mlp.up"][3, 5] = -70000.0
    source = checkpoint_of(arrays, config)
    error = refused(source, tmp_path, quantize=scheme)
    assert (error.code, error.where) == ("LLC0947", "layers.1.mlp.up") and "7e+04" in error.reason
    export(source, to="gguf", output=tmp_path / "m.gguf", quantize="bf16", check=True)


def test_a_factor_beyond_f16(tmp_path: Path) -> None:
    """Integers are kept, but not with a scale that the block cannot hold."""
    from quantized_folders import int8_rows, quantize_folder
    from tiny_llama import TinyShape, make_reference, save_checkpoint

    shape = TinyShape(group=2, head_dim=64, width=128, inner=256)
    folder = save_checkpoint(make_reference(shape), shape, tmp_path / "source")

    def large(parts: dict[str, Any]) -> dict[str, Any]:
        parts["model.layers.1.mlp.up_proj.weight_scale"][3] = 1e5
        return parts

    config = {"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"]}
    quantize_folder(folder, config, int8_rows(True), edit=large)
    with pytest.raises(LlamacError, match=r"LLC0947 layers.1.mlp.up: a factor of 1e\+05 is no f16"):
        export(folder, to="gguf", output=tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_of_an_unknown_kind(tmp_path: Path) -> None:
    source = replace(random_checkpoint(preset("tiny"), 0), tokenizer=TokenizerSource("wordpiece", {}, {}))
    error = refused(source, tmp_path)
    assert error.message().startswith("LLC0946 tokenizer: a tokenizer of the kind 'wordpiece'")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    error = refused("tiny", tmp_path, random_weights=1)
    assert error.code == "LLC0948" and error.hint == "pip install 'llamac[export]'"


Damage = Any


def damaged(path: Path, how: str) -> None:
    """Change the file behind the exporter's back."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    tensor = tensors[{"swapped": "blk.0.attn_q.weight", "bit": "blk.1.ffn_up.weight"}.get(how, "rope_freqs.weight")]
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        data = bytearray(file.read(tensor.n_bytes))
        if how == "swapped":
            half = len(data) // 2
            data = data[half:] + data[:half]
        elif how == "bit":
            data[len(data) // 2] ^= 0x40
        else:
            data[-4:] = np.float32(7).tobytes()
        file.seek(int(tensor.data_offset))
        file.write(data)


@pytest.mark.parametrize(("how", "where"), [("swapped", "q8_0"), ("bit", "q8_0"), ("rope", "config")])
def test_the_check_sees_a_damaged_file(how: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = exporter.write

    def write_and_damage(request: Any, place: Path) -> None:
        write(request, place)
        damaged(place, how)

    monkeypatch.setattr(exporter, "write", write_and_damage)
    with pytest.raises(LlamacError, match=f"LLC0921 .*{where}"):
        export("tiny-llama3", to="gguf", output=tmp_path / "m.gguf", quantize="q8_0", random_weights=1, check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_library_is_the_one_that_is_installed() -> None:
    assert gguf_library() is gguf


def llama_cpp(handle: object) -> SimpleNamespace:
    """As much of `llama_cpp` as loading a file takes."""
    return SimpleNamespace(
        __version__="0",
        llama_log_callback=lambda log: log,
        llama_log_set=lambda log, data: None,
        llama_backend_init=lambda: None,
        llama_model_default_params=lambda: None,
        llama_model_load_from_file=lambda path, parameters: handle,
        llama_model_free=lambda model: None,
    )


def test_a_file_that_llama_cpp_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", llama_cpp(None))
    error = refused("tiny", tmp_path, random_weights=1, check=True)
    assert error.message().startswith("LLC0921 llama.cpp 0 loads it: it does not")


def test_without_llama_cpp_the_ledger_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    result = export("tiny", to="gguf", output=tmp_path / "m.gguf", random_weights=1, check=True)
    assert any(entry.what == "llama.cpp was not run" for entry in result.ledger)


def test_logits_of_llama_cpp_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamac.export.gguf import llama_cpp_check

    def noise(self: object, ids: list[int], vocabulary: int) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(ids), vocabulary)).astype(np.float32)

    monkeypatch.setitem(sys.modules, "llama_cpp", llama_cpp(1))
    monkeypatch.setattr(llama_cpp_check._Loaded, "logits", noise)
    error = refused("tiny", tmp_path, random_weights=1, check=True)
    assert (error.code, error.where) == ("LLC0921", "llama.cpp 0, logits") and "allowed 0.0" in error.reason
