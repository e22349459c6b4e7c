"""Prints a module as text that `parser` reads back to an equal module."""

from __future__ import annotations

import re

from .dims import Dim
from .dtypes import DType
from .graph import Attribute, DataSource, FileSource, Graph, Module, Op, Weight


def print_module(module: Module) -> str:
    """The whole module: one line a weight, one line an op."""
    lines = [f"module @{module.name} at {module.level} {{"]
    lines += [f"  {print_weight(w)}" for w in module.weights.values()]
    for graph in module.graphs.values():
        lines += [f"  {line}" for line in print_graph(graph).split("\n")]
    return "\n".join([*lines, "}", ""])


def print_weight(weight: Weight) -> str:
    """`weight @name : type = source or op`."""
    head = f"weight @{weight.name} : {weight.type} = "
    if isinstance(weight.source, FileSource):
        tensor, encoding = print_attribute(weight.source.tensor), print_attribute(weight.source.encoding)
        return f"{head}file {{tensor = {tensor}, encoding = {encoding}}}"
    if isinstance(weight.source, DataSource):
        return f'{head}data {{hex = "{weight.source.data.hex()}"}}'
    assert weight.producer is not None
    return head + _operation(weight.producer)


def print_graph(graph: Graph) -> str:
    """`graph @name(arguments) -> (types) { ops, return }`. Values are renumbered."""
    graph.rename_values()
    arguments = ", ".join(f"{a.reference}: {a.type}" for a in graph.arguments)
    types = ", ".join(str(v.type) for v in graph.outputs)
    lines = [f"graph @{graph.name}({arguments}) -> ({types}) {{"]
    lines += [f"  {print_op(op)}" for op in graph.ops]
    lines.append(f"  return {', '.join(v.reference for v in graph.outputs)}".rstrip())
    return "\n".join([*lines, "}"])


def print_op(op: Op) -> str:
    """`%0 = opcode %a, @b {name = value} : type in location`."""
    results = ", ".join(r.reference for r in op.results)
    types = ", ".join(str(r.type) for r in op.results)
    where = f" in {_location(op.location)}" if op.location else ""
    return f"{results} = {_operation(op)} : {types}{where}"


def _operation(op: Op) -> str:
    parts = [op.opcode]
    if op.operands:
        parts.append(", ".join(v.reference for v in op.operands))
    if op.attributes:
        inside = ", ".join(f"{k} = {print_attribute(v)}" for k, v in sorted(op.attributes.items()))
        parts.append(f"{{{inside}}}")
    return " ".join(parts)


def _location(location: str) -> str:
    is_word = re.fullmatch(r"[A-Za-z_][\w.]*", location) and location.partition(".")[0] not in ("inf", "nan")
    return location if is_word else print_attribute(location)


def print_attribute(value: Attribute) -> str:
    """One attribute value; floats keep every bit."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(print_attribute(v) for v in value)}]"
    assert isinstance(value, int | Dim | DType)
    return str(value)
