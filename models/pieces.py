"""Weights that lie in pieces: a matrix assembled from rectangles of one or more files, read row by row.

Shards of a model-parallel checkpoint, experts stored one by one or side by side, and matrices stored transposed all
come down to this: a rectangle of the matrix, the offset of its first element, and two strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

CHUNK_BYTES = 8 << 20
"""Most bytes held besides the rows that were asked for (more only where one stored line is longer)."""
DENSE_ENOUGH = 4
"""Lines whose stride is at most this many times their length are read with what lies between them."""
UNSIGNED: dict[int, np.dtype[Any]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


@dataclass(frozen=True)
class Piece:
    """A rectangle of a matrix: rows [row, row + rows) x columns [column, column + columns).

    Its element (i, j) lies at `offset + i * row_stride + j * column_stride` of `file`, strides in bytes. One of the two
    strides is the size of an element: a transposed matrix has the large one between its columns. A row_stride of 0
    repeats one row: a number that counts for many.
    """

    file: Path
    offset: int
    row: int
    rows: int
    column: int
    columns: int
    row_stride: int
    column_stride: int


class PiecedTensor(Protocol):
    """What is read: a tensor's name, for messages, and its pieces."""

    @property
    def name(self) -> str: ...

    @property
    def pieces(self) -> tuple[Piece, ...]: ...


def check_pieces(name: str, pieces: Sequence[Piece], rows: int, columns: int, item: int) -> None:
    """The pieces must tile the matrix: bands of equal rows, each filled from its first column to its last.

    Raises LLC0208 for anything else; `item` is the size of an element in bytes.
    """
    row = end = column = 0
    for piece in sorted(pieces, key=lambda piece: (piece.row, piece.column)):
        if item not in (piece.row_stride, piece.column_stride) or item not in UNSIGNED:
            _untiled(name, f"a piece in {piece.file.name} has no line of neighbouring elements")
        if column == columns:
            row, column = end, 0
        if column == 0:
            end = row + piece.rows
        if (piece.row, piece.row + piece.rows, piece.column) != (row, end, column) or min(
            piece.rows, piece.columns
        ) < 1:
            found = f"rows {piece.row}..{piece.row + piece.rows} from column {piece.column}"
            _untiled(name, f"the piece in {piece.file.name} holds {found}, expected row {row} and column {column}")
        column += piece.columns
    if (end, column) != (rows, columns):
        _untiled(name, f"its pieces make {end} rows, the last of {column} columns, of {rows} x {columns}")


def _untiled(name: str, reason: str) -> NoReturn:
    raise LlamacError("LLC0208", name, reason, "the config belongs to another checkpoint, or a shard is missing")


def read_pieces(tensor: PiecedTensor, columns: int, item: int, lo: int, hi: int) -> NDArray[np.uint8]:
    """Bytes of rows [lo, hi), row after row; LLC0203 when a file ends early."""
    out = np.empty((hi - lo, columns), dtype=UNSIGNED[item])
    with ExitStack() as stack:
        files: dict[Path, RawIOBase] = {}
        for piece in tensor.pieces:
            first, last = max(lo, piece.row), min(hi, piece.row + piece.rows)
            if first >= last:
                continue
            if piece.file not in files:
                opened = stack.enter_context(piece.file.open("rb", buffering=0))
                files[piece.file] = cast(RawIOBase, opened)
            target = out[first - lo : last - lo, piece.column : piece.column + piece.columns]
            offset = piece.offset + (first - piece.row) * piece.row_stride
            _Lines(files[piece.file], tensor.name, piece, item).read(offset, target)
    return out.reshape(-1).view(np.uint8)


class _Lines:
    """Reads a rectangle along the axis on which its elements are neighbours."""

    def __init__(self, file: RawIOBase, name: str, piece: Piece, item: int) -> None:
        self.file = file
        self.name = name
        self.place = piece.file.name
        self.item = item
        self.transposed = piece.column_stride != item
        self.stride = piece.column_stride if self.transposed else piece.row_stride

    def read(self, offset: int, target: NDArray[Any]) -> None:
        """Fill `target` [rows, columns] from `offset` on, by chunks of whole lines."""
        lines = target.T if self.transposed else target
        length = lines.shape[1] * self.item
        dense = length <= self.stride <= DENSE_ENOUGH * length
        step = max(1, CHUNK_BYTES // (self.stride if dense else length))
        for start in range(0, lines.shape[0], step):
            part = lines[start : start + step]
            place = offset + start * self.stride
            part[...] = self._together(place, part.shape) if dense else self._one_by_one(place, part.shape)

    def _together(self, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        count, length = shape
        buffer = bytearray((count - 1) * self.stride + length * self.item)
        self._fill(memoryview(buffer), offset)
        return np.ndarray((count, length), UNSIGNED[self.item], buffer, strides=(self.stride, self.item))

    def _one_by_one(self, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Line by line; a stride of 0 repeats one line, which is read once."""
        lines = np.empty((shape[0] if self.stride else 1, shape[1]), UNSIGNED[self.item])
        for index, line in enumerate(lines.view(np.uint8).reshape(len(lines), -1)):
            self._fill(line.data, offset + index * self.stride)
        return np.broadcast_to(lines, shape)

    def _fill(self, view: memoryview, offset: int) -> None:
        read_fully(self.file, view, offset, self.name, self.place)


def read_fully(file: RawIOBase, view: memoryview, offset: int, name: str, place: str) -> None:
    """Fill `view` from `offset` of `file`; LLC0203 for weight `name` when `place`, the file, ends early."""
    file.seek(offset)
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise LlamacError("LLC0203", name, f"{place} ended early", "download it again")
        done += got
