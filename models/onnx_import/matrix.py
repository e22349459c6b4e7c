"""Matrices that a graph multiplies with: some rows of a stored one, plain or of integers with scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from ..checkpoint import FileRows, StoredTensor
from ..matrix_view import joined
from .packed import Packed, Read
from .stored import Stored


@dataclass(frozen=True)
class Matrix:
    """Rows [lo, hi) of `source`, which is seen as [outputs, inputs]; a vector is meant whole."""

    source: Stored | Packed
    lo: int
    hi: int

    @property
    def shape(self) -> tuple[int, ...]:
        if isinstance(self.source, Packed):
            return (self.hi - self.lo, self.source.shape[1])
        return self.source.seen if len(self.source.shape) == 1 else (self.hi - self.lo, self.source.seen[1])

    @property
    def encoding(self) -> str:
        return self.source.encoding

    @property
    def is_whole(self) -> bool:
        """Whether it has every row of its source."""
        source = self.source
        if isinstance(source, Stored) and len(source.shape) == 1:
            return True
        return self.hi - self.lo == (source.shape[0] if isinstance(source, Packed) else source.seen[0])

    @property
    def place(self) -> tuple[object, ...]:
        """What two matrices share that are the same."""
        source = self.source
        if isinstance(source, Packed):
            parts = (source.quants, source.scales, source.zeros, source.minima)
            named = (source.shape, source.group, source.factor, self.lo, self.hi)
            return (*(_place(part) if isinstance(part, Stored) else part for part in parts), *named)
        return (*_place(source), self.lo, self.hi)

    def part(self, lo: int, hi: int) -> Matrix:
        """Rows [lo, hi) of these."""
        return replace(self, lo=self.lo + lo, hi=self.lo + hi)

    def stored(self, name: str) -> StoredTensor:
        """The weight `name` of a checkpoint that it is."""
        source = self.source
        if isinstance(source, Packed):
            return source.rows(name, self.lo, self.hi)[0]
        if len(source.shape) == 1:
            return joined(name, source.name, source.encoding, [[source.view()]], vector=True)
        return joined(name, source.name, source.encoding, [[source.view().row_range(self.lo, self.hi)]])

    def readers(self, name: str) -> Mapping[str, Read]:
        """What reads its parts when it is the weight `name`; nothing for one that lies as it is wanted."""
        return self.source.rows(name, self.lo, self.hi)[1] if isinstance(self.source, Packed) else {}


def _place(stored: Stored) -> tuple[object, ...]:
    return stored.file, stored.offset, stored.held, stored.shape, stored.transposed, stored.type


def whole(source: Stored | Packed) -> Matrix:
    """All rows of a matrix, or a vector; LLC0937 for a weight of another rank."""
    if isinstance(source, Packed):
        return Matrix(source, 0, source.shape[0])
    if len(source.shape) not in (1, 2):
        reason = f"a weight of shape {list(source.shape)[:8]}"
        raise LlamacError("LLC0937", source.name, reason, "a Llama multiplies with matrices and vectors alone")
    return Matrix(source, 0, source.seen[0] if len(source.shape) == 2 else 1)


@dataclass(frozen=True)
class DecodedRows:
    """The row source of an imported checkpoint: parts of packed weights decoded, all else as it lies in its file."""

    readers: Mapping[str, Read]

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> NDArray[np.uint8]:
        """Bytes of rows [lo, hi)."""
        if tensor.name not in self.readers:
            return FileRows().read(tensor, lo, hi)
        return np.ascontiguousarray(self.readers[tensor.name](lo, hi)).view(np.uint8).reshape(-1)
