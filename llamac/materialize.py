"""Evaluates the weights that the code reads, once, block by block, straight into the artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from llamac.analysis.weight_plan import PlacedWeight
from llamac.errors import LlamacError
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Value, Weight


class Sink(Protocol):
    """Where bytes go in order."""

    def write(self, data: memoryview) -> object: ...


Progress = Callable[[int], None]
"""Called with the number of bytes just written."""

_FACTOR = 40
"""Bytes of temporary arrays per weight element while a block is quantized and packed (measured, rounded up)."""

_BLOCK_ELEMENTS = 1 << 17
"""Elements in a block however much memory there is: the temporary arrays of a larger one leave the CPU's cache."""


def write_weights(
    placed: Iterable[PlacedWeight], evaluator: WeightEvaluator, sink: Sink, memory: int, progress: Progress
) -> None:
    """Write every weight at its offset; temporary arrays stay below about `memory` bytes."""
    position = 0
    for item in placed:
        sink.write(memoryview(bytes(item.offset - position)))
        for block in _blocks(item, evaluator, memory):
            if not _finite_scales(block):
                reason, hint = "the weight holds values that are not finite", "take an undamaged checkpoint"
                raise LlamacError("LLC0219", item.weight.name, reason, hint)
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
            sink.write(data.data)
            progress(data.nbytes)
        position = item.offset + item.nbytes


def _blocks(item: PlacedWeight, evaluator: WeightEvaluator, memory: int) -> Iterator[np.ndarray]:
    weight = item.weight
    if weight.tensor.rank < 2:
        yield evaluator.whole(weight)
        return
    rows = weight.tensor.shape[0]
    assert isinstance(rows, int)
    step = rows_per_block(item, memory)
    for start in range(0, rows, step):
        yield evaluator.rows(weight, start, min(start + step, rows))


def rows_per_block(item: PlacedWeight, memory: int) -> int:
    """Stored rows (panels, for packed weights) that fit the memory bound; whole heads where rows are reordered."""
    rows = item.weight.tensor.shape[0]
    assert isinstance(rows, int)
    elements = max(int(np.prod(item.shape, dtype=np.int64)) // rows, 1)
    step = max(min(memory // _FACTOR, _BLOCK_ELEMENTS) // elements, 1)
    heads = _head_rows(item.weight)
    if heads and step * 16 >= heads:
        # Reordering rows needs whole heads: blocks that start and end at heads read nothing twice.
        step = step * 16 // heads * heads // 16 if heads % 16 == 0 else rows
    return min(max(step, 1), rows)


def _head_rows(value: Value) -> int:
    """The head size of a row reordering anywhere in the weight's definition, else 0."""
    producer = value.producer
    if producer is None or not isinstance(value, Weight):
        return 0
    found = producer.attributes.get("head_dim")
    return found if isinstance(found, int) else max((_head_rows(v) for v in producer.operands), default=0)


def _finite_scales(block: np.ndarray) -> bool:
    return block.dtype == np.uint8 or bool(np.isfinite(block.astype(np.float32)).all())
