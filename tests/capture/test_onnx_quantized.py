"""Integers with scales, as quantizers of ONNX models write them, compute what ONNX Runtime computes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llamac
from llamac.models.graph import build_graph
from llamac.models.onnx_import.entry import open_onnx
from llamac.passes.pipelines import plain_layers, raise_and_fuse
from llamac.runtime.loader import load
from llamac.transform.base import PassContext
from llamac.transform.canonical import canonical_text
from llamac.transform.pipeline import run_pipeline

from .onnx_models import logits_of

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[test]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FOLDER = Path(__file__).parent / "optimum_model"
IDS = [3, 60, 0, 14, 14, 9, 55, 2, 31, 48, 1, 40]
Arrays = NDArray[Any]


def by_ort(bits: int, block: int, symmetric: bool, form: str) -> Callable[[Any], Any]:
    """ONNX Runtime's own quantizer of weights."""

    def run(model: Any) -> Any:
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
        from onnxruntime.quantization.quant_utils import QuantFormat

        chosen = QuantFormat.QDQ if form == "QDQ" else QuantFormat.QOperator
        tables: dict[str, Any] = {}
        if form == "tables":
            tables = {"op_types_to_quantize": ("MatMul", "Gather"), "quant_axes": (("MatMul", 0), ("Gather", 1))}
        config = DefaultWeightOnlyQuantConfig(
            block_size=block, is_symmetric=symmetric, quant_format=chosen, bits=bits, **tables
        )
        quantizer = MatMulNBitsQuantizer(model, algo_config=config)
        quantizer.process()
        made = quantizer.model.model
        if chosen is QuantFormat.QDQ:
            for entry in made.opset_import:
                entry.version = max(entry.version, 21) if not entry.domain else entry.version
        return made

    return run


def matrices(model: Any) -> list[tuple[Any, Any, Arrays]]:
    """(node, initializer, values) of every product with a stored matrix."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [(n, held[n.input[1]]) for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in held]
    return [(node, tensor, numpy_helper.to_array(tensor)) for node, tensor in found]


def with_scales(
    axis: int | None, block: int, kind: str, zero: float | None, transposed: bool = False, listed: bool = False
) -> Callable[[Any], Any]:
    """Every product's matrix [in, out] as DequantizeLinear: scales of everything (axis None), of an axis, or of blocks.

    zero: what zero points are around; None for none. transposed: stored [out, in], and turned in the graph.
    """

    def run(model: Any) -> Any:
        choose = np.random.default_rng(3)
        nodes: dict[str, list[Any]] = {}
        for node, tensor, values in matrices(model):
            shape = values.shape[::-1] if transposed else values.shape
            along = axis if axis is None or not transposed else 1 - axis
            sizes = tuple(-(-n // block) if block and i == along else n for i, n in enumerate(shape))
            sizes = sizes if block else () if along is None else (shape[along],)
            scales = choose.uniform(0.001, 0.01, sizes).astype(np.float32) * np.float32(10 if "4" in kind else 1)
            stored = [
                _quants(kind, choose, shape, f"{tensor.name}.q"),
                numpy_helper.from_array(scales, f"{tensor.name}.s"),
            ]
            if zero is not None:
                near = choose.integers(-2, 3, sizes) + zero
                stored.append(_zeros(kind, near, f"{tensor.name}.z", listed))
            model.graph.initializer.extend(stored)
            made = f"{tensor.name}.dq"
            options = {"axis": along} if along is not None else {}
            options |= {"block_size": block} if block else {}
            nodes[made] = [helper.make_node("DequantizeLinear", [t.name for t in stored], [made], **options)]
            if transposed:
                nodes[made].append(helper.make_node("Transpose", [made], [f"{made}.t"], perm=[1, 0]))
            node.input[1] = nodes[made][-1].output[0]
            model.graph.initializer.remove(tensor)
        kept = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*(n for made in nodes.values() for n in made), *kept])
        for entry in model.opset_import:
            entry.version = 21 if not entry.domain else entry.version
        return model

    return run


def _quants(kind: str, choose: np.random.Generator, shape: tuple[int, ...], name: str) -> Any:
    if kind == "fp8":
        import ml_dtypes

        values = choose.normal(0, 30, shape).astype(ml_dtypes.float8_e4m3fn)
        return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, shape, values.tobytes(), raw=True)
    low, high = {"int8": (-127, 128), "uint8": (0, 256), "int4": (-8, 8), "uint4": (0, 16)}[kind]
    values = choose.integers(low, high, shape)
    return helper.make_tensor(name, getattr(TensorProto, kind.upper()), shape, values.reshape(-1).tolist())


def _zeros(kind: str, values: Arrays, name: str, listed: bool) -> Any:
    made = helper.make_tensor(name, getattr(TensorProto, kind.upper()), values.shape, values.reshape(-1).tolist())
    return (
        made if listed or kind not in ("int8", "uint8") else numpy_helper.from_array(numpy_helper.to_array(made), name)
    )


def with_float_zeros(model: Any) -> Any:
    """MatMulNBits whose zero points are fractions."""
    made = by_ort(4, 32, False, "QOperator")(model)
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "MatMulNBits":
            scales = numpy_helper.to_array(held[node.input[2]])
            zeros = np.random.default_rng(1).uniform(6, 9, scales.shape).astype(np.float32)
            held[node.input[3]].CopyFrom(numpy_helper.from_array(zeros, node.input[3]))
    return made


CASES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nbits4": (by_ort(4, 32, True, "QOperator"), "i4-g32-sym-f32"),
    "nbits4-zeros": (by_ort(4, 32, False, "QOperator"), "u4-g32-asym-f32"),
    "nbits4-zeros-16": (by_ort(4, 16, False, "QOperator"), "u4-g16-asym-f32"),
    "nbits4-zeros-128": (by_ort(4, 128, False, "QOperator"), "u4-g128-asym-f32"),
    "nbits4-fractions": (with_float_zeros, "u4-g32-asym-f32"),
    "nbits8": (by_ort(8, 32, True, "QOperator"), "i8-g32-sym-f32"),
    "nbits8-zeros": (by_ort(8, 32, False, "QOperator"), "u8-g32-asym-f32"),
    "tables4-zeros": (by_ort(4, 32, False, "tables"), "u4-g32-asym-f32"),
    "qdq4": (by_ort(4, 32, True, "QDQ"), "i4-g32-sym-f32"),
    "qdq4-zeros": (by_ort(4, 32, False, "QDQ"), "u4-g32-asym-f32"),
    "int8-all": (with_scales(None, 0, "int8", None), "i8-row-sym-f32"),
    "int8-rows": (with_scales(1, 0, "int8", 0), "i8-row-asym-f32"),
    "int8-rows-listed": (with_scales(1, 0, "int8", 3, listed=True), "i8-row-asym-f32"),
    "uint8-all-zero": (with_scales(None, 0, "uint8", 120), "u8-row-asym-f32"),
    "uint8-blocks": (with_scales(0, 16, "uint8", 128), "u8-g16-asym-f32"),
    "uint8-unshifted": (with_scales(1, 0, "uint8", None), "u8-row-sym-f32"),
    "int4-turned": (with_scales(0, 16, "int4", None, transposed=True), "i4-g16-sym-f32"),
    "uint4-turned": (with_scales(0, 16, "uint4", 8, transposed=True), "u4-g16-asym-f32"),
    "uint4-rows": (with_scales(1, 0, "uint4", 7, listed=True), "u4-row-asym-f32"),
    "fp8-all": (with_scales(None, 0, "fp8", None), "fp8-row-sym-f32"),
    "fp8-rows": (with_scales(1, 0, "fp8", None), "fp8-row-sym-f32"),
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def take(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "m"
        shutil.copytree(FOLDER, folder)
        onnx.save(CASES[name][0](onnx.load(FOLDER / "model.onnx")), folder / "model.onnx")
        return folder / "model.onnx"

    return take


def error(found: Arrays, expected: Arrays) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_onnx_runtime(
    quantized: Callable[[str], Path], interpreted: Callable[..., Arrays], name: str
) -> None:
    path = quantized(name)
    model = open_onnx(path)
    assert CASES[name][1] in {t.encoding for t in model.checkpoint.tensors.values()}
    expected = logits_of(path, IDS, 2, 2, 8)
    assert error(interpreted(model, IDS, (4, 5)), expected) < 1e-5


@pytest.mark.parametrize("name", ["nbits4-zeros", "tables4-zeros", "int8-rows", "uint4-turned", "fp8-rows"])
def test_both_doors_end_in_the_same_graph(quantized: Callable[[str], Path], name: str) -> None:
    model = open_onnx(quantized(name))
    texts = []
    for module in (model.fresh(), build_graph(model.config, model.checkpoint.tensors)):
        run_pipeline(module, raise_and_fuse(plain_layers(2)), PassContext(model.read_rows))
        texts.append(canonical_text(module))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["nbits4-zeros", "int8-rows-listed"])
def test_integers_are_compiled_as_they_are(quantized: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Where activations are floats: as f32. As they are, the code multiplies with integers."""
    expected = logits_of(quantized(name), IDS, 2, 2, 8)
    for scheme, bound in (("f32", 1e-5), ("keep", 0.2)):
        result = llamac.compile(quantized(name), output=tmp_path / f"{scheme}.llamac", quantize=scheme)
        with load(result.path) as model:
            assert error(model.logits(IDS), expected) < bound
    formats = {row["format"] for row in result.manifest["weights"][0]["tensors"]}
    assert any(name.startswith(("u4g32s32m32", "i8g128s32m32")) for name in formats)
