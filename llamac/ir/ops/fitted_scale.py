"""The scale of a group of 4-bit integers, fitted: least squares over a few ways to spread the group over -8..7.

For quants q the best scale is d = sum(q x) / sum(q^2); the error it leaves is sum(x^2) - 2 d sum(q x) + d^2 sum(q^2).
Each candidate puts the element of largest magnitude at another place of the range, rounds, and fits; the least error
wins, the first of those that tie. A group that is on a grid already keeps it.
"""

from __future__ import annotations

import numpy as np

from ..definition import Array

EXTREMES = (8.0, 7.5, 8.5)
"""Where the element of largest magnitude goes, below zero: to the end of the range, inside it, or cut off by it."""

_LOW, _HIGH = np.float32(-8), np.float32(7)


def fitted_scale(x: Array, extreme: Array, columns: int) -> Array:
    """f16 scales [rows, groups] for x, f32 [rows, groups, group], of which the first `columns` of a row count.

    `extreme` holds the largest element of each group, with its sign.
    """
    rows, groups, group = x.shape
    # Elements of a group lie a row apart, so that groups are summed side by side.
    values = x.reshape(-1, group).T.copy()
    if short := groups * group - columns:
        values.reshape(group, rows, groups)[group - short :, :, -1] = 0
    return _fit(values, extreme.reshape(-1)).reshape(rows, groups)


def _fit(values: Array, extreme: Array) -> Array:
    """The scale of each column of `values`."""
    quants, product = np.empty_like(values), np.empty_like(values)
    best = np.zeros(len(extreme), np.float16)
    least = np.full(len(extreme), np.inf, np.float32)
    for place in EXTREMES:
        _quants(values, _half(extreme / np.float32(-place)), quants)
        along = _sum(np.multiply(quants, values, out=product))
        length = _sum(np.multiply(quants, quants, out=product))
        scale = _half(np.divide(along, length, out=np.zeros_like(along), where=length > 0))
        wide = scale.astype(np.float32)
        # The sum of squares of x is the same for all candidates, so it is left out.
        error = wide * (wide * length - 2 * along)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def _quants(values: Array, scale: Array, out: Array) -> None:
    wide = scale.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
    np.multiply(values, inverse, out=out)
    np.rint(out, out=out)
    np.maximum(out, _LOW, out=out)
    np.minimum(out, _HIGH, out=out)


def _sum(rows: Array) -> Array:
    """The sum of the rows, which it uses up: in halves, so in one order, where numpy's own depends on the shape."""
    while (count := len(rows)) > 1:
        half = count // 2
        rows[:half] += rows[count - half :]
        rows = rows[: count - half]
    return np.array(rows[0])


def _half(x: Array) -> Array:
    return np.asarray(np.clip(x, -65504, 65504).astype(np.float16))
