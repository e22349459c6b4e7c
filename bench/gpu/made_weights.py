"""Weights of a benchmark case, made as they are uploaded: the same every time, and never in memory all at once.

Matrices repeat a short random pattern, each from a place of its own; norms and rotation frequencies are the real ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from llamac.ir.layouts import format_of
from llamac.ir.row_layouts import RowLayout, unpack_rows

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
PERIOD = 257 << 12
"""Bytes after which a pattern repeats: 257 rows or so, a prime, so that rows read from a wrong tile are others."""

LEAST_RUN = 1 << 16
"""Bytes that short patterns are repeated to, so that they too are copied in long runs."""

DEVIATION = 0.02
"""Of matrix elements, as models start with."""


@dataclass(frozen=True)
class Part:
    """A stretch of the member that repeats `pattern` from byte `shift` of it."""

    start: int
    stop: int
    pattern: Bytes
    shift: int

    def write(self, out: Bytes, first: int) -> None:
        """Fill what lies in `out`, the member's bytes from `first` on."""
        start, stop = max(self.start, first), min(self.stop, first + out.size)
        if start < stop:
            repeat(out[start - first : stop - first], self.pattern, start - self.start + self.shift)


def repeat(out: Bytes, pattern: Bytes, place: int) -> None:
    """Fill `out` with the pattern again and again, from byte `place` of it on: as fast as memory is copied."""
    size, place = pattern.size, place % pattern.size
    head = min(size - place, out.size)
    out[:head] = pattern[place : place + head]
    whole = (out.size - head) // size
    out[head : head + whole * size].reshape(whole, size)[:] = pattern
    rest = out.size - head - whole * size
    out[out.size - rest :] = pattern[:rest]


class MadeWeights:
    """The weight member of a case, read by slices like an array of bytes.

    rows: the weights as the case lists them. small: offset -> the bytes of each that is no matrix.
    """

    def __init__(self, rows: list[dict[str, Any]], small: dict[int, bytes]) -> None:
        self.rows = {row["name"]: row for row in rows}
        self.nbytes = max(row["offset"] + -(-row["bytes"] // 256) * 256 for row in rows)
        rng = np.random.default_rng(7)
        self._patterns: dict[str, Bytes] = {}
        self._parts: list[Part] = []
        for number, row in enumerate(rows):
            if row["small"]:
                data = np.frombuffer(small[row["offset"]], np.uint8)
                self._parts.append(Part(row["offset"], row["offset"] + data.size, data, 0))
            else:
                self._parts += self._matrix(row, number, rng)

    def __getitem__(self, place: slice) -> Bytes:
        start, stop, _ = place.indices(self.nbytes)
        out = np.zeros(stop - start, np.uint8)
        for part in self._parts:
            part.write(out, start)
        return out

    def values(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """What a weight's bytes stand for, in its own shape; rows that repeat are unpacked once."""
        row = self.rows[name]
        start = row["offset"]
        if row["small"]:
            return values_of(row, self[start : start + row["bytes"]])
        layout = _layout(row)
        period = self._patterns[layout.format.quants.name].size
        first = replace(layout, rows=min(layout.rows, math.lcm(period, layout.row_bytes) // layout.row_bytes))
        packed = np.zeros(first.bytes, np.uint8)
        for (to, size), (source, _) in zip(first.sections, layout.sections, strict=True):
            packed[to : to + first.rows * size] = self[start + source : start + source + first.rows * size]
        rows = np.asarray(unpack_rows(first, packed), np.float32)
        found = np.empty((layout.rows, layout.columns), np.float32)
        for place in range(0, layout.rows, first.rows):
            found[place : place + first.rows] = rows[: layout.rows - place]
        return found.reshape(row["shape"])

    def _matrix(self, row: dict[str, Any], number: int, rng: np.random.Generator) -> list[Part]:
        layout, start = _layout(row), row["offset"]
        kind = layout.format.quants.name
        if kind not in self._patterns:
            self._patterns[kind] = _pattern(kind, rng)
        shift = number * 4096 * 37
        parts = [Part(start, start + layout.rows * layout.row_bytes, self._patterns[kind], shift)]
        if layout.scale is not None:
            one = np.array([_scale(layout)], np.float32).astype(layout.scale.storage).view(np.uint8)
            many = np.tile(one, LEAST_RUN // one.size)
            parts.append(Part(start + layout.scales_at, start + layout.minima_at, many, 0))
        return parts


def values_of(row: dict[str, Any], data: Bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the bytes of a weight stand for, in its own shape."""
    if row["small"]:
        return data.view(np.float32).reshape(row["shape"])
    return np.asarray(unpack_rows(_layout(row), data), np.float32)


def _layout(row: dict[str, Any]) -> RowLayout:
    columns = row["shape"][-1]
    return RowLayout(format_of(row["format"]), int(np.prod(row["shape"][:-1])), columns)


def _pattern(kind: str, rng: np.random.Generator) -> Bytes:
    """Random elements of a storage type, normal where it is a float."""
    normal = rng.standard_normal(PERIOD // 2) * DEVIATION
    if kind == "bf16":
        return normal.astype(ml_dtypes.bfloat16).view(np.uint8)
    if kind == "f16":
        return normal.astype(np.float16).view(np.uint8)
    if kind == "f32":
        return normal.astype(np.float32).view(np.uint8)
    if kind == "e4m3fn":
        found = (rng.standard_normal(PERIOD) * 100).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return np.where(found == 0x80, np.uint8(0), found)
    return rng.integers(0, 256, PERIOD, np.uint8)


def _scale(layout: RowLayout) -> float:
    """The scale with which elements have about the deviation of the others."""
    if layout.format.quants.name == "e4m3fn":
        return DEVIATION / 100
    return DEVIATION / (2.0 ** (layout.format.quants.bits - 1) * 0.58)
