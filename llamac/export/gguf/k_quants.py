"""Rounds rows of weights to Q4_K and Q6_K, the block types of 256 values with scales of scales.

    Q4_K   8 groups of 32 values: value = d * scale * q - dmin * minimum, q of 4 bits, scale and minimum of 6
    Q6_K   16 groups of 16 values: value = d * scale * q, q of 6 bits and signed, scale of 8 and signed

(ggml-common.h.) A group's scale is found by trying several widths of its range; for each the best factors follow from
the integers by least squares, and the width with the least squared error wins. Then the scales are rounded to those
that a block can hold, and integers, scales and factors of Q4_K are fitted to one another twice more. Nothing is
random, so equal values give equal bytes.

Values lie as [place in the group, group], so that every sum over a group is a sum of whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BLOCK = 256
_VALUES_AT_ONCE = 1 << 17
"""Values whose temporaries stay in the processor's cache."""
_WIDTHS_Q4 = tuple(13.6 + 0.2 * step for step in range(13))
_WIDTHS_Q6 = tuple(32.0 + 0.25 * step for step in range(-4, 5))
"""Steps that the range of a group is cut into, tried in turn: a few less or more than the integers hold."""
_ROUNDS = 2
"""Times that factors, scales and integers of a block are fitted to one another."""
_TINY = np.float32(1e-30)


def quantize_q4_k(rows: Floats) -> Bytes:
    """[rows, columns] of f32, columns a multiple of 256, as blocks: [rows, columns / 256 * 144] bytes."""
    return _by_pieces(rows, 144, _q4_k_blocks)


def quantize_q6_k(rows: Floats) -> Bytes:
    """[rows, columns] of f32, columns a multiple of 256, as blocks: [rows, columns / 256 * 210] bytes."""
    return _by_pieces(rows, 210, _q6_k_blocks)


def _by_pieces(rows: Floats, block_bytes: int, make: Callable[[Floats], Bytes]) -> Bytes:
    """`make` of [blocks, 256], a few blocks at a time."""
    values = np.ascontiguousarray(rows, np.float32).reshape(-1, BLOCK)
    out = np.empty((len(values), block_bytes), np.uint8)
    step = _VALUES_AT_ONCE // BLOCK
    for first in range(0, len(values), step):
        out[first : first + step] = make(values[first : first + step])
    return out.reshape(len(rows), -1)


def _q4_k_blocks(values: Floats) -> Bytes:
    groups = np.ascontiguousarray(values.reshape(-1, 32).T)
    scale, minimum = _best_with_minimum(groups)
    d, scales = _scales_of_six_bits(scale)
    least, minima = _scales_of_six_bits(minimum)
    for round_ in range(_ROUNDS):
        quants = _nearest_q4(groups, d, scales, least, minima)
        if round_:
            scales, minima = _rescaled(groups, quants, d, least)
            quants = _nearest_q4(groups, d, scales, least, minima)
        d, least = _refitted(groups, quants, scales, minima, d, least)
    by_block = _nearest_q4(groups, d, scales, least, minima).astype(np.uint8).T.reshape(-1, 4, 2, 32)
    packed = (by_block[:, :, 0] | by_block[:, :, 1] << 4).reshape(-1, 128)
    halves = np.stack([d, least], axis=1).astype(np.float16).view(np.uint8)
    return np.concatenate([halves, _packed_six_bits(scales, minima), packed], axis=1)


def _nearest_q4(groups: Floats, d: Floats, scales: Floats, least: Floats, minima: Floats) -> Floats:
    """The integers nearest to the values, under the scales that the block will have."""
    step = (d[:, None] * scales).reshape(-1)
    quants = groups + (least[:, None] * minima).reshape(-1)
    quants *= np.where(step > 0, 1 / np.maximum(step, _TINY), 0)
    np.rint(quants, out=quants)
    return np.clip(quants, 0, 15, out=quants)


def _rescaled(groups: Floats, quants: Floats, d: Floats, least: Floats) -> tuple[Floats, Floats]:
    """The six-bit scales, and for those the minima, that fit the integers best under factors that stay."""
    count = np.float32(len(groups))
    q, total, qq, qx = quants.sum(axis=0), groups.sum(axis=0), _dot(quants, quants), _dot(quants, groups)
    a = _fitted_line(count, q, total, qq, qx)[0]
    factor, offset = np.repeat(d, 8), np.repeat(least, 8)
    scales = np.clip(np.rint(a / np.maximum(factor, _TINY)), 0, 63)
    b = (factor * scales * q - total) / count
    minima = np.clip(np.rint(b / np.maximum(offset, _TINY)), 0, 63)
    return scales.reshape(-1, 8), minima.reshape(-1, 8)


def _fitted_line(count: np.float32, q: Floats, total: Floats, qq: Floats, qx: Floats) -> tuple[Floats, Floats]:
    """a and b of the line a * q - b nearest to the values of each group, with b not negative, from their sums."""
    spread = count * qq - q * q
    a = np.where(spread > 0, (count * qx - q * total) / np.maximum(spread, _TINY), 0)
    b = (a * q - total) / count
    return np.where(b < 0, qx / np.maximum(qq, _TINY), a), np.maximum(b, 0)


def _refitted(
    groups: Floats, quants: Floats, scales: Floats, minima: Floats, d: Floats, least: Floats
) -> tuple[Floats, Floats]:
    """d and dmin by least squares over the whole block, in f16; the old ones where that has no answer."""

    def of_blocks(per_group: Floats) -> Floats:
        found: Floats = per_group.reshape(-1, 8).sum(axis=1)
        return found

    s, m = scales.reshape(-1), minima.reshape(-1)
    q, total = quants.sum(axis=0), groups.sum(axis=0)
    ss, sm, mm = of_blocks(s * s * _dot(quants, quants)), of_blocks(s * m * q), of_blocks(m * m) * len(groups)
    sx, mx = of_blocks(s * _dot(quants, groups)), of_blocks(m * total)
    spread = ss * mm - sm * sm
    solvable = spread > 1e-3 * ss * mm
    divisor = np.where(solvable, spread, 1)
    new = (sx * mm - sm * mx) / divisor, (sx * sm - ss * mx) / divisor
    both = solvable & (new[0] > 0) & (new[1] > 0)
    alone = ~both & (least == 0) & (sx > 0)
    d = np.where(both, new[0], np.where(alone, sx / np.maximum(ss, _TINY), d))
    return _as_halves(d), _as_halves(np.where(both, new[1], least))


def _as_halves(values: Floats) -> Floats:
    """Rounded to what f16 holds."""
    found: Floats = values.astype(np.float16).astype(np.float32)
    return found


def _best_with_minimum(groups: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum, neither negative, of each group: value = scale * q - minimum with q in 0..15."""
    count = np.float32(len(groups))
    low = np.minimum(groups.min(axis=0), 0)
    shifted = groups - low
    span = shifted.max(axis=0)
    total, squares = groups.sum(axis=0), np.einsum("ij,ij->j", groups, groups)
    best = np.full(span.shape, np.inf, np.float32)
    scale, minimum = np.zeros_like(span), np.zeros_like(span)
    per_span = 1 / np.maximum(span, _TINY)
    quants = np.empty_like(groups)
    for width in _WIDTHS_Q4:
        np.multiply(shifted, np.float32(width) * per_span, out=quants)
        np.rint(quants, out=quants)
        np.minimum(quants, 15, out=quants)
        q, qq, qx = quants.sum(axis=0), _dot(quants, quants), _dot(quants, groups)
        a, b = _fitted_line(count, q, total, qq, qx)
        error = squares - 2 * a * qx + 2 * b * total + a * a * qq - 2 * a * b * q + count * b * b
        better = (error < best) & (a >= 0)
        best, scale, minimum = (np.where(better, new, old) for new, old in ((error, best), (a, scale), (b, minimum)))
    return scale, minimum


def _q6_k_blocks(values: Floats) -> Bytes:
    groups = np.ascontiguousarray(values.reshape(-1, 16).T)
    scale = _best_signed(groups).reshape(-1, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
    d = (largest / -128).astype(np.float16)
    factor = d.astype(np.float32)
    inverse = np.where(factor != 0, 1 / np.where(factor != 0, factor, 1), 0)
    scales = np.clip(np.rint(scale * inverse), -128, 127)
    step = (factor * scales).reshape(-1)
    inverse = np.where(step != 0, 1 / np.where(step != 0, step, 1), 0)
    quants = (np.clip(np.rint(groups * inverse), -32, 31) + 32).astype(np.uint8)
    halves = quants.T.reshape(-1, 2, 4, 32)
    low = halves[:, :, :2] & 15 | (halves[:, :, 2:] & 15) << 4
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce(halves >> 4 << shifts, axis=2)
    parts = (low.reshape(-1, 128), high.reshape(-1, 64), scales.astype(np.int8).view(np.uint8), d.view(np.uint8))
    return np.concatenate(parts, axis=1)


def _best_signed(groups: Floats) -> Floats:
    """The scale of each group, of the sign that gives its largest value the integer -32, which has no opposite."""
    at = np.abs(groups).argmax(axis=0)
    largest = np.take_along_axis(groups, at[None], axis=0)[0]
    per_largest = np.where(largest != 0, -1 / np.where(largest != 0, largest, 1), 0).astype(np.float32)
    best, scale = np.full(largest.shape, -1, np.float32), np.zeros_like(largest)
    quants = np.empty_like(groups)
    for width in _WIDTHS_Q6:
        np.multiply(groups, np.float32(width) * per_largest, out=quants)
        np.rint(quants, out=quants)
        np.clip(quants, -32, 31, out=quants)
        qq, qx = _dot(quants, quants), _dot(quants, groups)
        a = qx / np.maximum(qq, _TINY)
        explained = a * qx
        better = explained > best
        best, scale = np.where(better, explained, best), np.where(better, a, scale)
    found: Floats = scale
    return found


def _dot(left: Floats, right: Floats) -> Floats:
    """The sum of products of each group."""
    found: Floats = np.einsum("ij,ij->j", left, right)
    return found


def _scales_of_six_bits(values: Floats) -> tuple[Floats, Floats]:
    """A factor for each block, as its f16 says it, and the eight integers 0..63 times which it comes nearest."""
    by_block = values.reshape(-1, 8)
    d = (by_block.max(axis=1) / 63).astype(np.float16).astype(np.float32)
    inverse = np.where(d > 0, 1 / np.maximum(d, _TINY), 0)
    return d, np.clip(np.rint(by_block * inverse[:, None]), 0, 63)


def _packed_six_bits(scales: Floats, minima: Floats) -> Bytes:
    """Eight scales and eight minima of 6 bits in 12 bytes: the upper bits of the later four go above the first."""
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    first = s[:, :4] | s[:, 4:] >> 4 << 6
    second = m[:, :4] | m[:, 4:] >> 4 << 6
    third = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1)
