"""A model that optimum exported (make_optimum_model.py): the config door's graph, and transformers' logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llamac
from llamac.errors import LlamacError
from llamac.models.graph import build_graph
from llamac.models.onnx_import.entry import open_onnx
from llamac.passes.pipelines import plain_layers, raise_and_fuse
from llamac.runtime.loader import load
from llamac.transform.base import PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import run_pipeline

FOLDER = Path(__file__).parent / "optimum_model"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
IDS, LOGITS = EXPECTED["ids"], np.array(EXPECTED["logits"], np.float32)


def relative_error(found: NDArray[Any]) -> float:
    return float(np.abs(found - LOGITS).max() / np.abs(LOGITS).max())


def test_both_doors_end_in_the_same_graph() -> None:
    model = open_onnx(FOLDER / "model.onnx")
    texts = []
    for module in (model.fresh(), build_graph(model.config, model.checkpoint.tensors)):
        run_pipeline(module, raise_and_fuse(plain_layers(2)), PassContext(model.read_rows))
        texts.append(canonical_text(module))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("cuts", [(), (1,), (4, 5)], ids=["whole", "one-then-rest", "three-steps"])
def test_logits_are_those_of_transformers(interpreted: Callable[..., Any], cuts: tuple[int, ...]) -> None:
    assert relative_error(interpreted(open_onnx(FOLDER / "model.onnx"), IDS, cuts)) < 1e-5


def test_it_compiles_and_speaks(tmp_path: Path) -> None:
    result = llamac.compile(FOLDER, output=tmp_path / "model.llamac", quantize="f32")
    with load(result.path) as model:
        assert relative_error(model.logits(IDS)) < 1e-5
        assert model.encode("!") == [3] or model.encode("!")[-1] == 3
        assert len(model.generate("!", max_new_tokens=4, ignore_stop_ids=True).token_ids) == 4
    assert result.manifest["model"]["source_format"] == "onnx"


def test_weights_may_lie_in_a_file_beside_the_model(tmp_path: Path, interpreted: Callable[..., Any]) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    shutil.copytree(FOLDER, tmp_path / "m")
    held = onnx.load(FOLDER / "model.onnx")
    onnx.save(held, tmp_path / "m" / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    model = open_onnx(tmp_path / "m" / "model.onnx")
    assert {t.file.name for t in model.checkpoint.tensors.values() if len(t.shape) == 2} == {"w.bin"}
    assert relative_error(interpreted(model, IDS)) < 1e-5


def _with_tables(model: Any, theta_error: float = 1.0) -> None:
    """Cosines and sines looked up by position in stored tables, as older exporters had them."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    frequencies = np.frombuffer(
        open_onnx(FOLDER / "model.onnx").module.weights["rope.inverse_frequencies"].source.data,  # type: ignore[union-attr]
        "<f4",
    )
    angles = np.arange(64, dtype=np.float32)[:, None] * frequencies * np.float32(theta_error)
    for node in model.graph.node:
        if node.op_type in ("Cos", "Sin"):
            table = np.tile(np.cos(angles) if node.op_type == "Cos" else np.sin(angles), (1, 2)).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(table, f"{node.op_type}.table"))
            node.input[:] = [f"{node.op_type}.table", "position_ids"]
            node.op_type = "Gather"


def _with_counted_positions(model: Any) -> None:
    """Positions counted in the attention mask instead of an input of their own."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    make = onnx.helper.make_node
    numbers = {"count.one": [1], "count.far": [2**62]}
    held = [onnx.numpy_helper.from_array(np.array(v, np.int64), n) for n, v in numbers.items()]
    model.graph.initializer.extend([*held, onnx.numpy_helper.from_array(np.array(1, np.int64), "count.axis")])
    nodes = [
        make("CumSum", ["attention_mask", "count.axis"], ["count.sum"]),
        make("Sub", ["count.sum", "count.one"], ["count.all"]),
        make("Shape", ["input_ids"], ["count.shape"], start=1, end=2),
        make("Neg", ["count.shape"], ["count.start"]),
        make("Slice", ["count.all", "count.start", "count.far", "count.one"], ["position_ids"]),
    ]
    kept = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    inputs = [value for value in model.graph.input if value.name != "position_ids"]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _with_rotary_nodes(model: Any) -> None:
    """q and k rotated by one node each, with tables of half the head size."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    source: Any = open_onnx(FOLDER / "model.onnx").module.weights["rope.inverse_frequencies"].source
    angles = np.arange(64, dtype=np.float32)[:, None] * np.frombuffer(source.data, "<f4")
    tables = {"cos_cache": np.cos(angles), "sin_cache": np.sin(angles)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(table, name) for name, table in tables.items())
    makers = {output: node for node in model.graph.node for output in node.output}
    changed = 0
    for node in model.graph.node:
        if node.op_type == "Add" and node.name.endswith(("self_attn/Add", "self_attn/Add_1")):
            rotated = next((makers[name] for name in node.input if makers[name].op_type == "Mul"), None)
            if rotated is None:
                continue
            node.op_type, node.domain = "RotaryEmbedding", "com.microsoft"
            node.input[:] = [rotated.input[0], "position_ids", *tables]
            changed += 1
    assert changed == 4
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


CHANGES = {"tables": _with_tables, "counted-positions": _with_counted_positions, "rotary-nodes": _with_rotary_nodes}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_ways_to_the_same_angles(
    change: Callable[[Any], None], interpreted: Callable[..., Any], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    shutil.copytree(FOLDER, tmp_path / "m")
    held = onnx.load(FOLDER / "model.onnx")
    change(held)
    onnx.save(held, tmp_path / "m" / "model.onnx")
    model = open_onnx(tmp_path / "m" / "model.onnx")
    texts = []
    for module in (model.fresh(), open_onnx(FOLDER / "model.onnx").fresh()):
        run_pipeline(module, raise_and_fuse(plain_layers(2)), PassContext(model.read_rows))
        texts.append(canonical_text(module))
    assert texts[0] == texts[1]
    assert relative_error(interpreted(model, IDS, (4, 5))) < 1e-5


def test_tables_of_another_base_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
    shutil.copytree(FOLDER, tmp_path / "m")
    held = onnx.load(FOLDER / "model.onnx")
    _with_tables(held, 1.01)
    onnx.save(held, tmp_path / "m" / "model.onnx")
    with pytest.raises(
        LlamacError, match=r"LLC0937 Cos.table: its values at position .* are not those of theta 500000"
    ):
        open_onnx(tmp_path / "m" / "model.onnx")
