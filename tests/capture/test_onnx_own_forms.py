"""What `llamac export` writes as ONNX comes back: the same graph, the same weights, the same logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.ir.interpreter import Interpreter
from llamac.models.capture.captured import CapturedModel
from llamac.models.graph import build_graph
from llamac.models.onnx_import.entry import open_onnx
from llamac.models.sources import open_source
from llamac.passes.pipelines import plain_layers, raise_and_fuse
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
}


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


@pytest.mark.parametrize("name", ["genai-int8", "genai-int4"])
def test_integers_come_back_as_the_values_they_stand_for(
    exported: Callable[[str], CapturedModel], name: str, tmp_path: Path
) -> None:
    """Against the dequantized weights of the same scheme that the compiler itself makes."""
    from llamac.passes.pipelines import onnx_pipeline, parse_quantization

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


def test_logits_of_the_last_token_alone_are_refused(tmp_path: Path) -> None:
    export(SOURCE, to="onnx-genai", output=tmp_path / "m", quantize="f32")
    with pytest.raises(LlamacError, match=r"LLC0937 .*logits of the last token alone.*--option logits=all"):
        open_onnx(tmp_path / "m" / "model.onnx")
