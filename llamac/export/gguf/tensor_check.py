"""Every tensor of an exported file against the source's: bytes, integers, or values within what its type may lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamac.models.checkpoint import BLOCKS

from ..model_weights import ModelWeights
from ..request import Check
from .plan import PlannedTensor

HALF_ROUNDING = 2.0**-11
ERRORS = {
    "f32": 0.0,
    "f16": 2.0**-11,
    "bf16": 2.0**-8,
    "q8_0": 1 / 254 + 2.0**-10,
    "q4_0": 1 / 8 + 2.0**-10,
    "q5_0": 1 / 16 + 2.0**-10,
    "q4_1": 1 / 15 + 2.0**-9,
    "q5_1": 1 / 31 + 2.0**-9,
    "q4_k": 1 / 5,
    "q6_k": 1 / 16,
}
"""Type -> largest error of a value, of the largest magnitude in its block. Half a step at most where values are cut
evenly, a whole one at the end of a range that has no opposite; the K types trade single errors for their squares."""
SMALLEST_HALF = 2.0**-24
"""Steps of f16 near zero."""


@dataclass
class _Kind:
    """What was found for the tensors of one type and way."""

    tensors: int = 0
    worst: float = 0.0
    place: str = ""
    squares: float = 0.0
    size: float = 0.0

    def add(self, place: str, worst: float, squares: float, size: float) -> None:
        if worst >= self.worst:
            self.worst, self.place = worst, place
        self.squares += squares
        self.size += size


def tensor_checks(source: ModelWeights, found: ModelWeights, planned: Sequence[PlannedTensor]) -> Iterator[Check]:
    """One check for each type and way that occurs; together they cover every tensor."""
    kinds: dict[tuple[str, str], _Kind] = {}
    for tensor in planned:
        kind = kinds.setdefault((tensor.way, tensor.kind), _Kind())
        kind.tensors += 1
        for lo, hi in _ranges(source, tensor):
            _COMPARE[tensor.way](source, found, tensor, lo, hi, kind)
    for (way, name), kind in kinds.items():
        yield _check(way, name, kind)


def _ranges(source: ModelWeights, tensor: PlannedTensor) -> Iterator[tuple[int, int]]:
    shape = source.shape(tensor.source)
    step = source.rows_at_once(tensor.source) if len(shape) == 2 else 1
    rows = shape[0] if len(shape) == 2 else 1
    yield from ((lo, min(lo + step, rows)) for lo in range(0, rows, step))


def _bytes(a: ModelWeights, b: ModelWeights, tensor: PlannedTensor, lo: int, hi: int, kind: _Kind) -> None:
    odd = (a.stored_rows(tensor.source, lo, hi) != b.stored_rows(tensor.source, lo, hi)).sum()
    kind.add(tensor.source, float(odd), 0.0, 0.0)


def _integers(a: ModelWeights, b: ModelWeights, tensor: PlannedTensor, lo: int, hi: int, kind: _Kind) -> None:
    """Integers must be equal; factors may lose what f16 has no bits for."""
    rows = b.quantized_rows(tensor.source, lo, hi)
    same = np.array_equal(a.quantized_rows(tensor.source, lo, hi).quants, rows.quants)
    before, after = a.rows(tensor.source, lo, hi), b.rows(tensor.source, lo, hi)
    worst = _largest_error(before, after, BLOCKS[tensor.kind][0], HALF_ROUNDING) if same else np.inf
    kind.add(tensor.source, worst, *_squares(before, after))


def _values(a: ModelWeights, b: ModelWeights, tensor: PlannedTensor, lo: int, hi: int, kind: _Kind) -> None:
    before, after = a.rows(tensor.source, lo, hi), b.rows(tensor.source, lo, hi)
    worst = _largest_error(before, after, BLOCKS[tensor.kind][0], ERRORS[tensor.kind])
    kind.add(tensor.source, worst, *_squares(before, after))


_COMPARE = {"copy": _bytes, "integers": _integers, "values": _values}


def _largest_error(before: NDArray[np.float32], after: NDArray[np.float32], block: int, bound: float) -> float:
    """The largest difference, of the largest magnitude of its block; what f16's smallest step explains is none."""
    apart = np.abs(before - after).reshape(-1, block)
    largest = np.abs(before).reshape(-1, block).max(axis=1, keepdims=True)
    steps = 16 * 63 * SMALLEST_HALF if bound else 0.0
    excess = np.maximum(apart - steps, 0) / np.maximum(largest, 1e-30)
    return float(excess.max(initial=0))


def _squares(before: NDArray[np.float32], after: NDArray[np.float32]) -> tuple[float, float]:
    difference = (before - after).astype(np.float64)
    return float(np.square(difference).sum()), float(np.square(before.astype(np.float64)).sum())


def _check(way: str, name: str, kind: _Kind) -> Check:
    if way == "copy":
        said = (
            f"{int(kind.worst)} bytes differ, {kind.place}" if kind.worst else f"{kind.tensors} tensors, byte for byte"
        )
        return Check(f"{name} as stored", kind.worst == 0, said)
    bound = 3 * HALF_ROUNDING if way == "integers" else ERRORS[name]
    lost = np.sqrt(kind.squares / kind.size) if kind.size else 0.0
    said = f"{kind.tensors} tensors, largest error {kind.worst:.1e} of a block ({kind.place}), together {lost:.1e}"
    label = f"{name} with the source's integers" if way == "integers" else f"values as {name}"
    return Check(label, kind.worst <= bound, said, f"{bound:.1e}")
