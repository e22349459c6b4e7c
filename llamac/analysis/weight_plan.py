"""Where every weight that the generated code reads lies in the artifact's weight member."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamac.ir.dims import evaluate
from llamac.ir.graph import Module, Op, Value, Weight
from llamac.ir.layouts import format_of
from llamac.ir.row_layouts import RowLayout

ALIGNMENT = 64


@dataclass(frozen=True)
class PlacedWeight:
    """One weight at `offset` of the member; `format` is the packed format or the dtype, `shape` that of the matrix.

    sections: for a matrix in rows, whose records are evaluated, the places that their parts go to: (offset from the
    matrix's own, bytes of each record).
    """

    weight: Weight
    offset: int
    nbytes: int
    format: str
    shape: tuple[int, ...]
    sections: tuple[tuple[int, int], ...] = ()


def plan_weights(*modules: Module, alignment: int = ALIGNMENT) -> list[PlacedWeight]:
    """Every weight that an op of a main graph uses, in order of first use, module by module, each aligned."""
    seen: dict[Weight, None] = {}
    for op in (op for module in modules for op in module.main.ops):
        for operand in op.operands:
            if isinstance(operand, Weight):
                seen[operand] = None
    placed: list[PlacedWeight] = []
    offset = 0
    for weight in seen:
        layout = row_layout(weight)
        nbytes, sections = (layout.bytes, layout.sections) if layout else (weight_bytes(weight), ())
        placed.append(PlacedWeight(weight, offset, nbytes, *_stored(weight), sections))
        offset += -(-nbytes // alignment) * alignment
    return placed


def row_layout(weight: Weight) -> RowLayout | None:
    """How a matrix lies in the layout of rows; None for other weights."""
    producer = weight.producer
    if producer is None or producer.opcode != "pack_rows":
        return None
    rows, columns = producer.operands[0].tensor.shape
    assert isinstance(rows, int) and isinstance(columns, int)
    return RowLayout(format_of(str(producer.attributes["format"])), rows, columns)


def member_bytes(placed: list[PlacedWeight], alignment: int = ALIGNMENT) -> int:
    """Bytes of the whole member."""
    return placed[-1].offset + -(-placed[-1].nbytes // alignment) * alignment if placed else 0


def weight_bytes(weight: Weight) -> int:
    """Bytes of the weight as its type stores it."""
    size = weight.tensor.dtype.storage.itemsize
    for dim in weight.tensor.shape:
        assert isinstance(dim, int)
        size *= dim
    return size


def _stored(weight: Weight) -> tuple[str, tuple[int, ...]]:
    producer = weight.producer
    packed = producer is not None and producer.opcode in ("pack", "pack_rows")
    of = producer.operands[0].tensor if producer is not None and packed else weight.tensor
    name = str(producer.attributes["format"]) if producer is not None and packed else of.dtype.name
    return name, tuple(d for d in of.shape if isinstance(d, int))


def bytes_per_token(module: Module, placed: list[PlacedWeight]) -> int:
    """Weight bytes that a decode step of one token reads; `placed` may hold those of other modules too.

    All of the module's, but one row of a table that is only looked up, and of a stack of experts only those that are
    chosen.
    """
    total = 0
    for item in placed:
        if module.weights.get(item.weight.name) is not item.weight:
            continue
        users = list(_users(module, item.weight))
        if all(op.opcode in ("embed_rows", "embed_rows16") for op in users):
            total += item.nbytes // max(item.shape[0], 1)
        elif all(op.opcode.startswith("expert_") for op in users):
            total += max(_chosen_bytes(op, item.nbytes) for op in users)
        else:
            total += item.nbytes
    return total


def _users(module: Module, value: Value) -> Iterator[Op]:
    """The ops that read a weight, inside the functions it is handed to."""
    for op in value.users:
        if op.opcode != "call":
            yield op
            continue
        callee = module.graphs[str(op.attributes["callee"])]
        for argument, operand in zip(callee.arguments, op.operands, strict=True):
            if operand is value:
                yield from _users(module, argument)


def _chosen_bytes(op: Op, nbytes: int) -> int:
    """Bytes of the experts that one token chooses."""
    experts, chosen = op.attributes["experts"], evaluate(op.results[0].tensor.shape[0], {"T": 1})
    assert isinstance(experts, int)
    return nbytes * min(chosen, experts) // experts
