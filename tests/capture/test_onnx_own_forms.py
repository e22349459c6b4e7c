"""What `llamac export` writes as ONNX comes back: the same graph, the same weights, the same logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.export.entry import export
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Weight
from llamac.ir.interpreter import Interpreter
from llamac.models.capture.captured import CapturedModel
from llamac.models.graph import build_graph
from llamac.models.onnx_import.entry import open_onnx
from llamac.models.sources import open_source
from llamac.passes.pipelines import onnx_pipeline, parse_quantization, plain_layers, raise_and_fuse
from llamac.transform.base import PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import run_pipeline

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")

IDS = [3, 60, 0, 14, 14, 9, 55, 2, 31, 48, 1, 40]
SOURCE = Path(__file__).parent / "optimum_model"
FORMS: dict[str, tuple[str, str]] = {
    "standard": ("onnx", "f32"),
    "standard-f16": ("onnx", "f16"),
    "genai": ("onnx-genai", "f32"),
    "genai-int8": ("onnx-genai", "int8"),
    "genai-int4": ("onnx-genai", "int4"),
    "standard-int8": ("onnx", "int8"),
    "standard-int4": ("onnx", "int4"),
    "standard-int4-asym": ("onnx", "int4:asym"),
    "genai-int4-asym": ("onnx-genai", "int4:asym"),
}


INTEGERS = [name for name in FORMS if "int" in name]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CapturedModel]:
    @cache
    def take(name: str) -> CapturedModel:
        form, scheme = FORMS[name]
        place = tmp_path_factory.mktemp(name) / "model"
        options = {"logits": "all"} if form == "onnx-genai" else {}
        export(SOURCE, to=form, output=place, quantize=scheme, options=options)
        return open_onnx(place / "model.onnx")

    return take


@pytest.mark.parametrize("name", FORMS)
def test_both_doors_end_in_the_same_graph(exported: Callable[[str], CapturedModel], name: str) -> None:
    model = exported(name)
    texts = []
    for module in (model.fresh(), build_graph(model.config, model.checkpoint.tensors)):
        run_pipeline(module, raise_and_fuse(plain_layers(2)), PassContext(model.read_rows))
        texts.append(canonical_text(module))
    assert texts[0] == texts[1]
    assert texts[0].count("= attention ") == 2 and texts[0].count("= rope ") == 4


@pytest.mark.parametrize("name", ["standard", "genai"])
def test_weights_come_back_bit_for_bit(exported: Callable[[str], CapturedModel], name: str) -> None:
    before, after = open_source(SOURCE), exported(name).checkpoint
    assert list(before.tensors) == list(after.tensors)
    for weight, tensor in before.tensors.items():
        rows = before.read_rows(weight, 0, tensor.rows)
        np.testing.assert_array_equal(rows, after.read_rows(weight, 0, tensor.rows), err_msg=weight)


@pytest.mark.parametrize(("name", "bound"), [("standard", 1e-5), ("genai", 1e-5), ("standard-f16", 1e-2)])
def test_logits_come_back(
    exported: Callable[[str], CapturedModel], interpreted: Callable[..., Any], name: str, bound: float
) -> None:
    expected = interpreted(open_onnx(SOURCE / "model.onnx"), IDS)
    for cuts in ((), (1,), (4, 5)):
        error = np.abs(interpreted(exported(name), IDS, cuts) - expected).max() / np.abs(expected).max()
        assert error < bound


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_come_back_as_the_values_they_stand_for(
    exported: Callable[[str], CapturedModel], name: str, tmp_path: Path
) -> None:
    """Against the dequantized weights of the same scheme that the compiler itself makes."""
    scheme = FORMS[name][1]
    source = open_source(SOURCE)
    module = build_graph(source.config, source.tensors)
    run_pipeline(module, onnx_pipeline(plain_layers(2), parse_quantization(scheme)), PassContext(source.read_rows))
    wanted = Interpreter(module, source.read_rows)
    model = exported(name)
    found = Interpreter(model.module, model.read_rows)
    empty = np.zeros((2, 0, 8), np.float32)
    inputs = {"ids": IDS, "positions": np.arange(len(IDS))}
    inputs |= {argument.name: empty for argument in model.module.step.arguments[2:]}
    expected, logits = wanted.run(inputs)[0], found.run(inputs)[0]
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_come_back_bit_for_bit(exported: Callable[[str], CapturedModel], name: str) -> None:
    """Quants, scales and minima of every matrix that the exported form holds as integers."""
    source, model = open_source(SOURCE), exported(name)
    module = build_graph(source.config, source.tensors)
    scheme = parse_quantization(FORMS[name][1])
    run_pipeline(module, onnx_pipeline(plain_layers(2), scheme), PassContext(source.read_rows))
    wanted, found = WeightEvaluator(source.read_rows), WeightEvaluator(model.read_rows)
    made = {weight.name.rpartition(".")[0]: weight for weight in module.weights.values() if parts_of(weight)}
    same = [(made[w.name], w) for w in model.module.weights.values() if parts_of(w)]
    assert len(same) >= 14
    for before, after in same:
        for a, b in zip(parts_of(before), parts_of(after), strict=True):
            x, y = wanted.whole(a), found.whole(b)
            np.testing.assert_array_equal(x.astype(np.float32), y.astype(np.float32), err_msg=after.name)
        quants = (parts_of(before)[0].tensor.dtype, parts_of(after)[0].tensor.dtype)
        assert quants[0] is quants[1] or not name.startswith("genai")


def parts_of(weight: Weight) -> list[Weight]:
    producer = weight.producer
    if producer is None or producer.opcode != "dequantize":
        return []
    return [operand for operand in producer.operands if isinstance(operand, Weight)]


@pytest.mark.parametrize(
    ("form", "scheme"), [("onnx", "f32"), ("onnx", "int4:asym"), ("onnx-genai", "f32"), ("onnx-genai", "int4:asym")]
)
def test_a_graph_of_the_last_tokens_logits_gives_those_of_every_token(
    interpreted: Callable[..., Any], tmp_path: Path, form: str, scheme: str
) -> None:
    found = {}
    for logits in ("all", "last"):
        export(SOURCE, to=form, output=tmp_path / logits, quantize=scheme, options={"logits": logits})
        found[logits] = open_onnx(tmp_path / logits / "model.onnx")
    np.testing.assert_array_equal(*(interpreted(model, IDS) for model in found.values()))
    noted = [e["where"] for e in found["last"].checkpoint.ledger if e["what"] == "those of every token"]
    assert noted == ["logits"]
