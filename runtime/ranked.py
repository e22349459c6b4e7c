"""The best logits of the rows of a step, as the code ranks them while it computes them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class TopOutput(ctypes.Structure):
    """`llamac_top`: where `llamac_step_top` puts what it finds."""

    _fields_: ClassVar = [
        ("count", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in ("ids", "values", "inverse_temperature", "sums")),
    ]


@dataclass(frozen=True)
class RankedRows:
    """For each of R rows its best logits, largest first and the lower id first among equals.

    ids, values: [R, count]; id -1 where a row has no more logits above -inf; a row that holds a NaN has NaN as its
    first value. sums: [R], the sum over the vocabulary of exp((logit - largest) * inverse_temperature); None when no
    inverse temperatures, [R], were given.
    """

    ids: Int32s
    values: Float32s
    inverse_temperature: Float32s | None = None
    sums: Float32s | None = None

    @staticmethod
    def empty(rows: int, count: int, inverse_temperature: Float32s | None = None) -> RankedRows:
        """Room for `count` logits of each row; for the sums too when temperatures are given."""
        sums = None if inverse_temperature is None else np.empty(rows, np.float32)
        return RankedRows(
            np.empty((rows, count), np.int32), np.empty((rows, count), np.float32), inverse_temperature, sums
        )

    def check(self, rows: int) -> None:
        """A wrong shape or type would be a wild pointer in the code (ValueError, TypeError)."""
        numbers = [a for a in (self.values, self.inverse_temperature, self.sums) if a is not None]
        if self.ids.dtype != np.int32 or any(a.dtype != np.float32 for a in numbers):
            raise TypeError("ranked rows need int32 ids and float32 values")
        if not all(a.flags.c_contiguous and len(a) == rows for a in (self.ids, *numbers)):
            raise ValueError(f"ranked rows need C-contiguous arrays of {rows} rows")
        if self.ids.ndim != 2 or self.values.shape != self.ids.shape:
            raise ValueError("ranked rows need ids and values of one shape [R, count]")
        if (self.sums is None) != (self.inverse_temperature is None):
            raise ValueError("sums and inverse temperatures come together")

    def native(self) -> TopOutput:
        """The addresses as the code takes them; the arrays must outlive it."""
        address = [None if a is None else a.ctypes.data for a in (self.inverse_temperature, self.sums)]
        return TopOutput(self.ids.shape[1], self.ids.ctypes.data, self.values.ctypes.data, *address)
