"""Evaluates the weights that the code reads, once, block by block, straight into the artifact."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import IO, Protocol

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

_PREFIX = "llamac-section-"

_COPIED = 1 << 20
"""Bytes that are copied from a file at once."""

_AHEAD = 2
"""Finished blocks that may wait for the one before them."""


def write_weights(
    placed: Iterable[PlacedWeight], evaluator: WeightEvaluator, sink: Sink, memory: int, progress: Progress
) -> None:
    """Write every weight at its offset; temporary arrays stay below about `memory` bytes."""
    position = 0
    with ThreadPoolExecutor(_WORKERS) as pool, ExitStack() as files:
        apart: _Apart | None = None
        for item, block in _in_order(pool, _jobs(placed, evaluator, memory // (_WORKERS + _AHEAD))):
            if apart is not None and apart.item is not item:
                position += apart.finish(sink, position)
                apart = None
            data = np.ascontiguousarray(block)
            if item.sections and apart is None:
                others = item.sections[1:]
                apart = _Apart(item, [files.enter_context(tempfile.TemporaryFile(prefix=_PREFIX)) for _ in others])
            if apart is not None:
                data = apart.first_section(data)
            sink.write(memoryview(bytes(max(item.offset - position, 0))))
            flat = data.reshape(-1).view(np.uint8)
            sink.write(flat.data)
            progress(block.nbytes)
            position = max(position, item.offset) + flat.nbytes
        if apart is not None:
            apart.finish(sink, position)


class _Apart:
    """The sections of a matrix of records behind the first, each in a file until its turn: no memory is too small."""

    def __init__(self, item: PlacedWeight, files: list[IO[bytes]]) -> None:
        self.item = item
        sections = zip(item.sections[1:], files, strict=True)
        self.later = [(item.offset + offset, nbytes, file) for (offset, nbytes), file in sections]

    def first_section(self, records: np.ndarray) -> np.ndarray:
        """The quants of some records; what follows them is kept for `finish`."""
        start = self.item.sections[0][1]
        for _, nbytes, file in self.later:
            file.write(np.ascontiguousarray(records[:, start : start + nbytes]).data)
            start += nbytes
        return np.ascontiguousarray(records[:, : self.item.sections[0][1]])

    def finish(self, sink: Sink, position: int) -> int:
        """Write the other sections at their places and the padding behind them; returns the bytes written."""
        begun = position
        for offset, _, file in self.later:
            sink.write(memoryview(bytes(offset - position)))
            position = offset
            file.seek(0)
            while part := file.read(_COPIED):
                sink.write(memoryview(part))
                position += len(part)
            file.close()
        end = self.item.offset + self.item.nbytes
        sink.write(memoryview(bytes(end - position)))
        return end - begun


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
    if heads and item.sections:
        step = max(step // heads, 1) * heads
    elif heads and step * 16 >= heads:
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
