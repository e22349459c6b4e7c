"""The bytes of a tensor of a GGUF file, a few rows at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from ..model_weights import ModelWeights, QuantizedRows
from .k_quants import quantize_q4_k, quantize_q6_k
from .library import gguf_library
from .plan import SMALL_BLOCK, Notes, PlannedTensor

Bytes = NDArray[np.uint8]
LARGEST_HALF = 65504.0
"""Blocks hold their factors in f16."""
WORKER_BYTES = 64 << 20
"""What one worker needs: rows of f32, arrays of the same size on the way, and what waits to be written."""


def tensor_bytes(weights: ModelWeights, tensor: PlannedTensor, notes: Notes, memory: int) -> Iterator[Bytes]:
    """The data of a tensor from its first byte to its last; `memory` bounds what is held meanwhile, in bytes.

    LLC0947 for a value that the type cannot hold. What was rounded though its integers were kept is noted.
    """
    if tensor.way == "copy":
        yield from (_flat(weights.stored_rows(tensor.source, lo, hi)) for lo, hi in _row_ranges(weights, tensor))
    elif tensor.way == "integers":
        yield from _kept_integers(weights, tensor, notes)
    else:
        workers = max(1, min(os.cpu_count() or 1, memory // WORKER_BYTES))
        yield from _in_order(lambda rows: quantized(tensor.kind, rows, tensor.source), weights, tensor, workers)


def quantized(kind: str, rows: NDArray[np.float32], where: str) -> Bytes:
    """Rows of f32 as blocks of `kind`, flat."""
    if kind not in ("f32", "bf16"):
        largest = float(np.abs(rows).max(initial=0))
        if largest > LARGEST_HALF:
            reason = f"it holds {largest:.4g}, and {kind.upper()} ends at {LARGEST_HALF:g}"
            raise LlamacError("LLC0947", where, reason, "choose bf16 or f32")
    if kind == "q4_k":
        return _flat(quantize_q4_k(rows))
    if kind == "q6_k":
        return _flat(quantize_q6_k(rows))
    gguf = gguf_library()
    return _flat(gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind.upper()]))


def _flat(array: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def _row_ranges(weights: ModelWeights, tensor: PlannedTensor) -> Iterator[tuple[int, int]]:
    """The cuts of `ModelWeights.blocks`."""
    shape = weights.shape(tensor.source)
    if len(shape) == 1:
        yield 0, 1
        return
    step = weights.rows_at_once(tensor.source)
    yield from ((lo, min(lo + step, shape[0])) for lo in range(0, shape[0], step))


def _in_order(
    convert: Callable[[NDArray[np.float32]], Bytes], weights: ModelWeights, tensor: PlannedTensor, workers: int
) -> Iterator[Bytes]:
    """Blocks converted side by side; at most two for each worker are on their way at a time."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Bytes]] = deque()
        for _, rows in weights.blocks(tensor.source):
            waiting.append(pool.submit(convert, rows))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _kept_integers(weights: ModelWeights, tensor: PlannedTensor, notes: Notes) -> Iterator[Bytes]:
    """The source's integers, with its scales (and minima) as f16."""
    exact = True
    for lo, hi in _row_ranges(weights, tensor):
        rows = weights.quantized_rows(tensor.source, lo, hi)
        scales = _halves(rows.scales, rows, tensor)
        minima = None if rows.minima is None else _halves(rows.minima, rows, tensor)
        exact = exact and _is_exact(rows.scales) and (rows.minima is None or _is_exact(rows.minima))
        yield _flat(_blocks(tensor.kind, rows.quants, scales, minima))
    if not exact:
        stored = weights.stored(tensor.source).encoding
        reason = (
            f"{tensor.kind.upper()} has f16 where the source's {stored} has more bits; the integers are the source's"
        )
        notes.add("requantized", tensor.source, "scales or minima rounded", reason)


def _is_exact(values: NDArray[np.float32]) -> bool:
    return bool((values.astype(np.float16).astype(np.float32) == values).all())


def _halves(values: NDArray[np.float32], rows: QuantizedRows, tensor: PlannedTensor) -> NDArray[np.float16]:
    """One f16 for each block of 32 columns."""
    largest = float(np.abs(values).max(initial=0))
    if largest > LARGEST_HALF:
        raise LlamacError("LLC0947", tensor.source, f"a factor of {largest:.4g} is no f16", "choose bf16 or f32")
    columns = rows.quants.shape[1] // SMALL_BLOCK
    return np.repeat(values.astype(np.float16), rows.group // SMALL_BLOCK, axis=1)[:, :columns]


def _blocks(
    kind: str, quants: NDArray[np.generic], scales: NDArray[np.float16], minima: NDArray[np.float16] | None
) -> Bytes:
    """[rows, blocks, bytes]: the factors, then 32 integers, in four bits those of the two halves share bytes."""
    blocks = quants.astype(np.int16).reshape(len(quants), -1, SMALL_BLOCK)
    factors = [f[..., None].view(np.uint8) for f in (scales, minima) if f is not None]
    if kind == "q8_0":
        return np.concatenate([*factors, blocks.astype(np.int8).view(np.uint8)], axis=2)
    unsigned = (blocks + (8 if kind == "q4_0" else 0)).astype(np.uint8)
    half = SMALL_BLOCK // 2
    return np.concatenate([*factors, unsigned[..., :half] | unsigned[..., half:] << 4], axis=2)
