"""How rows of weights become bytes of an ONNX tensor. Each function takes stored rows [r, columns]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.dtypes import widen

Bytes = NDArray[Any]


def as_stored(rows: Bytes) -> Bytes:
    """The rows themselves."""
    return rows


def transposed(rows: Bytes) -> Bytes:
    """[columns, r]."""
    return rows.T


def as_float(rows: Bytes) -> Bytes:
    """f32, which holds every narrower float."""
    return np.asarray(widen(rows), np.float32)


def transposed_float(rows: Bytes) -> Bytes:
    """f32 [columns, r]."""
    return as_float(rows).T


def transposed_nibbles(rows: Bytes) -> Bytes:
    """4-bit integers (one a byte) of an even number of rows -> [columns, r / 2], the first row in the low half."""
    low, high = rows.T[:, 0::2].view(np.uint8), rows.T[:, 1::2].view(np.uint8)
    return (low & 15) | (high << 4)


def centered(rows: Bytes, bits: int) -> Bytes:
    """Quants as signed ones: the middle of unsigned ones becomes 0."""
    return rows if rows.dtype == np.int8 else (rows.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def blocks(rows: Bytes, bits: int, group: int) -> Bytes:
    """Quants as MatMulNBits wants them: unsigned with the middle as zero, [r, groups * group * bits / 8].

    The columns of a short last group are filled with the middle.
    """
    middle = 1 << (bits - 1)
    unsigned = rows.view(np.uint8) if rows.dtype == np.uint8 else (rows.astype(np.int16) + middle).astype(np.uint8)
    short = -rows.shape[1] % group
    if short:
        unsigned = np.pad(unsigned, ((0, 0), (0, short)), constant_values=middle)
    return unsigned if bits == 8 else unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
