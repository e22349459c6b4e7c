"""Matrices as quantized folders hold them: integers or e4m3fn with scales, by the ops that the compiler quantizes with.

So an exported model and one compiled with the same scheme hold the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.ir.definition import Evaluation
from llamac.ir.dtypes import E4M3FN, I4, I8, U4, DType, widen
from llamac.ir.registry import find_op
from llamac.ir.types import tensor

from .safetensors_writer import Block, PlannedTensor

WORD_BITS = 32
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Quantized:
    """Rows of a matrix: value = scale * (quant - zero), scales and zeros [rows, groups]; zeros are whole, or None."""

    quants: NDArray[Any]
    scales: NDArray[Any]
    zeros: NDArray[Any] | None = None

    def values(self) -> Floats:
        """What the stored numbers stand for."""
        quants, scales = widen(self.quants), widen(self.scales)
        rows, columns = quants.shape
        groups = quants.reshape(rows, scales.shape[1], -1)
        if self.zeros is not None:
            groups = groups - self.zeros.astype(np.float32)[:, :, None]
        return np.asarray(groups * scales[:, :, None], np.float32).reshape(rows, columns)


class MatrixForm(Protocol):
    """How one scheme stores a matrix."""

    @property
    def row_multiple(self) -> int:
        """Blocks of rows that `stored` is given begin at a multiple of this."""

    def tensors(self, module: str, rows: int, columns: int) -> tuple[PlannedTensor, ...]:
        """The tensors of a module's matrix."""

    def quantized(self, values: Floats) -> Quantized:
        """Rows in this form."""

    def stored(self, rows: Quantized, shape: tuple[int, int] | None) -> Block:
        """A block for each of `tensors`; `shape` is the whole matrix's with its first rows, None with later ones."""


@dataclass(frozen=True)
class Fp8Rows:
    """e4m3fn with an f32 scale for each row."""

    row_multiple: int = 1

    def tensors(self, module: str, rows: int, columns: int) -> tuple[PlannedTensor, ...]:
        weight = PlannedTensor(f"{module}.weight", "F8_E4M3", (rows, columns))
        return weight, PlannedTensor(f"{module}.weight_scale", "F32", (rows, 1))

    def quantized(self, values: Floats) -> Quantized:
        scale = evaluated("row_scale", values)
        return Quantized(evaluated("row_quants", values, scale, result=E4M3FN), scale)

    def stored(self, rows: Quantized, shape: tuple[int, int] | None) -> Block:
        return rows.quants, rows.scales


@dataclass(frozen=True)
class Int8Rows:
    """8-bit integers with a scale for each row."""

    row_multiple: int = 1

    def tensors(self, module: str, rows: int, columns: int) -> tuple[PlannedTensor, ...]:
        weight = PlannedTensor(f"{module}.weight", "I8", (rows, columns))
        return weight, PlannedTensor(f"{module}.weight_scale", "F32", (rows, 1))

    def quantized(self, values: Floats) -> Quantized:
        group = values.shape[1]
        scale = evaluated("group_scale", values, group=group, dtype=I8)
        return Quantized(evaluated("group_quants", values, scale, group=group, dtype=I8, result=I8), scale)

    def stored(self, rows: Quantized, shape: tuple[int, int] | None) -> Block:
        return rows.quants, rows.scales.astype(np.float32)


@dataclass(frozen=True)
class PackedInt4:
    """4-bit integers in words of 32 bits, lowest bits first, with an f16 scale for each group of inputs.

    Asymmetric ones have whole zero points, eight outputs in a word, in place of the compiler's f16 minima.
    """

    group: int
    symmetric: bool
    row_multiple: int = 8

    def tensors(self, module: str, rows: int, columns: int) -> tuple[PlannedTensor, ...]:
        check_group(module, columns, self.group)
        groups = columns // self.group
        found = (
            PlannedTensor(f"{module}.weight_packed", "I32", (rows, -(-columns // 8))),
            PlannedTensor(f"{module}.weight_scale", "F16", (rows, groups)),
            PlannedTensor(f"{module}.weight_shape", "I64", (2,)),
        )
        zeros = PlannedTensor(f"{module}.weight_zero_point", "I32", (-(-rows // 8), groups))
        return found if self.symmetric else (*found, zeros)

    def quantized(self, values: Floats) -> Quantized:
        return symmetric_int4(values, self.group) if self.symmetric else asymmetric_int4(values, self.group)

    def stored(self, rows: Quantized, shape: tuple[int, int] | None) -> Block:
        shape_values = np.array([] if shape is None else shape, np.int64)
        unsigned = rows.quants.astype(np.int16) + (8 if self.symmetric else 0)
        found = (packed(unsigned), rows.scales, shape_values)
        if rows.zeros is None:
            return found
        return *found, np.ascontiguousarray(packed(rows.zeros.T).T)


def symmetric_int4(values: Floats, group: int) -> Quantized:
    """The compiler's own; the sign of a scale is that of its choice."""
    scale = evaluated("group_scale", values, group=group, dtype=I4)
    return Quantized(evaluated("group_quants", values, scale, group=group, dtype=I4, result=I4), scale)


def asymmetric_int4(values: Floats, group: int) -> Quantized:
    """The compiler's scales and minima, the minima moved to the nearest whole number of steps: 0..15 less a zero."""
    scale = evaluated("group_scale", values, group=group, dtype=U4)
    minimum, step = widen(evaluated("group_min", values, group=group)), widen(scale)
    zeros = np.divide(-minimum, step, out=np.zeros_like(step), where=step != 0)
    zeros = np.clip(np.rint(zeros), 0, 15)
    quants = evaluated("group_quants", values, scale, -zeros * step, group=group, dtype=U4, result=U4)
    return Quantized(quants, scale, zeros.astype(np.uint8))


def check_group(module: str, columns: int, group: int) -> None:
    """LLC0953 where a row is no whole number of groups, with the group that is."""
    if columns % group == 0:
        return
    fitting = next((g for g in (128, 64, 32) if columns % g == 0), None)
    hint = f"choose groups of {fitting} (int4:g{fitting})" if fitting else "choose fp8"
    reason = f"{columns} inputs are no whole number of groups of {group}"
    raise LlamacError("LLC0953", module, reason, hint.replace("int4:g32", "int4"))


def packed(values: NDArray[Any]) -> NDArray[np.int32]:
    """Numbers 0..15 of each row, eight in a word, lowest bits first; a row is filled up with zeros."""
    short = -values.shape[1] % 8
    lanes = np.pad(values.astype(np.uint32), ((0, 0), (0, short))).reshape(len(values), -1, 8)
    words = np.bitwise_or.reduce(lanes << np.arange(0, WORD_BITS, 4, dtype=np.uint32), axis=2)
    return np.asarray(words, np.uint32).view(np.int32)


def evaluated(opcode: str, *inputs: NDArray[Any], result: DType = E4M3FN, **attributes: Any) -> NDArray[Any]:
    """What an op of the IR makes of arrays; `result` is the element type of quants."""
    run = Evaluation(list(inputs), attributes, [tensor(*inputs[0].shape, result)], {}, False)
    (found,) = find_op(opcode).evaluate(run)
    return np.asarray(found)
