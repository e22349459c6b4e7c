"""ONNX models of three exporters come back to the graph of the config door, and compute what transformers computes."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llamac
from llamac.models.capture.captured import CapturedModel
from llamac.models.graph import build_graph
from llamac.models.onnx_import.entry import open_onnx
from llamac.models.sources import open_graph, open_source
from llamac.passes.pipelines import plain_layers, raise_and_fuse
from llamac.runtime.loader import load
from llamac.transform.base import PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import run_pipeline

from .onnx_models import build_genai, export_plain, export_torch, logits_of

pytest.importorskip("onnx", reason="the exporters need onnx: pip install -e '.[test]'")
pytest.importorskip("onnxscript", reason="torch.onnx.export and the builder need onnxscript: pip install -e '.[test]'")

Floats = NDArray[np.float32]
IDS = [3, 70, 0, 14, 14, 9, 55, 2, 31, 68, 1, 40]
FIXTURES = Path(__file__).parent / "onnx"

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch": ("dynamo", {"scaling": "llama3"}),
    "torch-tied": ("dynamo", {"tied": True, "attention": "sdpa"}),
    "torch-one-kv-head": ("dynamo", {"kv_heads": 1, "group": 4, "attention": "sdpa"}),
    "torchscript": ("torchscript", {"scaling": "llama3", "attention": "sdpa"}),
    "torchscript-tied-linear": ("torchscript", {"tied": True, "scaling": "linear"}),
    "genai": ("fp32", {"scaling": "llama3"}),
    "genai-tied": ("fp32", {"tied": True, "group": 1, "kv_heads": 3}),
    "genai-int4": ("int4", {}),
    "genai-int4-zeros": ("int4", {"options": ("int4_is_symmetric=false",)}),
    "genai-int8-zeros": ("int4", {"options": ("int4_is_symmetric=false", "int4_algo_config=k_quant_mixed")}),
}


SLOW = ("torch", "torch-tied", "torch-one-kv-head")
"""torch.export takes seconds, however small the model."""
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]


@pytest.fixture(scope="module")
def imported(
    make_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, CapturedModel]]:
    """A model of the table, exported and imported once."""

    @cache
    def take(name: str) -> tuple[Path, CapturedModel]:
        kind, options = MODELS[name]
        folder = tmp_path_factory.mktemp(name)
        if kind in ("dynamo", "torchscript"):
            path = export_torch(make_llama(**options), folder / "model", dynamo=kind == "dynamo")
        else:
            wanted = {key: value for key, value in options.items() if key != "options"}
            path = build_genai(make_llama(**wanted), folder, kind, options.get("options", ()))
        return path, open_onnx(path)

    return take


def raised(module: Any, model: CapturedModel) -> str:
    run_pipeline(module, raise_and_fuse(plain_layers(model.config.layers)), PassContext(model.read_rows))
    return canonical_text(module)


@pytest.mark.parametrize("name", NAMES)
def test_both_doors_end_in_the_same_graph(imported: Callable[..., tuple[Path, CapturedModel]], name: str) -> None:
    _, model = imported(name)
    onnx_door = raised(model.fresh(), model)
    config_door = raised(build_graph(model.config, model.checkpoint.tensors), model)
    difference = "\n".join(difflib.unified_diff(config_door.splitlines(), onnx_door.splitlines(), lineterm="", n=1))
    assert onnx_door == config_door, difference[:3000]
    assert onnx_door.count("= attention ") == 2 and onnx_door.count("= rms_norm ") == 5


@pytest.mark.parametrize("cuts", [(), (1,), (4, 5)], ids=["whole", "one-then-rest", "three-steps"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(
    make_llama: Callable[..., Any],
    imported: Callable[..., tuple[Path, CapturedModel]],
    interpreted: Callable[..., Floats],
    name: str,
    cuts: tuple[int, ...],
) -> None:
    """Those of ONNX Runtime where the exporter rounded the weights to 4 bits."""
    import torch

    path, model = imported(name)
    c = model.config
    if MODELS[name][0] == "int4":
        expected = logits_of(path, IDS, c.layers, c.kv_heads, c.head_dim)
    else:
        with torch.no_grad():
            expected = make_llama(**MODELS[name][1])(torch.tensor([IDS])).logits[0].numpy()
    error = np.abs(interpreted(model, IDS, cuts) - expected).max() / np.abs(expected).max()
    assert error < 1e-5


def test_the_compiled_model_gives_the_logits_of_transformers(
    make_llama: Callable[..., Any], imported: Callable[..., tuple[Path, CapturedModel]], tmp_path: Path
) -> None:
    import torch

    path, _ = imported("genai")
    with torch.no_grad():
        expected = make_llama(**MODELS["genai"][1])(torch.tensor([IDS])).logits[0].numpy()
    for source in (path, path.parent):
        result = llamac.compile(source, output=tmp_path / "model.llamac", quantize="f32")
        with load(result.path) as model:
            error = np.abs(model.logits(IDS) - expected).max() / np.abs(expected).max()
        assert error < 1e-5
    assert result.manifest["model"]["source_format"] == "onnx"


def test_weights_stay_in_the_files_of_the_model(
    make_llama: Callable[..., Any], imported: Callable[..., tuple[Path, CapturedModel]]
) -> None:
    path, model = imported("genai")
    held = make_llama(**MODELS["genai"][1])
    expected = held.model.layers[1].mlp.up_proj.weight.detach().numpy()
    stored = model.checkpoint.tensors["layers.1.mlp.up"]
    assert stored.file == path.parent / "model.onnx.data"
    np.testing.assert_array_equal(model.read_rows("layers.1.mlp.up", 3, 7).view("<f4"), expected[3:7])
    fused = model.checkpoint.tensors["layers.0.attn.k"]
    assert fused.stored_name == "model.layers.0.attn.qkv_proj.MatMul.weight"
    keys = held.model.layers[0].self_attn.k_proj.weight.detach().numpy()
    np.testing.assert_array_equal(model.read_rows("layers.0.attn.k", 0, len(keys)).view("<f4"), keys)


def test_what_the_graph_was_narrowed_to_is_in_the_ledger(
    imported: Callable[..., tuple[Path, CapturedModel]],
) -> None:
    _, model = imported("torchscript")
    said = {(e["where"], e["what"]) for e in model.checkpoint.ledger}
    assert {("attention_mask", "all ones"), ("input_ids", "a batch of 1")} <= said
    origin = next(e["what"] for e in model.checkpoint.ledger if e["where"] == "model.onnx")
    assert origin.startswith("made by pytorch") and "ai.onnx" in origin


def test_the_head_is_what_the_graph_has(imported: Callable[..., tuple[Path, CapturedModel]]) -> None:
    """An exporter that copies a tied table makes it a matrix of its own, which the ledger says."""
    _, model = imported("torchscript-tied-linear")
    noted = any(e["where"] == "head" for e in model.checkpoint.ledger)
    assert ("head" in model.checkpoint.tensors) == noted == (not model.config.tied_head)


def test_the_tokenizer_beside_the_model_comes_along(imported: Callable[..., tuple[Path, CapturedModel]]) -> None:
    for name in ("torchscript", "genai"):
        path, model = imported(name)
        assert model.checkpoint.tokenizer is not None
        assert (model.checkpoint.generation.bos_id, model.checkpoint.generation.stop_ids) == (1, (2,))
        assert isinstance(open_graph(path), CapturedModel)
        assert open_source(path.parent).config == model.config


def test_the_rotary_base_is_read_from_the_table_where_no_config_says_it(
    imported: Callable[..., tuple[Path, CapturedModel]],
) -> None:
    path, model = imported("genai-int4")
    assert not (path.parent / "config.json").exists()
    assert (model.config.rope_theta, model.config.rope_scaling) == (10000.0, None)
    assert (model.config.rms_norm_eps, model.config.intermediate_size) == (1e-5, 60)
    assert any("rope" in e["where"] for e in model.checkpoint.ledger)


@pytest.mark.slow
def test_a_llama_written_by_hand(interpreted: Callable[..., Floats], tmp_path: Path) -> None:
    """Names of inputs that say nothing, no batch axis, no mask: keys and values go by their order."""
    import torch
    from plain_llama import CONFIG, PlainLlama

    plain = PlainLlama().eval().requires_grad_(False)
    path = export_plain(plain, CONFIG, tmp_path / "model")
    model = open_onnx(path)
    onnx_door = raised(model.fresh(), model)
    assert onnx_door == raised(build_graph(model.config, model.checkpoint.tensors), model)
    empty = torch.zeros(CONFIG.kv_heads, 0, CONFIG.head_dim)
    ids = [number % CONFIG.vocab_size for number in IDS]
    expected = plain(torch.tensor(ids), torch.arange(len(ids)), *[empty] * (2 * CONFIG.layers))[0].numpy()
    for cuts in ((), (4, 5)):
        assert np.abs(interpreted(model, ids, cuts) - expected).max() / np.abs(expected).max() < 1e-5
