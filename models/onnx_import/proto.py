"""An ONNX file as rows: nodes with their attributes, tensors by reference, inputs and outputs with their types.

The field numbers are those of onnx.proto (github.com/onnx/onnx). Subgraphs are not entered: no Llama needs a loop.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from llamac.errors import LlamacError

from ..input_files import check_not_lfs_pointer
from .wire import BYTES, Field, Message

MOST_NODES = 1 << 20
MOST_TENSORS = 1 << 18
MOST_VALUES = 1 << 16
"""Numbers in one list of an attribute or a small tensor."""

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 2, 3, 6, 7, 9, 10, 11, 16
FLOAT8, UINT4, INT4 = 17, 21, 22
TYPE_NAMES = {
    FLOAT: "float32", UINT8: "uint8", INT8: "int8", INT32: "int32", INT64: "int64", BOOL: "bool", FLOAT16: "float16",
    DOUBLE: "float64", BFLOAT16: "bfloat16", FLOAT8: "float8e4m3fn", UINT4: "uint4", INT4: "int4",
}  # fmt: skip
ITEM_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, BOOL: 1, FLOAT16: 2, DOUBLE: 8, BFLOAT16: 2, FLOAT8: 1}
"""Element type -> bytes of an element; the types that weights and constants of a Llama have."""
NIBBLES = (UINT4, INT4)
"""Element types of which two are a byte, the first in its low half."""


def bytes_of(kind: int, count: int) -> int:
    """Bytes of `count` elements of a type that is stored."""
    return -(-count // 2) if kind in NIBBLES else count * ITEM_BYTES[kind]


@dataclass
class TensorProto:
    """One stored tensor. `place` is where its bytes lie in the model's file, `external` what says so of another."""

    name: str = ""
    shape: tuple[int, ...] = ()
    type: int = 0
    place: tuple[int, int] | None = None
    values: list[float] = field(default_factory=list)
    is_external: bool = False
    external: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Elements; every dimension has been checked."""
        total = 1
        for size in self.shape:
            total *= size
        return total


Attribute = int | float | str | list[int] | list[float] | TensorProto
N = TypeVar("N", int, float)


@dataclass
class Node:
    """One operation; an input that is left out is an empty name."""

    name: str
    domain: str
    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Attribute]

    @property
    def title(self) -> str:
        """What messages call it: its name, or its first output."""
        found = self.name or (self.outputs[0] if self.outputs else "")
        return found[:120] or self.op

    @property
    def key(self) -> str:
        """The op with its domain, where that is not ONNX's own."""
        return f"{self.domain}.{self.op}" if self.domain else self.op


@dataclass(frozen=True)
class ValueInfo:
    """A typed input or output; a dimension is a number or a name, -1 where it is unknown."""

    name: str
    type: int
    shape: tuple[int | str, ...]


@dataclass
class OnnxModel:
    """A model file. `opsets`: domain -> version."""

    file: Path
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    inputs: list[ValueInfo] = field(default_factory=list)
    outputs: list[ValueInfo] = field(default_factory=list)

    def opset(self, domain: str) -> str:
        """`opset 18`, or `opset 1 of com.microsoft`."""
        version = self.opsets.get(domain)
        return f"opset {version if version is not None else 'unknown'}{f' of {domain}' if domain else ''}"


def read_onnx(path: Path) -> OnnxModel:
    """Read the structure of a model file; weights stay where they are. LLC0936 when it is damaged."""
    try:
        check_not_lfs_pointer(path)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise LlamacError("LLC0201", path.name, f"cannot be read: {error.strerror}", "check its permissions") from None
    model = OnnxModel(path)
    has_graph, maker, release = False, "", ""
    for number, part in Message(data, 0, len(data), path.name).fields():
        if number == 2:
            maker = part.text()
        elif number == 3:
            release = f" {part.text()}"
        elif number == 7:
            _read_graph(part.message(), model)
            has_graph = True
        elif number == 8:
            domain, version = _read_opset(part.message())
            model.opsets[domain] = version
        elif number == 25:
            model.functions.append(_read_texts(part.message(), {1: "name"}).get("name", "?"))
    model.producer = maker + release
    if not has_graph:
        raise LlamacError("LLC0936", path.name, "it holds no graph", "pass the .onnx file of a model")
    return model


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _read_opset(message: Message) -> tuple[str, int]:
    domain, version = "", 0
    for number, part in message.fields():
        if number == 1:
            domain = _domain(part.text())
        elif number == 2:
            version = part.integer()
    return domain, version


def _read_texts(message: Message, names: Mapping[int, str]) -> dict[str, str]:
    return {names[number]: part.text() for number, part in message.fields() if number in names}


def _read_graph(message: Message, model: OnnxModel) -> None:
    for number, part in message.fields():
        if number == 1:
            if len(model.nodes) >= MOST_NODES:
                raise message.damaged(f"more than {MOST_NODES} nodes")
            model.nodes.append(_read_node(part.message()))
        elif number == 5:
            tensor = read_tensor(part.message())
            if len(model.tensors) >= MOST_TENSORS or tensor.name in model.tensors:
                raise message.damaged(f"too many tensors, or two of the name {tensor.name[:80]}")
            model.tensors[tensor.name] = tensor
        elif number == 11:
            model.inputs.append(_read_value(part.message()))
        elif number == 12:
            model.outputs.append(_read_value(part.message()))
        elif number == 15:
            raise message.damaged("it holds sparse tensors")


def _read_node(message: Message) -> Node:
    node = Node("", "", "", [], [], {})
    for number, part in message.fields():
        if number == 1:
            node.inputs.append(part.text())
        elif number == 2:
            node.outputs.append(part.text())
        elif number == 3:
            node.name = part.text()
        elif number == 4:
            node.op = part.text(256)
        elif number == 5:
            name, value = _read_attribute(part.message())
            node.attributes[name] = value
        elif number == 7:
            node.domain = _domain(part.text(256))
        if len(node.inputs) + len(node.outputs) > MOST_VALUES:
            raise message.damaged(f"{node.title} has more than {MOST_VALUES} inputs and outputs")
    return node


def _read_attribute(message: Message) -> tuple[str, Attribute]:
    name: str = ""
    found: dict[int, Attribute] = {}
    floats, integers, kind = list[float](), list[int](), 0
    for number, part in message.fields():
        if number == 1:
            name = part.text()
        elif number == 2:
            found[1] = part.number()
        elif number == 3:
            found[2] = part.integer()
        elif number == 4:
            found[3] = part.text(1 << 16) if part.stop - part.start < 1 << 16 else ""
        elif number == 5:
            found[4] = read_tensor(part.message())
        elif number == 7:
            found[6] = _added(floats, part.numbers(), message)
        elif number == 8:
            found[7] = _added(integers, part.integers(), message)
        elif number == 20:
            kind = part.integer()
    if kind not in found:
        empty: dict[int, Attribute] = {1: 0.0, 2: 0, 3: "", 6: list[float](), 7: list[int]()}
        return name, found[next(iter(found))] if not kind and found else empty.get(kind, "a graph")
    return name, found[kind]


def _added(taken: list[N], values: Iterable[N], message: Message) -> list[N]:
    """`taken` with more numbers at its end, which come packed or one by one; LLC0936 when there are too many."""
    for value in values:
        taken.append(value)
        if len(taken) > MOST_VALUES:
            raise message.damaged(f"a list of more than {MOST_VALUES} numbers")
    return taken


def read_tensor(message: Message) -> TensorProto:
    """A TensorProto whose bytes stay where they are; only short lists of numbers are read."""
    tensor = TensorProto()
    shape: list[int] = []
    for number, part in message.fields():
        if number == 1:
            _added(shape, part.integers(), message)
        elif number == 2:
            tensor.type = part.integer()
        elif number == 4 and tensor.place is None:
            tensor.place = _float_place(part, tensor, message)
        elif number in (5, 7):
            _added(tensor.values, part.integers(), message)
        elif number == 8:
            tensor.name = part.text()
        elif number == 9:
            tensor.place = (part.start, part.stop - part.start)
        elif number == 13:
            entry = _read_texts(part.message(), {1: "key", 2: "value"})
            tensor.external[entry.get("key", "")] = entry.get("value", "")
        elif number == 14:
            tensor.is_external = part.integer() == 1
        elif number == 10:
            raise message.damaged(f"the tensor {tensor.name[:80]} is stored as lists of float64")
    if len(shape) > 16 or any(not 0 <= size < 1 << 40 for size in shape):
        raise message.damaged(f"the tensor {tensor.name[:80]} has the shape {shape[:8]}")
    tensor.shape = tuple(shape)
    if tensor.count >= 1 << 48:
        raise message.damaged(f"the tensor {tensor.name[:80]} has the shape {shape[:8]}")
    return tensor


def _float_place(part: Field, tensor: TensorProto, message: Message) -> tuple[int, int] | None:
    """A packed run of float32 is stored as raw bytes are; single ones are read."""
    if part.kind == BYTES:
        return part.start, part.stop - part.start
    _added(tensor.values, part.numbers(), message)
    return None


def _read_value(message: Message) -> ValueInfo:
    name, kind, shape = "", 0, list[int | str]()
    for number, part in message.fields():
        if number == 1:
            name = part.text()
        elif number == 2:
            for of, inner in part.message().fields():
                if of == 1:
                    kind, shape = _read_tensor_type(inner.message())
    return ValueInfo(name, kind, tuple(shape))


def _read_tensor_type(message: Message) -> tuple[int, list[int | str]]:
    kind, shape = 0, list[int | str]()
    for number, part in message.fields():
        if number == 1:
            kind = part.integer()
        elif number == 2:
            shape = [_read_dimension(dim.message()) for of, dim in part.message().fields() if of == 1]
    return kind, shape[:16]


def _read_dimension(message: Message) -> int | str:
    found: int | str = -1
    for number, part in message.fields():
        if number == 1:
            found = part.integer()
        elif number == 2:
            found = part.text()
    return found
