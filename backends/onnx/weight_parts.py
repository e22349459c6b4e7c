"""What a weight is made of: floats, or integers with scales and minima for each group of columns."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dtypes import E4M3FN, I4, I8, U4, U8, DType
from llamac.ir.graph import Value, Weight


@dataclass(frozen=True)
class Grouped:
    """A matrix as `scale * quants (+ minimum)`, each scale for `group` columns of a row."""

    quants: Weight
    scales: Weight
    minima: Weight | None
    group: int

    @property
    def dtype(self) -> DType:
        """Of the quants."""
        return self.quants.tensor.dtype

    @property
    def bits(self) -> int:
        """Of a quant."""
        return self.dtype.bits

    @property
    def middle(self) -> int:
        """The middle of the range of unsigned quants; 0 of signed ones."""
        return 0 if self.dtype in (I4, I8) else 1 << (self.bits - 1)


def matrix_shape(weight: Value) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    rows, columns = weight.tensor.shape
    assert isinstance(rows, int) and isinstance(columns, int)
    return rows, columns


def grouped(weight: Value) -> Grouped | None:
    """The parts of a dequantized matrix of integers; None for every other weight."""
    found = _parts(weight)
    return found if found is not None and found.dtype in (I4, U4, I8, U8) else None


def scaled_fp8(weight: Value) -> Grouped | None:
    """The parts of an e4m3fn matrix with one scale for each row; None for every other weight."""
    found = _parts(weight)
    if found is None or found.dtype is not E4M3FN or found.minima is not None:
        return None
    return found if found.scales.tensor.shape[1] == 1 else None


def _parts(weight: Value) -> Grouped | None:
    producer = weight.producer
    if not isinstance(weight, Weight) or producer is None or producer.opcode != "dequantize":
        return None
    parts = [value for value in producer.operands if isinstance(value, Weight)]
    group = producer.attributes["group"]
    assert isinstance(group, int)
    return Grouped(parts[0], parts[1], parts[2] if len(parts) > 2 else None, group)
