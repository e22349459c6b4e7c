"""Where every weight that the generated code reads lies in the artifact's weight member."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.graph import Module, Weight

ALIGNMENT = 64


@dataclass(frozen=True)
class PlacedWeight:
    """One weight at `offset` of the member; `format` is the packed format or the dtype, `shape` that of the matrix."""

    weight: Weight
    offset: int
    nbytes: int
    format: str
    shape: tuple[int, ...]


def plan_weights(module: Module) -> list[PlacedWeight]:
    """Every weight that an op uses, in order of first use in the step, each 64-byte aligned."""
    seen: dict[Weight, None] = {}
    for op in module.step.ops:
        for operand in op.operands:
            if isinstance(operand, Weight):
                seen[operand] = None
    placed: list[PlacedWeight] = []
    offset = 0
    for weight in seen:
        nbytes = weight_bytes(weight)
        placed.append(PlacedWeight(weight, offset, nbytes, *_stored(weight)))
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return placed


def member_bytes(placed: list[PlacedWeight]) -> int:
    """Bytes of the whole member."""
    return placed[-1].offset + -(-placed[-1].nbytes // ALIGNMENT) * ALIGNMENT if placed else 0


def weight_bytes(weight: Weight) -> int:
    """Bytes of the weight as its type stores it."""
    size = weight.tensor.dtype.storage.itemsize
    for dim in weight.tensor.shape:
        assert isinstance(dim, int)
        size *= dim
    return size


def _stored(weight: Weight) -> tuple[str, tuple[int, ...]]:
    producer = weight.producer
    of = producer.operands[0].tensor if producer is not None and producer.opcode == "pack" else weight.tensor
    name = str(producer.attributes["format"]) if producer is not None and producer.opcode == "pack" else of.dtype.name
    return name, tuple(d for d in of.shape if isinstance(d, int))


def bytes_per_token(module: Module, placed: list[PlacedWeight]) -> int:
    """Weight bytes that a decode step of one token reads: all, but one row of a table that is only looked up."""
    total = 0
    for item in placed:
        looked_up = all(op.opcode == "embed_rows" for op in item.weight.users)
        total += item.nbytes // max(item.shape[0], 1) if looked_up else item.nbytes
    return total
