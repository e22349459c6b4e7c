"""The file beside an ONNX model that holds its weights: places first, then values, block of rows by block of rows."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Weight

ALIGNMENT = 4096
"""Of every tensor: ONNX Runtime maps what begins at a page."""

_FACTOR = 40
"""Bytes of temporary arrays per weight element while a block is quantized and packed (as in `llamac.materialize`)."""

_BLOCK_ELEMENTS = 1 << 19
"""Elements in a block however much memory there is."""

_WORKERS = min(os.cpu_count() or 1, 4)
"""Threads that evaluate blocks; how many there are changes no byte."""

_AHEAD = 2
"""Finished blocks that may wait for the one before them."""

Encode = Callable[[NDArray[Any]], NDArray[Any]]
"""Stored rows [r, columns] of a weight -> what the file holds: [r, m], or [m, r'] of a transposed tensor."""


@dataclass(frozen=True)
class PlacedTensor:
    """One initializer: rows [first, last) of `weight`, encoded, at `offset` of the file.

    element: the name of its type in onnx.TensorProto. dims: what ONNX sees. stored: shape and dtype in the file, rows
    of a transposed tensor going to columns, `packing` of them to one stored item.
    """

    name: str
    element: str
    dims: tuple[int, ...]
    weight: Weight
    first: int
    last: int
    encode: Encode
    stored: tuple[int, int]
    dtype: np.dtype[Any]
    transposed: bool
    packing: int
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.stored[0] * self.stored[1] * self.dtype.itemsize


class ExternalData:
    """Gives tensors their places in one file, and writes it."""

    def __init__(self) -> None:
        self.tensors: list[PlacedTensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.tensors[-1].offset + self.tensors[-1].nbytes if self.tensors else 0

    def place(
        self,
        name: str,
        element: str,
        dims: Sequence[int],
        weight: Weight,
        rows: tuple[int, int],
        encode: Encode,
        stored: tuple[int, int],
        dtype: np.dtype[Any],
        transposed: bool = False,
        packing: int = 1,
    ) -> PlacedTensor:
        """Enter a tensor behind the others; see `PlacedTensor`."""
        offset = -(-self.nbytes // ALIGNMENT) * ALIGNMENT
        made = PlacedTensor(
            name, element, tuple(dims), weight, *rows, encode, stored, dtype, transposed, packing, offset
        )
        self.tensors.append(made)
        return made

    def write(self, path: Path, evaluator: WeightEvaluator, memory: int, progress: Callable[[int], None]) -> None:
        """Write the file; temporary arrays stay below about `memory` bytes. OSError when the disk is full."""
        with path.open("w+b") as file:
            if self.nbytes:
                _reserve(file.fileno(), self.nbytes)
        each = memory // (_WORKERS + _AHEAD)
        with ThreadPoolExecutor(_WORKERS) as pool:
            running: deque[Future[int]] = deque()
            for tensor, lo, hi in self._blocks(each):
                running.append(pool.submit(_write, tensor, lo, hi, path, evaluator))
                if len(running) > _WORKERS + _AHEAD:
                    progress(running.popleft().result())
            for job in running:
                progress(job.result())

    def _blocks(self, memory: int) -> Iterator[tuple[PlacedTensor, int, int]]:
        """Every block of rows of every tensor; each goes to bytes of its own."""
        for tensor in self.tensors:
            step = rows_per_block(tensor, memory)
            for lo in range(tensor.first, tensor.last, step):
                yield tensor, lo, min(lo + step, tensor.last)


def _reserve(descriptor: int, nbytes: int) -> None:
    """Give the file its length at once: a mapped page that the disk has no room for would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)
    else:
        os.truncate(descriptor, nbytes)


def _write(tensor: PlacedTensor, lo: int, hi: int, path: Path, evaluator: WeightEvaluator) -> int:
    """Evaluate rows [lo, hi) and put them in their place; returns how many bytes they take."""
    block = evaluator.rows(tensor.weight, lo, hi)
    encoded = tensor.encode(block.reshape(1, -1) if tensor.weight.tensor.rank < 2 else block)
    target = np.memmap(path, tensor.dtype, "r+", tensor.offset, tensor.stored)
    start = (lo - tensor.first) // tensor.packing
    if tensor.transposed:
        target[:, start : start + encoded.shape[1]] = encoded
    else:
        target[start : start + encoded.shape[0]] = encoded
    return int(encoded.nbytes)


def rows_per_block(tensor: PlacedTensor, memory: int) -> int:
    """Rows of the weight that fit the bound: an even number, and whole heads where rows are reordered."""
    columns = tensor.weight.tensor.shape[-1]
    assert isinstance(columns, int)
    step = max(min(memory // _FACTOR, _BLOCK_ELEMENTS) // max(columns, 1), 1)
    unit = max(_head_rows(tensor.weight), 2)
    return max(step // unit, 1) * unit


def _head_rows(weight: Any) -> int:
    """The head size of a row reordering anywhere in the weight's definition, else 0."""
    if weight.producer is None:
        return 0
    found = weight.producer.attributes.get("head_dim")
    return found if isinstance(found, int) else max((_head_rows(v) for v in weight.producer.operands), default=0)
