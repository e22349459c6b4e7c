"""The GGUF block formats, taken apart without loss: integers, one scale per group, and a minimum where there is one.

Q4_0, Q4_1 and Q8_0 keep their own integers and f16 scales. The Q5 types' 5-bit integers are held in 8 bits; the K
types' products d * sc and dmin * m are exact in f32, so values are exactly those of the blocks.
Formats: ggml's block structures (ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .dtypes import F16, F32, I4, I8, U4, U8, DType

Array = np.ndarray


@dataclass(frozen=True)
class BlockFormat:
    """`bytes` a block takes, `values` it holds, and the group and dtypes it is taken apart into."""

    name: str
    bytes: int
    values: int
    group: int
    quants: DType
    scale: DType
    minimum: DType | None
    read_quants: Callable[[Array], Array]
    read_scales: Callable[[Array], Array]
    read_mins: Callable[[Array], Array] | None = None

    @property
    def as_stored(self) -> bool:
        """Whether integers and scales keep the width they have in the block."""
        return self.name in ("q4_0", "q4_1", "q8_0")


def _half(blocks: Array, at: int) -> Array:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _nibbles(packed: Array) -> Array:
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks: Array, at: int) -> Array:
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little")
    return np.asarray(bits << 4)


def _q4_0(b: Array) -> Array:
    return np.asarray(_nibbles(b[:, 2:18]).astype(np.int8) - 8)


def _q5_0(b: Array) -> Array:
    return np.asarray((_nibbles(b[:, 6:22]) | _fifth_bits(b, 2)).astype(np.int8) - 16)


def _k_scales(b: Array) -> tuple[Array, Array]:
    """The eight 6-bit scales and minima packed in 12 bytes from offset 4 (ggml's get_scale_min_k4)."""
    s = b[:, 4:16]
    scale = np.concatenate([s[:, 0:4] & 63, (s[:, 8:12] & 15) | (s[:, 0:4] >> 6 << 4)], axis=1)
    minimum = np.concatenate([s[:, 4:8] & 63, (s[:, 8:12] >> 4) | (s[:, 4:8] >> 6 << 4)], axis=1)
    return scale, minimum


def _k_scale(b: Array) -> Array:
    return np.asarray(_half(b, 0).astype(np.float32) * _k_scales(b)[0].astype(np.float32))


def _k_min(b: Array) -> Array:
    return np.asarray(-(_half(b, 2).astype(np.float32) * _k_scales(b)[1].astype(np.float32)))


def _q4_k(b: Array) -> Array:
    chunks = b[:, 16:144].reshape(-1, 4, 1, 32)
    return np.concatenate([chunks & 15, chunks >> 4], axis=2).reshape(-1, 256)


def _q5_k(b: Array) -> Array:
    low = _q4_k(np.concatenate([b[:, :16], b[:, 48:176]], axis=1)).reshape(-1, 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    high = (b[:, 16:48].reshape(-1, 1, 32) >> shifts & 1) << 4
    return np.asarray((low | high).reshape(-1, 256))


def _q6_k(b: Array) -> Array:
    low = b[:, 0:128].reshape(-1, 2, 2, 32)
    low4 = np.concatenate([low & 15, low >> 4], axis=2)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high2 = (b[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3) << 4
    return np.asarray((low4 | high2).reshape(-1, 256).astype(np.int8) - 32)


def _q6_k_scale(b: Array) -> Array:
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return np.asarray(_half(b, 208).astype(np.float32) * scales)


BLOCKS: dict[str, BlockFormat] = {
    f.name: f
    for f in (
        BlockFormat("q4_0", 18, 32, 32, I4, F16, None, _q4_0, lambda b: _half(b, 0)),
        BlockFormat(
            "q4_1",
            20,
            32,
            32,
            U4,
            F16,
            F16,
            lambda b: _nibbles(b[:, 4:20]),
            lambda b: _half(b, 0),
            lambda b: _half(b, 2),
        ),
        BlockFormat("q5_0", 22, 32, 32, I8, F16, None, _q5_0, lambda b: _half(b, 0)),
        BlockFormat(
            "q5_1",
            24,
            32,
            32,
            U8,
            F16,
            F16,
            lambda b: _nibbles(b[:, 8:24]) | _fifth_bits(b, 4),
            lambda b: _half(b, 0),
            lambda b: _half(b, 2),
        ),
        BlockFormat("q8_0", 34, 32, 32, I8, F16, None, lambda b: b[:, 2:34].view(np.int8), lambda b: _half(b, 0)),
        BlockFormat("q4_k", 144, 256, 32, U4, F32, F32, _q4_k, _k_scale, _k_min),
        BlockFormat("q5_k", 176, 256, 32, U8, F32, F32, _q5_k, _k_scale, _k_min),
        BlockFormat("q6_k", 210, 256, 16, I8, F32, None, _q6_k, _q6_k_scale),
    )
}


def _per_row(fmt: BlockFormat, blocks: Array, read: Callable[[Array], Array]) -> Array:
    rows = blocks.shape[0]
    return np.ascontiguousarray(read(blocks.reshape(-1, fmt.bytes))).reshape(rows, -1)


def block_quants(fmt: BlockFormat, blocks: Array) -> Array:
    """The integers of uint8 [rows, row_bytes], as [rows, columns] of `fmt.quants`."""
    return _per_row(fmt, blocks, fmt.read_quants)


def block_scales(fmt: BlockFormat, blocks: Array) -> Array:
    """The scales, as [rows, columns / group] of `fmt.scale`."""
    return _per_row(fmt, blocks, fmt.read_scales)


def block_mins(fmt: BlockFormat, blocks: Array) -> Array:
    """The minima, as [rows, columns / group] of `fmt.minimum`."""
    assert fmt.read_mins is not None
    return _per_row(fmt, blocks, fmt.read_mins)
