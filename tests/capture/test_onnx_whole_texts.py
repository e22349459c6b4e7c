"""Graphs that compute whole texts, without a past: the import adds the cache, and the graph is the config door's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models.capture.captured import CapturedModel
from llamac.models.graph import build_graph
from llamac.models.onnx_import.entry import open_onnx
from llamac.passes.pipelines import plain_layers, raise_and_fuse
from llamac.transform.base import PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import run_pipeline

from .onnx_models import export_whole_texts

onnx = pytest.importorskip("onnx", reason="the exporters need onnx: pip install -e '.[test]'")
pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript: pip install -e '.[test]'")

Floats = NDArray[np.float32]
IDS = [3, 70, 0, 14, 14, 9, 55, 2, 31, 68, 1, 40]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "torchscript": ({"scaling": "llama3"}, {"dynamo": False}),
    "torchscript-sdpa-last": ({"attention": "sdpa", "tied": True}, {"dynamo": False, "last": True}),
    "torchscript-one-kv-head": ({"kv_heads": 1, "group": 4}, {"dynamo": False}),
    "torchscript-no-groups": ({"kv_heads": 3, "group": 1}, {"dynamo": False}),
    "dynamo": ({"scaling": "llama3"}, {"dynamo": True}),
    "dynamo-unmasked": ({}, {"dynamo": True, "masked": False}),
    "dynamo-sdpa": ({"attention": "sdpa"}, {"dynamo": True}),
    "dynamo-sdpa-unmasked": ({"attention": "sdpa", "scaling": "llama3"}, {"dynamo": True, "masked": False}),
}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if "dynamo" in name else name for name in CASES]


@pytest.fixture(scope="module")
def imported(
    make_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, CapturedModel]]:
    @cache
    def take(name: str) -> tuple[Path, CapturedModel]:
        model, options = CASES[name]
        path = export_whole_texts(make_llama(**model), tmp_path_factory.mktemp(name) / "model", **options)
        return path, open_onnx(path)

    return take


@pytest.mark.parametrize("name", NAMES)
def test_it_becomes_a_step_with_a_cache(
    make_llama: Callable[..., Any],
    imported: Callable[[str], tuple[Path, CapturedModel]],
    interpreted: Callable[..., Floats],
    name: str,
) -> None:
    """The config door's graph, and transformers' logits however the ids are cut into steps."""
    import torch

    model = imported(name)[1]
    texts = []
    for module in (model.fresh(), build_graph(model.config, model.checkpoint.tensors)):
        run_pipeline(module, raise_and_fuse(plain_layers(2)), PassContext(model.read_rows))
        texts.append(canonical_text(module))
    assert texts[0] == texts[1] and texts[0].count("= attention ") == 2
    with torch.no_grad():
        expected = make_llama(**CASES[name][0])(torch.tensor([IDS])).logits[0].numpy()
    for cuts in ((), (1,), (4, 5)):
        assert np.abs(interpreted(model, IDS, cuts) - expected).max() / np.abs(expected).max() < 1e-5


def test_what_was_added_is_in_the_ledger(imported: Callable[[str], tuple[Path, CapturedModel]]) -> None:
    said = {entry["what"] for entry in imported("torchscript-sdpa-last")[1].checkpoint.ledger}
    assert {"a step with keys and values of the past", "those of every token", "all ones"} <= said


def change_mask(model: Any) -> None:
    """A query that does not see itself."""
    next(node for node in model.graph.node if node.op_type == "LessOrEqual").op_type = "Less"


def change_order(model: Any) -> None:
    """Queries that see what comes after them."""
    node = next(node for node in model.graph.node if node.op_type == "LessOrEqual")
    node.op_type = "GreaterOrEqual"


def change_scores(model: Any) -> None:
    """An attention without a softmax."""
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Sigmoid"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_mask, "the mask of an attention is not that of whole texts"),
        (change_order, "the mask of an attention is not that of whole texts"),
        (change_scores, "it has 1 attentions in 2 layers"),
    ],
)
def test_another_attention_is_refused(
    imported: Callable[[str], tuple[Path, CapturedModel]],
    tmp_path: Path,
    change: Callable[[Any], None],
    reason: str,
) -> None:
    path = imported("torchscript")[0]
    shutil.copytree(path.parent, tmp_path / "m")
    model = onnx.load(path)
    change(model)
    for node in model.graph.node:
        if node.op_type == "Sigmoid" and "Softmax" in node.name:
            del node.attribute[:]
    onnx.save(model, tmp_path / "m" / "model.onnx")
    with pytest.raises(LlamacError) as caught:
        open_onnx(tmp_path / "m" / "model.onnx")
    assert caught.value.message().startswith(f"LLC0937 model.onnx: {reason}")
