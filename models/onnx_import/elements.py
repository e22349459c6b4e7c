"""Rows of a stored matrix of any element type, decoded: 4-bit integers one a byte, everything else as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.dtypes import BF16

from ..checkpoint import FileRows
from ..matrix_view import MatrixView, joined
from .proto import BFLOAT16, FLOAT, FLOAT8, FLOAT16, INT8, ITEM_BYTES, NIBBLES, UINT8
from .stored import Stored, nibbles

_DTYPES: dict[int, np.dtype[Any]] = {
    FLOAT: np.dtype("<f4"), FLOAT16: np.dtype("<f2"), BFLOAT16: BF16.storage, UINT8: np.dtype("u1"),
    INT8: np.dtype("i1"), FLOAT8: np.dtype("u1"),
}  # fmt: skip
_OF_SIZE = {1: "u8", 2: "f16", 4: "f32"}


def rows_of(stored: Stored, lo: int, hi: int) -> NDArray[Any]:
    """Rows [lo, hi) of a matrix as it is seen."""
    if stored.held is not None:
        return np.asarray(stored.read(stored.count)[lo:hi])
    if stored.type in NIBBLES:
        return _nibble_columns(stored, lo, hi) if stored.transposed else _nibble_rows(stored, lo, hi)
    item = ITEM_BYTES[stored.type]
    view = stored.view().row_range(lo, hi)
    return _read(view, item).view(_DTYPES[stored.type]).reshape(hi - lo, stored.seen[1])


def _read(view: MatrixView, item: int) -> NDArray[np.uint8]:
    tensor = joined("", "", _OF_SIZE[item], [[view]])
    return FileRows().read(tensor, 0, view.rows)


def _nibble_rows(stored: Stored, lo: int, hi: int) -> NDArray[Any]:
    """An odd number of columns lets rows begin in the middle of a byte."""
    columns = stored.shape[1]
    start = lo * columns
    data = stored.raw(start // 2, -(-hi * columns // 2) - start // 2)
    return nibbles(data, stored.type)[start % 2 :][: (hi - lo) * columns].reshape(hi - lo, columns)


def _nibble_columns(stored: Stored, lo: int, hi: int) -> NDArray[Any]:
    """Columns [lo, hi) of what is stored, as rows."""
    lines, length = stored.shape
    if length % 2:
        picked = np.concatenate([_nibble_rows(stored, line, line + 1)[:, lo:hi] for line in range(lines)])
        return picked.T
    view = MatrixView(stored.file, stored.offset, lines, length // 2, length // 2, 1).transposed
    first, last = lo // 2, -(-hi // 2)
    packed = _read(view.row_range(first, last), 1)
    pairs = nibbles(packed.tobytes(), stored.type).reshape(last - first, lines, 2)
    return pairs.transpose(0, 2, 1).reshape(-1, lines)[lo % 2 :][: hi - lo]
