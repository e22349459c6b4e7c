"""What storing a weight matrix in fewer bits may do to its values: the yardstick of quantizing passes.

The nearest values that a format can hold are computed here from its definition, in f64 and apart from the ops that the
passes use. A matrix whose error is larger in any group than that of the nearest values was stored wrongly: another
group size than asked for, a scale of the wrong row, a minimum left out.
"""

from __future__ import annotations

import numpy as np

from llamac.ir.definition import Array
from llamac.ir.dtypes import DTYPES, E4M3FN, I4, I8, U4, U8, DType, round_to, widen
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Weight

from .base import Pass

_SLACK = 1.05
_SCALE_ROUNDING = 2.0**-10
"""Relative error of a value whose scale, and minimum, are stored in f16."""

_SMALLEST_HALF = 2.0**-24
_RANGES: dict[DType, tuple[int, int]] = {I4: (-8, 7), U4: (0, 15), I8: (-127, 127), U8: (0, 255)}


def is_recoded(weight: Weight, origin: str) -> bool:
    """Whether `weight` is @origin stored otherwise (quantized, cast or scaled), not with its rows moved."""
    producer = weight.producer
    if producer is None:
        return False
    if producer.opcode in ("cast", "scale_columns"):
        return producer.operands[0].name == origin
    quants = producer.operands[0].producer if producer.opcode == "dequantize" else None
    return quants is not None and quants.opcode in ("group_quants", "row_quants") and quants.operands[0].name == origin


def column_factors(weight: Weight, evaluator: WeightEvaluator) -> Array | None:
    """What `scale_columns` multiplied the columns of `weight` by, f64 [columns]; None where it did not make it."""
    producer = weight.producer
    if producer is None or producer.opcode != "scale_columns":
        return None
    factors = producer.operands[1]
    assert isinstance(factors, Weight)
    return np.asarray(widen(evaluator.whole(factors)), np.float64)


def stand_in(weight: Weight, old: Array, evaluator: WeightEvaluator) -> Array:
    """What has to stand for `old` in the graph before, so that it computes with the values of `weight`.

    Those values themselves, but of scaled columns what the graph before, which scales them elsewhere, makes them of.
    """
    new, factors = evaluator.whole(weight), column_factors(weight, evaluator)
    if factors is None:
        return new
    kept = widen(old).astype(np.float64)
    return np.asarray(np.divide(np.asarray(widen(new), np.float64), factors, out=kept, where=factors != 0))


def rounding_ratio(weight: Weight, old: Array, new: Array, item: Pass) -> float:
    """Largest error of `new` over what its format explains, 1 being just explained.

    What the pass was asked for counts: its options `group` (columns with one scale) and `dtype`, where it has them.
    """
    before, after = (np.asarray(widen(x), np.float64) for x in (old, new))
    if not np.isfinite(after).all():
        return float("inf")
    producer = weight.producer
    assert producer is not None
    if producer.opcode in ("cast", "scale_columns"):
        dtype = DTYPES.get(str(getattr(item, "dtype", "")), weight.tensor.dtype)
        nearest = round_to(before.astype(np.float32), dtype)
        return 0.0 if np.array_equal(nearest, after.astype(np.float32)) else float("inf")
    quants = producer.operands[0].tensor.dtype
    error = np.abs(after - before)
    if quants is E4M3FN:
        return _ratio(error, _fp8_bound(before))
    columns = producer.attributes["group"]
    assert isinstance(columns, int)
    width = int(getattr(item, "group", columns))
    measured = _norms(error, width) if quants is I4 else _groups(error, width).max(axis=2)
    return _ratio(measured, _integer_bound(before, width, quants))


def _ratio(error: Array, bound: Array) -> float:
    return float(np.max(error / np.maximum(bound, 1e-300)))


def _fp8_bound(x: Array) -> Array:
    """Half a step of e4m3fn around each value, when the largest of its row becomes 448."""
    step = np.abs(x).max(axis=1, keepdims=True) / 448
    return np.asarray((np.abs(x) * 2.0**-4 + step * 2.0**-10) * _SLACK)


def _integer_bound(x: Array, group: int, quants: DType) -> Array:
    """The largest error of each group when every value becomes the nearest that the quants reach.

    The scale of i4 is fitted: its errors, all of a group together, are no larger than with the largest value at -8.
    """
    low, high = _RANGES[quants]
    grouped = _groups(x, group)
    smallest, largest = grouped.min(axis=2, keepdims=True), grouped.max(axis=2, keepdims=True)
    amax = np.maximum(np.abs(smallest), np.abs(largest))
    minimum = np.minimum(smallest, 0) if low == 0 else np.zeros_like(smallest)
    if low == 0:
        scale = (largest - minimum) / high
    elif quants is I4:
        # The first of those that tie, as the scale that is fitted takes it.
        scale = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2)[:, :, None], axis=2) / low
    else:
        scale = amax / high
    safe = np.where(scale == 0, 1, scale)
    nearest = np.clip(np.rint((grouped - minimum) / safe), low, high) * scale + minimum
    stored = (amax * _SCALE_ROUNDING + max(-low, high) * _SMALLEST_HALF)[:, :, 0]
    if quants is I4:
        error = (nearest - grouped).reshape(len(x), -1)[:, : x.shape[1]]
        return np.asarray(_norms(error, group) * _SLACK + stored * group**0.5)
    half_step = np.abs(scale) / 2  # no value need lie where the error is largest
    error = np.maximum(np.abs(nearest - grouped).max(axis=2, keepdims=True), half_step)
    return np.asarray((error * _SLACK)[:, :, 0] + stored)


def _norms(error: Array, group: int) -> Array:
    """The root of the sum of squares of each group; the last may be short."""
    padded = np.pad(error, ((0, 0), (0, -error.shape[1] % group)))
    return np.asarray(np.linalg.norm(padded.reshape(len(error), -1, group), axis=2))


def _groups(x: Array, group: int) -> Array:
    """[rows, columns] as [rows, groups, group]; the last group is filled up with its own last value."""
    short = -x.shape[1] % group
    padded = np.concatenate([x, np.repeat(x[:, -1:], short, axis=1)], axis=1)
    return padded.reshape(len(x), -1, group)
