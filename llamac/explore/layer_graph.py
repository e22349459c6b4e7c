"""One layer of a module as a graph to draw: its ops, what flows between them, and where each stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamac.ir.graph import Module, Op, Value, Weight
from llamac.ir.printer import print_op
from llamac.ir.types import TensorType

from .layered import Box, place

_LETTER, _LINE, _MARGIN = 6.7, 15, 10
_KINDS = {
    "product": ("matmul", "linear", "embed"),
    "norm": ("rms_norm", "reduce_", "rsqrt"),
    "attention": ("attention", "attend", "softmax", "rope", "cos", "sin"),
    "quantize": ("quantize", "dequantize", "cast"),
    "move": ("reshape", "transpose", "slice", "concat", "broadcast", "select", "iota"),
}


@dataclass(frozen=True)
class LayerGraph:
    """Nodes and edges with their places, in pixels; `title` says which layer it is."""

    title: str
    width: int
    height: int
    nodes: tuple[dict[str, Any], ...]
    edges: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "width": self.width,
            "height": self.height,
            "nodes": list(self.nodes),
            "edges": [list(points) for points in self.edges],
        }


def layer_graph(module: Module, before: frozenset[str]) -> LayerGraph:
    """Layer 0 of `module`; ops whose line is not in `before` are marked as new."""
    title, ops = _layer(module)
    drawn = [op for op in ops if op.opcode != "constant"]
    makers = {result: op for op in drawn for result in op.results}
    outside = _outside(drawn, makers)
    index: dict[object, int] = {item: number for number, item in enumerate([*outside, *drawn])}
    boxes: list[Box] = []
    nodes: list[dict[str, Any]] = []
    for value in outside:
        nodes.append({"label": value.reference, "detail": [_type(value)], "kind": "input", "line": repr(value)})
    for op in drawn:
        line = print_op(op)
        is_new = bool(before) and line not in before
        nodes.append({"label": op.opcode, "detail": _detail(op), "kind": _kind(op.opcode), "line": line, "new": is_new})
    for node in nodes:
        widest = max(len(str(node["label"])) + 1, *(len(text) for text in node["detail"]))
        boxes.append(Box(round(widest * _LETTER) + 2 * _MARGIN, _LINE * (1 + len(node["detail"])) + _MARGIN))
    flows = ((makers.get(value, value), op) for op in drawn for value in op.operands)
    placed = place(boxes, sorted({(index[source], index[op]) for source, op in flows if source in index}))
    for node, box, (x, y) in zip(nodes, boxes, placed.places, strict=True):
        node.update(x=x, y=y, w=box.width, h=box.height)
    return LayerGraph(title, placed.width, placed.height, tuple(nodes), placed.edges)


def _layer(module: Module) -> tuple[str, Sequence[Op]]:
    ops = [op for op in module.step.ops if re.match(r"layers\.0\b", op.location) and op.opcode != "call"]
    if ops:
        return "layer 0", ops
    call = next((op for op in module.step.ops if op.opcode == "call"), None)
    if call is None:
        return "the whole step", module.step.ops
    callee = str(call.attributes["callee"])
    calls = sum(op.attributes.get("callee") == callee for op in module.step.ops)
    return f"@{callee}, called for {calls} layers", module.graphs[callee].ops


def _outside(ops: Sequence[Op], makers: dict[Value, Op]) -> list[Value]:
    """What flows into the layer, weights and constants aside."""
    found: dict[Value, None] = {}
    for op in ops:
        for value in op.operands:
            is_flow = not isinstance(value, Weight) and not _is_weight_argument(value) and not _is_constant(value)
            if is_flow and value not in makers:
                found[value] = None
    return list(found)


def _is_constant(value: Value) -> bool:
    return value.producer is not None and value.producer.opcode == "constant"


def _is_weight_argument(value: Value) -> bool:
    """An outlined layer gets its weights as arguments: those whose shape is fixed."""
    if value.producer is not None or not isinstance(value.type, TensorType):
        return False
    return all(isinstance(dim, int) for dim in value.type.shape)


def _detail(op: Op) -> list[str]:
    """Weights and constants that the op reads, then the type of its first result that is a tensor."""
    read = []
    for value in op.operands:
        if isinstance(value, Weight) or _is_weight_argument(value):
            read.append("@" + re.sub(r"^layers\.\d+\.", "", value.name))
        elif _is_constant(value) and value.producer is not None:
            read.append(str(value.producer.attributes["value"]))
    types = [_type(result) for result in op.results if isinstance(result.type, TensorType)]
    return [*([", ".join(read)] if read else []), *types[:1]]


def _type(value: Value) -> str:
    is_tensor = isinstance(value.type, TensorType)
    return str(value.type).removeprefix("tensor<").removesuffix(">") if is_tensor else "kv_cache"


def _kind(opcode: str) -> str:
    for kind, prefixes in _KINDS.items():
        if opcode.startswith(prefixes):
            return kind
    return "pointwise"
