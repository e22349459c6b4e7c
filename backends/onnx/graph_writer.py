"""Collects the nodes of an ONNX graph: unique names, shared constants, initializers in the external file."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .external_data import ExternalData, PlacedTensor
from .library import library

DATA = "model.onnx.data"
"""Name of the file that holds the weights of a whole model."""

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

OPSET = 21
"""Of the standard operators: the first with blocks in DequantizeLinear (ONNX Runtime 1.20, OpenVINO 2024.5)."""

IR_VERSION = 10
"""The file format that came with the opset."""

Dimension = int | str


class GraphWriter:
    """One ONNX graph in the making. Values are names; `place` is the part of the model that nodes are named after."""

    def __init__(self, data_file: str = DATA, data: ExternalData | None = None) -> None:
        self.data_file = data_file
        self._onnx = library("onnx")
        self.place = ""
        self.data = data or ExternalData()
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._initializers: list[Any] = []
        self._counts: dict[str, int] = {}
        self._known: dict[Hashable, str] = {}
        self._domains = {""}
        self._tensors: set[str] = set()

    def op(self, kind: str, *inputs: str, result: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one result, called `result` or after the node; returns that name."""
        (found,) = self.ops(kind, inputs, (result,), domain, **attributes)
        return found

    def ops(
        self, kind: str, inputs: Sequence[str], results: Sequence[str | None], domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with as many results as `results` has names: an empty one is made up, None is not wanted."""
        name = self._unique(f"{self.place}/{kind}")
        made = tuple("" if wanted is None else wanted or f"{name}.{i}" for i, wanted in enumerate(results))
        node = self._onnx.helper.make_node(kind, list(inputs), list(made), name, domain=domain, **attributes)
        self._nodes.append(node)
        self._domains.add(domain)
        return made

    def once(self, key: Hashable, make: Any) -> str:
        """The value that `make()` gave when `key` was first asked for."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """A small constant inside the graph, shared by all that ask for the same."""
        array = np.asarray(values, dtype)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        return self.once(key, lambda: self._add_constant(array))

    def number(self, value: float) -> str:
        """An f32 scalar."""
        return self.constant(value, np.float32)

    def _add_constant(self, array: NDArray[Any]) -> str:
        name = f"constants/{len(self._initializers)}"
        self._initializers.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def initializer(self, tensor: PlacedTensor) -> str:
        """Enter a tensor of the external file; returns its name, which no other may have."""
        assert tensor.name not in self._tensors, tensor.name
        self._tensors.add(tensor.name)
        proto = self._onnx.TensorProto
        made = proto(name=tensor.name, data_type=proto.DataType.Value(tensor.element), dims=tensor.dims)
        made.data_location = proto.EXTERNAL
        for key, value in (("location", self.data_file), ("offset", tensor.offset), ("length", tensor.nbytes)):
            made.external_data.add(key=key, value=str(value))
        self._initializers.append(made)
        return tensor.name

    def alias(self, name: str) -> str:
        """A second name for a tensor of the external file, at the same place of it."""

        def make() -> str:
            (tensor,) = (t for t in self._initializers if t.name == name)
            made = self._onnx.TensorProto()
            made.CopyFrom(tensor)
            made.name = f"{name}.again"
            self._initializers.append(made)
            return str(made.name)

        return self.once(("alias", name), make)

    def input(self, name: str, element: str, dims: Sequence[Dimension]) -> str:
        """Declare an input of the graph."""
        self._inputs.append(self._declared(name, element, dims))
        return name

    def output(self, name: str, element: str, dims: Sequence[Dimension]) -> None:
        """Declare an output of the graph; some node gives it its value."""
        self._outputs.append(self._declared(name, element, dims))

    def _declared(self, name: str, element: str, dims: Sequence[Dimension]) -> Any:
        number = self._onnx.TensorProto.DataType.Value(element)
        return self._onnx.helper.make_tensor_value_info(name, number, list(dims))

    def _unique(self, name: str) -> str:
        count = self._counts[name] = self._counts.get(name, -1) + 1
        return f"{name}_{count}" if count else name

    def drop_unused_inputs(self) -> None:
        """Forget the inputs that no node reads."""
        used = {name for node in self._nodes for name in node.input}
        self._inputs = [declared for declared in self._inputs if declared.name in used]

    def model(self, name: str, properties: dict[str, str]) -> Any:
        """The finished onnx.ModelProto; weights stay in the external file."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._initializers)
        versions = {"": OPSET, MICROSOFT: 1}
        opsets = [helper.make_opsetid(domain, versions[domain]) for domain in sorted(self._domains)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llamac")
        helper.set_model_props(made, properties)
        return made
