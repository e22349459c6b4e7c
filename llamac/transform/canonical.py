"""The text of a module without what does not matter to its meaning: whether two front doors built one graph."""

from __future__ import annotations

from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.printer import print_graph, print_weight


def canonical_text(module: Module) -> str:
    """The module as text, weights by name, ops as outputs need them, no locations: equal texts, equal graphs."""
    weights = sorted(module.weights.values(), key=lambda weight: (_depth(weight), weight.name))
    lines = [f"module @{module.name} at {module.level} {{", *(f"  {print_weight(w)}" for w in weights)]
    for graph in module.graphs.values():
        lines += [f"  {line}" for line in _graph_lines(graph)]
    return "\n".join([*lines, "}", ""])


def _depth(weight: Weight) -> int:
    """0 for a weight with a source, and one more than its operands for a derived one."""
    operands = weight.producer.operands if weight.producer is not None else ()
    return max((1 + _depth(v) for v in operands if isinstance(v, Weight)), default=0)


def _graph_lines(graph: Graph) -> list[str]:
    kept = [(op, op.location) for op in graph.ops]
    try:
        graph.ops = _ordered(graph)
        for op in graph.ops:
            op.location = ""
        return print_graph(graph).splitlines()
    finally:
        graph.ops = [op for op, _ in kept]
        for op, location in kept:
            op.location = location
        graph.rename_values()


def _ordered(graph: Graph) -> list[Op]:
    """Ops as the outputs need them, operands first: an order that depends on the graph alone, without unused ops."""
    ordered: dict[Op, None] = {}
    todo = [value.producer for value in reversed(graph.outputs)]
    while todo:
        op = todo[-1]
        missing = [v.producer for v in op.operands if _is_op(v) and v.producer not in ordered] if op is not None else []
        if missing and op not in ordered:
            todo += reversed(missing)
            continue
        todo.pop()
        if op is not None:
            ordered.setdefault(op)
    return list(ordered)


def _is_op(value: Value) -> bool:
    return value.producer is not None and not isinstance(value, Weight)
