"""Outlines layers that are equal up to their weights into one function, called once a layer.

Before: the ops of layers.0, the ops of layers.1, ...
After:  `graph @layer(%hidden, %cache, ..., %w0, ...)`, and `call %h, %c, ..., @w0, ... {callee = "layer", layer = 0}`,
        where `layer` is the place of the layer in its cache

Layers are equal when their ops, attributes and shapes are; a layer that differs (another format, say) becomes a
function of its own when it occurs at least twice, else it stays in line. Must not fire when a layer hands on anything
but the hidden state and the cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llamac.ir.builder import make_op
from llamac.ir.dims import symbol
from llamac.ir.graph import Attribute, Graph, Module, Op, Value, Weight
from llamac.ir.levels import KERNEL
from llamac.ir.types import CacheType
from llamac.transform.base import Pass, PassContext, PassResult, Refusal


@dataclass
class _Layer:
    """The ops of one layer, its place in its cache, what they take in (state first) and hand on."""

    where: str
    place: int
    ops: list[Op]
    inputs: list[Value]
    weights: list[Weight]
    outputs: list[Value]
    signature: object


@dataclass(frozen=True)
class RollLayers(Pass):
    """Equal layers -> calls of one function."""

    name = "roll-layers"
    requires = (KERNEL,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        graph = module.main
        refusals: list[Refusal] = []
        groups: dict[object, list[_Layer]] = {}
        for where, ops in _by_layer(graph):
            layer = _describe(graph, where, ops)
            if isinstance(layer, Refusal):
                refusals.append(layer)
            else:
                groups.setdefault(layer.signature, []).append(layer)
        rolled = 0
        current: dict[Value, Value] = {}
        for layers in groups.values():
            if len(layers) >= 2:
                _outline(module, graph, layers, current)
                rolled += len(layers)
        return PassResult({"layer": rolled}, tuple(refusals))


def _by_layer(graph: Graph) -> Iterator[tuple[str, list[Op]]]:
    """The ops of each layer, `layers.0` or one of an image encoder, such as `vision.layers.0`."""
    found: dict[str, list[Op]] = {}
    for op in graph.ops:
        layer = re.match(r"(vision\.(global_)?)?layers\.\d+\b", op.location)
        if layer and op.opcode != "call":
            found.setdefault(layer.group(), []).append(op)
    yield from found.items()


def _describe(graph: Graph, where: str, ops: list[Op]) -> _Layer | Refusal:
    inside = {r: (i, j) for i, op in enumerate(ops) for j, r in enumerate(op.results)}
    members = set(ops)
    handed_on = [r for r in inside if r in graph.outputs or any(u not in members for u in r.users)]
    caches = [r for r in handed_on if isinstance(r.type, CacheType)]
    hidden = [r for r in handed_on if not isinstance(r.type, CacheType)]
    if len(caches) > 1 or len(hidden) != 1:
        reason = f"hands on {len(hidden)} tensors and {len(caches)} caches, expected one and at most one"
        return Refusal(where, reason)
    outputs = hidden + caches
    inputs, weights = _inputs(ops, inside)
    carried = _carried(inputs, outputs)
    if carried is None:
        return Refusal(where, "does not start from a hidden state and a cache like those it hands on")
    places = {op.attributes["layer"] for op in ops if "layer" in op.attributes}
    has_cache = any(isinstance(v.type, CacheType) for v in inputs)
    place = places.pop() if len(places) == 1 else None if has_cache else int(where.rpartition(".")[2])
    if not isinstance(place, int):
        return Refusal(where, "does not have one place in its cache")
    inputs = carried + [v for v in inputs if v not in carried]
    signature = _signature(place, ops, inside, inputs, weights, [inside[v] for v in outputs])
    return _Layer(where, place, ops, inputs, weights, outputs, signature)


def _inputs(ops: list[Op], inside: dict[Value, tuple[int, int]]) -> tuple[list[Value], list[Weight]]:
    values: dict[Value, None] = {}
    weights: dict[Weight, None] = {}
    for op in ops:
        for operand in op.operands:
            if isinstance(operand, Weight):
                weights[operand] = None
            elif operand not in inside:
                values[operand] = None
    return list(values), list(weights)


def _carried(inputs: list[Value], outputs: list[Value]) -> list[Value] | None:
    """What the layer updates: its hidden state, and its cache unless it only reads one."""
    hidden, *caches = outputs
    states = [v for v in inputs if v.type == hidden.type]
    given = [v for v in inputs if any(v.type == cache.type for cache in caches)]
    # cos and sin may have the type of a hidden state; the hidden state is what the first op of a layer reads.
    return [states[0], *given] if states and len(given) == len(caches) else None


def _signature(
    place: int,
    ops: list[Op],
    inside: dict[Value, tuple[int, int]],
    inputs: list[Value],
    weights: list[Weight],
    outputs: list[tuple[int, int]],
) -> object:
    def name(value: Value) -> object:
        if isinstance(value, Weight):
            return ("weight", weights.index(value), str(value.type))
        if value in inside:
            return inside[value]
        # State comes first and differs from layer to layer; everything else must be the very same value.
        position = inputs.index(value)
        return ("state", position, str(value.type)) if position < len(outputs) else ("input", position, id(value))

    lines = []
    for op in ops:
        attributes = tuple(sorted((k, repr(v)) for k, v in op.attributes.items() if k != "layer"))
        # Only a layer's own place in its cache may become the argument of the function.
        layer = op.attributes.get("layer")
        lines.append((op.opcode, "own" if layer == place else repr(layer), attributes, tuple(map(name, op.operands))))
    return (tuple(lines), tuple(outputs))


def _outline(module: Module, graph: Graph, layers: list[_Layer], current: dict[Value, Value]) -> None:
    """One function for `layers`, and calls in their place; `current` holds what calls made so far have replaced."""
    stem = layers[0].where.rpartition("s.")[0].replace(".", "_")
    name, number = stem, 1
    while name in module.graphs:
        name, number = f"{stem}_{number}", number + 1
    module.add_graph(_function(name, layers[0], current))
    calls: dict[Op, Op] = {}
    for layer in layers:
        attributes: dict[str, Attribute] = {"callee": name, "carried": len(layer.outputs), "layer": layer.place}
        # A layer's inputs may be the outputs of one that has just become a call.
        operands = [current.get(v, v) for v in layer.inputs]
        call = make_op("call", (*operands, *layer.weights), attributes, layer.where)
        calls[layer.ops[-1]] = call
        for old, new in zip(layer.outputs, call.results, strict=True):
            graph.replace(old, new)
            current[old] = new
    removed = {op for layer in layers for op in layer.ops}
    ops: list[Op] = []
    for op in graph.ops:
        if op in calls:
            ops.append(calls[op])
        if op not in removed:
            ops.append(op)
    graph.ops = ops
    for op in removed:
        op.drop_operands()


def _function(name: str, layer: _Layer, current: dict[Value, Value]) -> Graph:
    carried = ["hidden", "cache"][: len(layer.outputs)]
    names = [*carried, *(v.name or f"in{i}" for i, v in enumerate(layer.inputs[len(carried) :]))]
    roles = [w.name.removeprefix(f"{layer.where}.") for w in layer.weights]
    names = [n if not n.isdigit() else f"in{n}" for n in names]
    types = [v.type for v in (*layer.inputs, *layer.weights)]
    graph = Graph(name, list(zip([*names, *roles], types, strict=True)))
    inputs = [current.get(v, v) for v in layer.inputs]
    mapped: dict[Value, Value] = dict(zip((*inputs, *layer.weights), graph.arguments, strict=True))
    for op in layer.ops:
        is_own = op.attributes.get("layer") == layer.place
        attributes = {k: symbol("layer") if k == "layer" and is_own else v for k, v in op.attributes.items()}
        location = op.location.replace(layer.where, "layers", 1)
        made = make_op(op.opcode, tuple(mapped[v] for v in op.operands), attributes, location)
        graph.ops.append(made)
        mapped.update(zip(op.results, made.results, strict=True))
    graph.outputs = [mapped[v] for v in layer.outputs]
    return graph
