"""Words of integers taken apart: each op against the bit arithmetic of its format, written out plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.ir.builder import Builder
from llamac.ir.definition import OpError
from llamac.ir.dtypes import F16, F32, I4, I8, I32, U4, U8
from llamac.ir.evaluator import WeightEvaluator, evaluate_op
from llamac.ir.graph import DataSource, Module, Op, Weight
from llamac.ir.registry import infer_types
from llamac.ir.types import TensorType, tensor

RANDOM = np.random.default_rng(3)


def run(opcode: str, types: list[TensorType], inputs: list[np.ndarray], **attributes: Any) -> np.ndarray:
    (found,) = infer_types(opcode, types, attributes)
    assert isinstance(found, TensorType)
    op = Op(opcode, [Weight(f"w{i}", t) for i, t in enumerate(types)], attributes, [found])
    result = evaluate_op(op, inputs, found)
    assert result.shape == found.shape and result.dtype == found.dtype.storage
    return result


def words(rows: int, columns: int) -> np.ndarray:
    return RANDOM.integers(-(2**31), 2**31, (rows, columns)).astype(np.int32)


def bits_of(word: int, index: int, bits: int) -> int:
    """Integer `index` of a word, lowest bits first."""
    return (int(word) & 0xFFFFFFFF) >> (index * bits) & ((1 << bits) - 1)


@pytest.mark.parametrize(("bits", "columns"), [(4, 24), (4, 21), (8, 12), (8, 9)])
def test_words_along_the_rows(bits: int, columns: int) -> None:
    each = 32 // bits
    stored = words(5, -(-columns // each))
    found = run("unpack_columns", [tensor(*stored.shape, I32)], [stored], bits=bits, columns=columns)
    expected = [[bits_of(stored[r, c // each], c % each, bits) for c in range(columns)] for r in range(5)]
    assert found.tolist() == expected


@pytest.mark.parametrize(("bits", "rows"), [(4, 24), (4, 21), (8, 9)])
def test_words_that_hold_several_rows(bits: int, rows: int) -> None:
    each = 32 // bits
    stored = words(-(-rows // each), 5)
    found = run("unpack_rows", [tensor(*stored.shape, I32)], [stored], bits=bits, rows=rows)
    assert found.tolist() == [[bits_of(stored[r // each, c], r % each, bits) for c in range(5)] for r in range(rows)]


@pytest.mark.parametrize("rows", [6, 5])
def test_pairs_of_signed_integers(rows: int) -> None:
    """ModelOpt's bytes: outputs 2r and 2r + 1 in the low and the high half of byte r, in two's complement."""
    quants = RANDOM.integers(-8, 8, (6, 4))
    stored = ((quants[0::2] & 15) | (quants[1::2] & 15) << 4).astype(np.uint8)
    found = run("unpack_rows", [tensor(3, 4, U8)], [stored], bits=4, rows=rows, word=8)
    assert found.tolist() == quants[:rows].tolist()


def test_the_order_of_awq() -> None:
    """AWQ's packer puts outputs 0, 2, 4, 6, 1, 3, 5, 7 of every eight at bits 0, 4, 8 ..."""
    quants = RANDOM.integers(0, 16, (16, 3))
    stored = np.zeros((2, 3), np.uint32)
    for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        stored |= quants.reshape(2, 8, 3)[:, output].astype(np.uint32) << np.uint32(4 * place)
    order = (0, 4, 1, 5, 2, 6, 3, 7)
    found = run("unpack_rows", [tensor(2, 3, I32)], [stored.view(np.int32)], bits=4, rows=16, order=order)
    assert found.tolist() == quants.tolist()


@pytest.mark.parametrize(("unsigned", "signed", "zero"), [(U4, I4, 8), (U8, I8, 128)])
def test_centered_quants(unsigned: Any, signed: Any, zero: int) -> None:
    quants = np.arange(2 * zero, dtype=np.uint8).reshape(2, zero)
    types = [tensor(2, zero, unsigned)]
    assert (run("center_quants", types, [quants], offset=0) == quants.astype(int) - zero).all()
    zeros = np.full((2, 3), zero - 1, np.uint8)
    types = [*types, tensor(2, 3, unsigned)]
    assert (run("center_quants", types, [quants, zeros], offset=1) == quants.astype(int) - zero).all()
    zeros[1, 2] = 3
    with pytest.raises(OpError, match=f"zero points are not all {zero}"):
        run("center_quants", types, [quants, zeros], offset=1)


def test_a_contradiction_is_a_coded_error() -> None:
    b = Builder(Module("m", "captured"))
    source = DataSource(np.full((2, 1), 0x33333333, "<i4").tobytes())
    quants = b.define("q", "unpack_columns", b.weight("w", tensor(2, 1, I32), source), bits=4, columns=8)
    bad = b.define("c", "center_quants", quants, quants, offset=0)
    with pytest.raises(LlamacError, match="LLC0224 c: the zero points are not all 8"):
        WeightEvaluator().whole(bad)


@pytest.mark.parametrize("scale_type", [F16, F32])
def test_zero_points_as_minima(scale_type: Any) -> None:
    scale = RANDOM.standard_normal((3, 4)).astype(scale_type.storage)
    zeros = RANDOM.integers(0, 16, (3, 4)).astype(np.uint8)
    found = run("zero_minimum", [tensor(3, 4, scale_type), tensor(3, 4, U4)], [scale, zeros], offset=1)
    assert (found == -(scale.astype(np.float32) * (zeros + 1).astype(np.float32))).all()
    signed = zeros.view(np.int8) - np.int8(8)
    found = run("zero_minimum", [tensor(3, 4, scale_type), tensor(3, 4, I8)], [scale, signed], offset=0)
    assert (found == -(scale.astype(np.float32) * signed)).all()


def test_spreading() -> None:
    values = RANDOM.standard_normal((3, 2)).astype(np.float32)
    found = run("spread_columns", [tensor(3, 2, F32)], [values], times=4, columns=7)
    assert (found == np.repeat(values, 4, axis=1)[:, :7]).all()
    assert (run("spread_rows", [tensor(1, 2, F32)], [values[:1]], rows=5) == values[:1]).all()
