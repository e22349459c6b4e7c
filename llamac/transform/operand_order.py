"""One order for the operands of commutative ops."""

from __future__ import annotations

from llamac.ir.graph import Graph, Value
from llamac.ir.registry import find_op


def order_operands(graph: Graph) -> int:
    """Commutative operands in order of definition, constants and weights last; returns how many ops changed."""
    place: dict[Value, int] = {v: i - len(graph.arguments) for i, v in enumerate(graph.arguments)}
    constant, weight, changed = len(graph.ops), len(graph.ops) + 1, 0
    for index, op in enumerate(graph.ops):
        place.update(dict.fromkeys(op.results, constant if op.opcode == "constant" else index))
        if find_op(op.opcode).commutative:
            first, second = op.operands
            if place.get(second, weight) < place.get(first, weight):
                op.set_operand(0, second)
                op.set_operand(1, first)
                changed += 1
    return changed
