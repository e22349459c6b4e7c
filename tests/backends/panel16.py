"""An independent numpy oracle of the layout cpu-panel16 and of the arithmetic of the linear kernels, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DENSE_TYPES: dict[str, Any] = {
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
}


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step


def fma(a: Array, b: Array, c: Array) -> Array:
    """f32 a * b + c, rounded once: the product is exact in the host's long double, whose sum has bits to spare."""
    exact = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
    return exact.astype(np.float32)


def _padded_bytes(data: Array) -> Array:
    raw = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
    return np.concatenate([raw, np.zeros(round_up(raw.size, 64) - raw.size, np.uint8)])


def _panels(matrix: Array) -> Array:
    """[rows, k] -> [panels, 16, k], rows padded with zeros."""
    padded = np.zeros((round_up(matrix.shape[0], 16), matrix.shape[1]), matrix.dtype)
    padded[: matrix.shape[0]] = matrix
    return padded.reshape(-1, 16, matrix.shape[1])


def pack_dense(matrix: Array, row_scale: Array | None = None) -> Array:
    """[n, k] of a dense type into panels; `row_scale` [n] goes with e4m3fn only."""
    if row_scale is None:
        return np.concatenate([_padded_bytes(panel.T) for panel in _panels(matrix)])
    padded = np.zeros((matrix.shape[0], round_up(matrix.shape[1], 4)), matrix.dtype)
    padded[:, : matrix.shape[1]] = matrix
    scales = _panels(row_scale[:, None])[:, :, 0]
    parts = zip(_panels(padded), scales, strict=True)
    return np.concatenate([part for panel, scale in parts for part in (_padded_bytes(panel.T), _padded_bytes(scale))])


def dense_linear(x: Array, matrix: Array, row_scale: Array | None = None) -> Array:
    """x [rows, k] times matrix [n, k] transposed, by the contract's chain."""
    weights = matrix.astype(np.float32)
    acc = np.zeros((x.shape[0], weights.shape[0]), np.float32)
    for k in range(x.shape[1]):
        acc = fma(x[:, k : k + 1], weights[None, :, k], acc)
    return acc if row_scale is None else acc * row_scale


def pack_pairs(matrix: Array, row_scale: Array | None = None) -> Array:
    """[n, k] of bf16 or e4m3fn into panels of pairs; `row_scale` [n] goes with e4m3fn only."""
    padded = np.zeros((matrix.shape[0], round_up(matrix.shape[1], 2)), matrix.dtype)
    padded[:, : matrix.shape[1]] = matrix
    panels = _panels(padded)
    pairs = panels.reshape(len(panels), 16, -1, 2).transpose(0, 2, 1, 3)
    if row_scale is None:
        return np.concatenate([_padded_bytes(panel) for panel in pairs])
    scales = _panels(row_scale[:, None])[:, :, 0]
    parts = zip(pairs, scales, strict=True)
    return np.concatenate([part for panel, scale in parts for part in (_padded_bytes(panel), _padded_bytes(scale))])


def pairs_linear(x: Array, matrix: Array, row_scale: Array | None = None) -> Array:
    """x [rows, k] rounded to bf16 times matrix [n, k] transposed, by the contract's chain: odd inputs before even."""
    inputs = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    weights = matrix.astype(np.float32)
    acc = np.zeros((x.shape[0], weights.shape[0]), np.float32)
    for pair in range(0, x.shape[1], 2):
        for k in (pair + 1, pair):
            if k < x.shape[1]:
                acc = fma(inputs[:, k : k + 1], weights[None, :, k], acc)
    return acc if row_scale is None else acc * row_scale


def tiles_linear(x: Array, matrix: Array, row_scale: Array | None = None) -> Array:
    """The same by the chain of AMX's bf16 tiles: even and odd inputs of 16 pairs apart, then their sum to the rest."""
    inputs = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    weights = matrix.astype(np.float32)
    acc = np.zeros((x.shape[0], weights.shape[0]), np.float32)
    for block in range(0, x.shape[1], 32):
        parts = [np.zeros_like(acc), np.zeros_like(acc)]
        for k in range(block, min(block + 32, x.shape[1])):
            parts[k % 2] = fma(inputs[:, k : k + 1], weights[None, :, k], parts[k % 2])
        acc = acc + (parts[0] + parts[1])
    return acc if row_scale is None else acc * row_scale


@dataclass(frozen=True)
class Grouped:
    """A group-quantized format, `i4g32s16m16`: bits, sign, group, and the widths of scales and mins (0: none)."""

    bits: int
    is_signed: bool
    group: int
    scale_bits: int
    min_bits: int

    @property
    def name(self) -> str:
        tail = f"m{self.min_bits}" if self.min_bits else ""
        return f"{'i' if self.is_signed else 'u'}{self.bits}g{self.group}s{self.scale_bits}{tail}"

    @property
    def literal(self) -> str:
        """The C literal of the format."""
        fields = (self.bits, int(self.is_signed), self.group, self.scale_bits, self.min_bits)
        return f"((llamac_grouped){{{', '.join(map(str, fields))}}})"

    @property
    def offset(self) -> int:
        """What is added to a quant before it is stored."""
        return (8 if self.bits == 4 else 128) if self.is_signed else 0

    @property
    def block(self) -> int:
        """Inputs of an activation block."""
        return 16 if self.group == 16 else 32

    def padded(self, k: int) -> int:
        """k rounded up as weights and activations are stored."""
        return round_up(k, max(self.group, 32))


@dataclass(frozen=True)
class GroupedMatrix:
    """stored [n, padded k] quants as they are stored (offset added), scales and mins [n, groups]."""

    format: Grouped
    k: int
    stored: Array
    scales: Array
    mins: Array | None

    @classmethod
    def random(cls, format: Grouped, n: int, k: int, random: np.random.Generator) -> GroupedMatrix:
        """Random quants over their whole range; inputs beyond k hold zero."""
        padded = format.padded(k)
        stored = random.integers(0, 2**format.bits, (n, padded)).astype(np.uint8)
        stored[:, k:] = format.offset
        shape = (n, padded // format.group)
        scales = random.uniform(-0.02, 0.02, shape).astype(_float_type(format.scale_bits))
        mins = random.uniform(-0.1, 0.1, shape).astype(_float_type(format.min_bits)) if format.min_bits else None
        return cls(format, k, stored, scales, mins)

    def values(self) -> Array:
        """The f32 matrix [n, k] that the quants stand for: scale * q, then + min, each rounded."""
        quants = self.stored.astype(np.float32) - np.float32(self.format.offset)
        values = np.repeat(self.scales.astype(np.float32), self.format.group, axis=1) * quants
        if self.mins is not None:
            values = values + np.repeat(self.mins.astype(np.float32), self.format.group, axis=1)
        return values[:, : self.k]

    def pack(self) -> Array:
        """The bytes of all panels."""
        sections = [self._pack_quants(), _panels(self.scales)]
        if self.mins is not None:
            sections.append(_panels(self.mins))
        count = sections[0].shape[0]
        sections[1:] = [section.transpose(0, 2, 1) for section in sections[1:]]
        return np.concatenate([_padded_bytes(section[p]) for p in range(count) for section in sections])

    def _pack_quants(self) -> Array:
        panels = _panels(self.stored)
        if self.format.bits == 8:  # [panel, lane, j, b] -> [panel, j, lane, b]
            return panels.reshape(len(panels), 16, -1, 4).transpose(0, 2, 1, 3)
        halves = panels.reshape(len(panels), 16, -1, 2, 4)
        joined: Array = halves[:, :, :, 0] | (halves[:, :, :, 1] << 4)
        return joined.transpose(0, 2, 1, 3)


def _float_type(bits: int) -> Any:
    return np.float16 if bits == 16 else np.float32


@dataclass(frozen=True)
class QuantizedRows:
    """q int8 [rows, padded k], scale f32 and sum i32 [rows, blocks]."""

    q: Array
    scale: Array
    sum: Array


def quantize_rows(x: Array, format: Grouped) -> QuantizedRows:
    """f32 [rows, k] by the contract: q = round-half-even(x * (127 / amax)), scale = amax / 127."""
    padded = np.zeros((x.shape[0], format.padded(x.shape[1])), np.float32)
    padded[:, : x.shape[1]] = x
    blocks = padded.reshape(x.shape[0], -1, format.block)
    largest = np.abs(blocks).max(axis=2)
    zero = largest == 0
    safe = np.where(zero, np.float32(1), largest)
    q = np.rint(blocks * (np.float32(127) / safe)[:, :, None]).astype(np.int8)
    scale = np.where(zero, np.float32(0), largest / np.float32(127))
    return QuantizedRows(q.reshape(padded.shape), scale, q.astype(np.int32).sum(axis=2, dtype=np.int32))


def grouped_linear(x: QuantizedRows, matrix: GroupedMatrix) -> Array:
    """Quantized rows times a grouped matrix transposed, by the contract's chain."""
    format, block = matrix.format, matrix.format.block
    acc = np.zeros((x.q.shape[0], matrix.stored.shape[0]), np.float32)
    for b in range(x.scale.shape[1]):
        inputs = slice(b * block, (b + 1) * block)
        group = b * block // format.group
        dots = x.q[:, inputs].astype(np.int32) @ matrix.stored[:, inputs].astype(np.int32).T
        whole = (dots - format.offset * x.sum[:, b : b + 1]).astype(np.float32)
        acc = fma(whole, matrix.scales[:, group].astype(np.float32)[None] * x.scale[:, b : b + 1], acc)
        if matrix.mins is not None:
            factor = x.scale[:, b : b + 1] * x.sum[:, b : b + 1].astype(np.float32)
            acc = fma(matrix.mins[:, group].astype(np.float32)[None], factor, acc)
    return acc
