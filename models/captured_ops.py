"""Ops of the captured level as importers of other graphs write them: nothing where nothing is to be done."""

from __future__ import annotations

from collections.abc import Sequence

from llamac.ir.builder import Builder
from llamac.ir.dims import DimLike
from llamac.ir.dtypes import DType
from llamac.ir.graph import Attribute, Value


class CapturedOps:
    """What a node of an imported graph is made of; `b` adds to the graph under construction."""

    b: Builder

    def op(self, opcode: str, *operands: Value, **attributes: Attribute) -> Value:
        return self.b.op(opcode, *operands, **attributes)

    def cast(self, x: Value, dtype: DType) -> Value:
        """x, in `dtype`."""
        return x if x.tensor.dtype is dtype else self.op("cast", x, dtype=dtype)

    def reshape(self, x: Value, shape: Sequence[DimLike]) -> Value:
        """x, in `shape`."""
        return x if x.tensor.shape == tuple(shape) else self.b.reshape(x, *shape)

    def broadcast(self, x: Value, shape: Sequence[DimLike]) -> Value:
        """x repeated to `shape`, numpy's rule."""
        padded = (*(1,) * (len(shape) - x.tensor.rank), *x.tensor.shape)
        x = self.reshape(x, padded)
        return x if x.tensor.shape == tuple(shape) else self.op("broadcast", x, shape=tuple(shape))
