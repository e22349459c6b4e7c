"""Ops that take packed weights of quantized checkpoints apart: words of several integers, zero points, wide scales.

What they give are the integers, scales and minima that `dequantize` stands for; no value changes on the way. Layouts:
the GPTQ, AWQ ("gemm"), compressed-tensors ("pack-quantized") and ModelOpt formats, whose words are read low bits first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..definition import Array, Evaluation, OpDefinition, OpError, Signature
from ..dtypes import F32, I4, I8, I32, U4, U8, DType, widen
from ..graph import Attribute
from ..levels import CAPTURED, KERNEL, MODEL
from ..types import TensorType, Type
from .weights import fixed, same_rows

_WEIGHTS = frozenset({CAPTURED, MODEL, KERNEL})
_UNSIGNED: dict[int, DType] = {4: U4, 8: U8}
_SIGNED: dict[DType, DType] = {U4: I4, U8: I8}
WORD, PAIR = 32, 8
"""Bits of a word, and of one that holds two signed 4-bit integers (ModelOpt's)."""


def _bits(s: Signature) -> int:
    bits = s.integer("bits")
    if bits not in _UNSIGNED:
        raise OpError(f"attribute 'bits' must be 4 or 8, not {bits}")
    if s.tensor(0).dtype is not I32:
        raise OpError(f"{s.tensor(0)} does not hold 32-bit words")
    return bits


def _infer_unpack_columns(s: Signature) -> Sequence[Type]:
    bits, columns = _bits(s), s.positive("columns")
    rows, words = fixed(s.tensor(0))
    if words != -(-columns * bits // WORD):
        raise OpError(f"{s.tensor(0)} does not hold {columns} integers of {bits} bits a row")
    return [TensorType((rows, columns), _UNSIGNED[bits])]


def _evaluate_unpack_columns(e: Evaluation) -> Sequence[Any]:
    words = e.inputs[0]
    parts = _taken_apart(words, e.integer("bits"))
    return [parts.reshape(words.shape[0], -1)[:, : e.integer("columns")]]


def _taken_apart(words: Array, bits: int) -> Array:
    """Words [...] as their integers [..., 32 / bits], lowest bits first."""
    little = np.ascontiguousarray(words, "<i4").view(np.uint8).reshape(*words.shape, 4)
    if bits == 8:
        return little
    return np.stack([little & 15, little >> 4], axis=-1).reshape(*words.shape, 8)


def _infer_unpack_rows(s: Signature) -> Sequence[Type]:
    words, columns = fixed(s.tensor(0))
    if s.attributes.get("word", WORD) == PAIR:
        return _infer_pairs(s, words, columns)
    bits, rows = _bits(s), s.positive("rows")
    if words != -(-rows * bits // WORD):
        raise OpError(f"{s.tensor(0)} does not hold {rows} integers of {bits} bits a column")
    order = s.attributes.get("order")
    if order is not None and (not isinstance(order, tuple) or sorted(map(str, order)) != list("01234567") or bits != 4):
        raise OpError("attribute 'order' must be a permutation of 0..7, for integers of 4 bits")
    return [TensorType((rows, columns), _UNSIGNED[bits])]


def _infer_pairs(s: Signature, words: int, columns: int) -> Sequence[Type]:
    """Words of 8 bits, which hold two signed integers."""
    rows = s.positive("rows")
    if s.tensor(0).dtype is not U8 or s.integer("bits") != 4 or "order" in s.attributes:
        raise OpError(f"{s.tensor(0)} does not hold pairs of 4-bit integers")
    if words != -(-rows // 2):
        raise OpError(f"{s.tensor(0)} does not hold {rows} integers of 4 bits a column")
    return [TensorType((rows, columns), I4)]


def _evaluate_unpack_rows(e: Evaluation) -> Sequence[Any]:
    words, bits = e.inputs[0], e.integer("bits")
    if e.attributes.get("word", WORD) == PAIR:
        unsigned = np.stack([words & 15, words >> 4], axis=1).reshape(-1, words.shape[1])
        return [((unsigned ^ 8).astype(np.int8) - 8)[: e.integer("rows")]]
    parts = _taken_apart(words, bits)
    if "order" in e.attributes:
        parts = parts[:, :, list(e.integers("order"))]
    rows = words.shape[0] * (WORD // bits)
    found = np.ascontiguousarray(parts.transpose(0, 2, 1)).reshape(rows, words.shape[1])
    return [found[: e.integer("rows")]]


def _rows_in_words(
    attributes: Mapping[str, Attribute], types: Sequence[TensorType], lo: int, hi: int
) -> list[tuple[int, int] | None]:
    each = _rows_of_a_word(attributes)
    return [(lo // each, -(-hi // each))]


def _rows_of_a_word(attributes: Mapping[str, Attribute]) -> int:
    bits, word = attributes["bits"], attributes.get("word", WORD)
    assert isinstance(bits, int) and isinstance(word, int)
    return word // bits


def _infer_center_quants(s: Signature) -> Sequence[Type]:
    rows, columns = fixed(s.tensor(0))
    dtype = s.tensor(0).dtype
    if dtype not in _SIGNED:
        raise OpError(f"{s.tensor(0)} does not hold unsigned integers")
    if len(s.types) == 2 and (s.tensor(1).dtype is not dtype or fixed(s.tensor(1))[0] != rows):
        raise OpError(f"{s.tensor(1)} holds no zero points for {s.tensor(0)}")
    return [TensorType((rows, columns), _SIGNED[dtype])]


def _evaluate_center_quants(e: Evaluation) -> Sequence[Any]:
    quants = e.inputs[0]
    zero = 8 if e.result_dtype() is I4 else 128
    if len(e.inputs) == 2 and (e.inputs[1].astype(np.int16) + e.integer("offset") != zero).any():
        raise OpError(f"the zero points are not all {zero}, though the checkpoint says that they are")
    # Modulo 256, so that 8-bit integers need no wider type.
    return [(quants - np.uint8(zero)).astype(np.uint8).view(np.int8)]


def _infer_zero_minimum(s: Signature) -> Sequence[Type]:
    scale, zeros = s.tensor(0), s.tensor(1)
    if not scale.dtype.is_float or zeros.dtype not in (U4, U8, I8) or fixed(scale) != fixed(zeros):
        raise OpError(f"{zeros} holds no zero point for each of {scale}")
    return [TensorType(fixed(scale), F32)]


def _evaluate_zero_minimum(e: Evaluation) -> Sequence[Any]:
    scale, zeros = e.inputs
    zero = zeros.astype(np.float32) + np.float32(e.integer("offset"))
    return [-(widen(scale) * zero)]


def _infer_spread_columns(s: Signature) -> Sequence[Type]:
    rows, found = fixed(s.tensor(0))
    times, columns = s.positive("times"), s.positive("columns")
    if not (found - 1) * times < columns <= found * times:
        raise OpError(f"{s.tensor(0)} repeated {times} times does not give {columns} columns")
    return [TensorType((rows, columns), s.tensor(0).dtype)]


def _infer_spread_rows(s: Signature) -> Sequence[Type]:
    rows, columns = fixed(s.tensor(0))
    if rows != 1:
        raise OpError(f"{s.tensor(0)} is not one row")
    return [TensorType((s.positive("rows"), columns), s.tensor(0).dtype)]


OPS: tuple[OpDefinition, ...] = (
    OpDefinition(
        "unpack_columns",
        _WEIGHTS,
        ("words",),
        {"bits": "int", "columns": "int"},
        _infer_unpack_columns,
        _evaluate_unpack_columns,
        "The integers in 32-bit words that run along the rows.",
        rows=same_rows,
    ),
    OpDefinition(
        "unpack_rows",
        _WEIGHTS,
        ("words",),
        {"bits": "int", "rows": "int", "order": "ints?", "word": "int?"},
        _infer_unpack_rows,
        _evaluate_unpack_rows,
        "The integers in words that hold several rows: in 32 bits unsigned ones, row r of a word being its integer "
        "`order[r]`; in 8 bits two signed ones.",
        rows=_rows_in_words,
        row_block=_rows_of_a_word,
    ),
    OpDefinition(
        "center_quants",
        _WEIGHTS,
        ("quants", "zeros?"),
        {"offset": "int"},
        _infer_center_quants,
        _evaluate_center_quants,
        "Unsigned integers less 8 or 128; zeros + offset, where given, must all be that.",
        rows=same_rows,
    ),
    OpDefinition(
        "zero_minimum",
        _WEIGHTS,
        ("scale", "zeros"),
        {"offset": "int"},
        _infer_zero_minimum,
        _evaluate_zero_minimum,
        "-scale * (zeros + offset): what a zero point adds to scale * quants.",
        rows=same_rows,
    ),
    OpDefinition(
        "spread_columns",
        _WEIGHTS,
        ("values",),
        {"times": "int", "columns": "int"},
        _infer_spread_columns,
        lambda e: [np.repeat(e.inputs[0], e.integer("times"), axis=1)[:, : e.integer("columns")]],
        "Each column repeated: scales of wide groups as scales of narrow ones.",
        rows=same_rows,
    ),
    OpDefinition(
        "spread_rows",
        _WEIGHTS,
        ("values",),
        {"rows": "int"},
        _infer_spread_rows,
        lambda e: [np.repeat(e.inputs[0], e.integer("rows"), axis=0)],
        "One row repeated: the scale of a whole matrix as scales of its rows.",
        rows=lambda attributes, types, lo, hi: [None],
    ),
)
