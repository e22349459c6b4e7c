"""Sizes and places of intermediate values: what `plan-memory` decides and the backends read."""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.dims import evaluate
from llamac.ir.graph import Graph, Module, Op, Value

ALIGNMENT = 64
EXTERNAL = -1000
"""Offset of a result whose memory the caller owns: a cache, or the logits."""


def value_bytes(value: Value, tokens: int) -> int:
    """Bytes of a tensor, rounded up to the alignment, when a step has `tokens` rows, or a picture vision tokens."""
    size = value.tensor.dtype.bits // 8
    for dim in value.tensor.shape:
        size *= evaluate(dim, {"T": tokens, "R": tokens, "M": tokens})
    return -(-size // ALIGNMENT) * ALIGNMENT


def placement(op: Op) -> tuple[int, ...]:
    """Where `plan-memory` put the results of `op` (LLC0505 when it has not run)."""
    found = op.attributes.get("buffers")
    if not isinstance(found, tuple):
        raise LlamacError("LLC0505", op.location, f"{op.opcode} has no place in memory", "run plan-memory first")
    return tuple(int(str(v)) for v in found)


def strips(graph: Graph) -> dict[Value, Value]:
    """Part of a concat -> the concat's result, whose buffer the part is a strip of."""
    return {part: op.result for op in graph.ops if op.opcode == "concat" for part in op.operands}


def arena_bytes(module: Module, max_tokens: int) -> int:
    """Bytes that the placed values of the module need."""
    end = 0
    for graph in module.graphs.values():
        wholes = strips(graph)
        for op in graph.ops:
            for result, offset in zip(op.results, placement(op), strict=True):
                if offset >= 0:
                    end = max(end, offset + value_bytes(wholes.get(result, result), max_tokens))
    return end
