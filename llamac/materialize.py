"""Evaluates the weights that the code reads, once, block by block, straight into the artifact."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np

from llamac.analysis.weight_plan import PlacedWeight
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

_WORKERS = min(os.cpu_count() or 1, 4)
"""Threads that evaluate blocks; how many there are changes no byte."""

_AHEAD = 2
"""Finished blocks that may wait for the one before them."""


def write_weights(
    placed: Iterable[PlacedWeight], evaluator: WeightEvaluator, sink: Sink, memory: int, progress: Progress
) -> None:
    """Write every weight at its offset; temporary arrays stay below about `memory` bytes."""
    position = 0
    with ThreadPoolExecutor(_WORKERS) as pool:
        for item, block in _in_order(pool, _jobs(placed, evaluator, memory // (_WORKERS + _AHEAD))):
            sink.write(memoryview(bytes(max(item.offset - position, 0))))
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
            sink.write(data.data)
            progress(data.nbytes)
            position = max(position, item.offset) + data.nbytes


Job = tuple[PlacedWeight, Callable[[], np.ndarray]]


def _jobs(placed: Iterable[PlacedWeight], evaluator: WeightEvaluator, memory: int) -> Iterator[Job]:
    """A job for each block of each weight, in the order of the file."""
    for item in placed:
        weight = item.weight
        if weight.tensor.rank < 2:
            yield item, partial(evaluator.whole, weight)
            continue
        rows = weight.tensor.shape[0]
        assert isinstance(rows, int)
        step = rows_per_block(item, memory)
        for start in range(0, rows, step):
            yield item, partial(evaluator.rows, weight, start, min(start + step, rows))


def _in_order(pool: ThreadPoolExecutor, jobs: Iterable[Job]) -> Iterator[tuple[PlacedWeight, np.ndarray]]:
    """The results of `jobs` in their order, a few being computed while one is written (numpy lets threads run)."""
    waiting: deque[tuple[PlacedWeight, Future[np.ndarray]]] = deque()
    for item, job in jobs:
        waiting.append((item, pool.submit(job)))
        if len(waiting) > _WORKERS + _AHEAD:
            first, found = waiting.popleft()
            yield first, found.result()
    for item, found in waiting:
        yield item, found.result()


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
