"""A stored matrix as a view that can be sliced, transposed and put at its place in a weight, without reading it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llamac.errors import LlamacError

from .checkpoint import StoredTensor, assembled
from .pieces import Piece

MOST_MATRICES = 1 << 16
"""Matrices of one tensor: an empty one may claim any number of them."""


@dataclass(frozen=True)
class MatrixView:
    """`rows` x `columns` elements of a file; element (i, j) lies at offset + i * row_stride + j * column_stride."""

    file: Path
    offset: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int

    @property
    def transposed(self) -> MatrixView:
        """The same elements with rows and columns exchanged."""
        return MatrixView(self.file, self.offset, self.columns, self.rows, self.column_stride, self.row_stride)

    def row_range(self, lo: int, hi: int) -> MatrixView:
        """Rows [lo, hi)."""
        return replace(self, offset=self.offset + lo * self.row_stride, rows=hi - lo)

    def column_range(self, lo: int, hi: int) -> MatrixView:
        """Columns [lo, hi)."""
        return replace(self, offset=self.offset + lo * self.column_stride, columns=hi - lo)

    def at(self, row: int, column: int) -> Piece:
        """The matrix as the part of a larger one that starts at (row, column)."""
        strides = (self.row_stride, self.column_stride)
        return Piece(self.file, self.offset, row, self.rows, column, self.columns, *strides)


def matrices_of(
    file: Path, offset: int, shape: Sequence[int], strides: Sequence[int], item: int
) -> Iterator[MatrixView]:
    """The matrices of a tensor of rank 0 or 1 (one row), 2 or 3 (one for each first index); strides count elements.

    LLC0208 for a tensor of another rank, without matrices, or of more of them than any model has.
    """
    if not shape:
        shape, strides = (1,), (1,)
    if len(shape) > 3 or (len(shape) == 3 and not 1 <= shape[0] <= MOST_MATRICES):
        reason = f"a tensor of shape {list(shape[:8])} at byte {offset}, expected 1 to {MOST_MATRICES} matrices"
        raise LlamacError("LLC0208", file.name, reason, "the file is damaged, or holds no Llama")
    sizes, steps = [1] * (3 - len(shape)) + list(shape), [0] * (3 - len(shape)) + [stride * item for stride in strides]
    if len(shape) == 1:
        steps[1] = sizes[2] * item
    for index in range(sizes[0]):
        yield MatrixView(file, offset + index * steps[0], sizes[1], sizes[2], steps[1], steps[2])


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a tensor whose last index runs fastest."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides[: len(shape)]))


Grid = Sequence[Sequence[MatrixView]]
"""Bands from top to bottom, each of views from left to right."""


def below(views: Iterable[MatrixView]) -> Grid:
    """Views under one another: their rows are joined."""
    return [[view] for view in views]


def joined(name: str, stored_name: str, encoding: str, grid: Grid, vector: bool = False) -> StoredTensor:
    """The weight that a grid of views makes; LLC0208 when they do not fit together."""
    pieces: list[Piece] = []
    row = columns = 0
    for band in grid:
        column = 0
        for view in band:
            pieces.append(view.at(row, column))
            column += view.columns
        row += band[0].rows
        columns = max(columns, column)
    return assembled(name, stored_name, (columns,) if vector else (row, columns), encoding, pieces)
