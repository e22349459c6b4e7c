"""ONNX graphs made to harm whoever imports them: each ends quickly, in little memory, with one coded error."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.models.onnx_import.entry import open_onnx
from llamac.models.onnx_import.proto import read_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[test]'")
from onnx import helper, numpy_helper  # noqa: E402

FOLDER = Path(__file__).parent / "optimum_model"
Nodes = Sequence[Any]


@pytest.fixture(autouse=True)
def little_memory_and_time() -> Iterator[None]:
    """12 GB of address space, as torch may be there, and seconds: no graph here may take the machine along."""
    before, start = resource.getrlimit(resource.RLIMIT_AS), time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.monotonic() - start < 8


@pytest.fixture
def with_nodes(tmp_path: Path) -> Callable[..., Path]:
    """The model that optimum made, with more nodes in front of its own."""

    def make(nodes: Nodes, **constants: Any) -> Path:
        shutil.copytree(FOLDER, tmp_path / "model")
        model = onnx.load(FOLDER / "model.onnx")
        for name, values in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        for number, node in enumerate(nodes):
            model.graph.node.insert(number, node)
        path = tmp_path / "model" / "model.onnx"
        onnx.save(model, path)
        return path

    return make


def refusal(path: Path) -> str:
    with pytest.raises(LlamacError) as caught:
        open_onnx(path)
    message = caught.value.message()
    assert message.isprintable() and len(message) < 1000
    return message


def node(op: str, inputs: str, output: str = "made", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), output.split(), **attributes)


DOUBLING = [node("Concat", "v0 v0", "v1", axis=0)] + [
    node("Concat", f"v{i} v{i}", f"v{i + 1}", axis=0) for i in range(1, 40)
]
SQUARES = [
    node("Unsqueeze", "line axis0", "row"), node("Unsqueeze", "line axis1", "column"),
    node("Add", "row column", "square"), node("Reshape", "square flat", "line2"),
    node("Unsqueeze", "line2 axis0", "row2"), node("Unsqueeze", "line2 axis1", "column2"),
    node("Add", "row2 column2", "square2"),
]  # fmt: skip
HALVES = [
    node("ConstantOfShape", "huge", "zeros"), node("Cast", "zeros", "flags", to=9),
    node("Where", "flags zeros line", "made"), node("Add", "zeros line", "made2"),
]  # fmt: skip

GRAPHS: dict[str, tuple[Nodes, dict[str, Any]]] = {
    "doubled": (DOUBLING, {"v0": np.array([3, 1, 2])}),
    "squared": (
        SQUARES,
        {"line": np.array([3, 1, 2] * 500), "axis0": [0], "axis1": [1], "flat": [-1]},
    ),
    "squared by lookups": (
        [node("Gather", "table places", "t1"), node("Gather", "t1 places", "t2", axis=1)],
        {"table": np.array([[1, 5, 2]] * 1000), "places": np.array([1, 0, 2] * 1000)},
    ),
    "a huge shape": (HALVES, {"huge": np.array([1 << 32, 1 << 32]), "line": np.array([1, 5, 2])}),
    "a negative shape": (
        [node("ConstantOfShape", "huge", "zeros"), node("Concat", "zeros line", axis=0)],
        {"huge": np.array([-5]), "line": np.array([1, 5, 2])},
    ),
    "a range of lists": ([node("Range", "line line line")], {"line": np.array([1, 5, 2])}),
    "a range backwards": (
        [node("Range", "nine one one", "r"), node("Concat", "r one1", axis=0)],
        {"nine": np.array(9), "one": np.array(1), "one1": np.array([1])},
    ),
    "a sum along nothing": ([node("CumSum", "one zero")], {"one": np.array(1), "zero": np.array(0)}),
    "a sum along two axes": ([node("CumSum", "ones line")], {"ones": np.ones(3, np.int64), "line": np.array([0, 0])}),
    "a view of more": (
        [node("Reshape", "model.norm.weight huge", "w"), node("MatMul", "w w")],
        {"huge": np.array([100_000, 100_000])},
    ),
    "an order of fractions": ([node("Transpose", "line", perm=[0.5])], {"line": np.array([1, 5, 2])}),
    "an axis far away": ([node("Flatten", "line", axis=1000)], {"line": np.array([[1, 5, 2]])}),
    "axes far away": ([node("Squeeze", "line axes")], {"line": np.array([[1, 5, 2]]), "axes": np.array([1 << 40])}),
    "a gather far away": (
        [node("Gather", "line axes")],
        {"line": np.array([[1, 5, 2]]), "axes": np.array([1 << 40])},
    ),
    "parts of many": (
        [node("Split", "line", " ".join(f"p{i}" for i in range(60_000)))],
        {"line": np.array([1, 5, 2])},
    ),
    "no inputs": ([node("Concat", "", axis=0)], {}),
    "no mean": ([node("ReduceMean", "one")], {"one": np.array(1)}),
    "a root of less than nothing": ([node("Sqrt", "less")], {"less": np.array(-1.0, np.float32)}),
    "a power of a list": ([node("Pow", "line line")], {"line": np.array([1, 5, 2])}),
    "a size divided by nothing": ([node("Div", "one zero")], {"one": np.array(1), "zero": np.array(0)}),
    "rotation by less": (
        [helper.make_node("RotaryEmbedding", ["line", "line", "line", "line"], ["made"], domain="com.microsoft")],
        {"line": np.array([1, 5, 2])},
    ),
    "blocks of nothing": (
        [helper.make_node("MatMulNBits", ["m", "m", "m"], ["made"], domain="com.microsoft", N=0, K=0, block_size=16)],
        {"m": np.ones((3, 3), np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, with_nodes: Callable[..., Path]) -> None:
    nodes, constants = GRAPHS[name]
    try:
        open_onnx(with_nodes(nodes, **constants))
    except LlamacError as error:
        assert error.code in ("LLC0935", "LLC0936", "LLC0937") and error.message().isprintable()
        assert len(error.message()) < 1000


@pytest.mark.parametrize("name", ["doubled", "squared", "squared by lookups", "a view of more", "a range of lists"])
def test_graphs_that_must_be_refused(name: str, with_nodes: Callable[..., Path]) -> None:
    nodes, constants = GRAPHS[name]
    assert refusal(with_nodes(nodes, **constants)).startswith("LLC093")


def test_anything_that_goes_wrong_is_one_coded_error(
    with_nodes: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamac.models.onnx_import import importer

    def stumble(call: Any) -> Any:
        return {}["an error of Python's own"]

    monkeypatch.setitem(importer.IMPORTERS, "Softmax", stumble)
    assert refusal(with_nodes([])).startswith("LLC0935 /model/layers.0/self_attn/Softmax")


def _field(number: int, data: bytes) -> bytes:
    size, tail = len(data), b""
    while size >= 128:
        tail, size = tail + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + tail + bytes([size]) + data


@pytest.mark.parametrize("kind", ["attribute", "shape", "producer", "values"])
def test_lists_without_end(kind: str, tmp_path: Path) -> None:
    """Numbers one by one instead of packed: lists must not be copied for each of them, nor grow without a limit."""
    integers = b"\x40\x01" * 1_500_000
    data = {
        "attribute": _field(7, _field(1, _field(5, _field(1, b"perm") + integers + b"\xa0\x01\x07"))),
        "shape": _field(7, _field(5, b"\x08\x01" * 1_500_000)),
        "values": _field(7, _field(5, b"\x38\x01" * 1_500_000)),
        "producer": _field(2, b"x" * 4000) * 10_000,
    }[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(LlamacError) as caught:
        read_onnx(path)
    assert caught.value.code == "LLC0936"
