"""Weights in pieces, against numpy: random tilings, transposed and padded lines, several files, bounded memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models.checkpoint import FileRows, StoredTensor, assembled
from llamac.models.pieces import CHUNK_BYTES, Piece

ENCODINGS = {"e4m3fn": np.uint8, "bf16": np.uint16, "f32": np.uint32}


def _cuts(generator: np.random.Generator, size: int) -> list[int]:
    inner = generator.choice(np.arange(1, size), generator.integers(0, min(size, 4)), replace=False) if size > 1 else []
    return [0, *sorted(int(cut) for cut in inner), size]


def _store(
    generator: np.random.Generator, values: NDArray[Any], row: int, column: int, files: dict[Path, bytearray]
) -> Piece:
    """The rectangle in one of the files, transposed or not, with unused elements after each line."""
    file = list(files)[generator.integers(len(files))]
    item, data = values.itemsize, files[file]
    data += bytes(int(generator.integers(0, 9)))  # nothing need be aligned
    lines = values.T if generator.integers(2) else values
    padded = generator.integers(0, 255, (lines.shape[0], lines.shape[1] + int(generator.integers(0, 12))))
    padded = padded.astype(values.dtype)
    padded[:, : lines.shape[1]] = lines
    offset = len(data)
    data += padded.tobytes()
    strides = (padded.shape[1] * item, item)
    row_stride, column_stride = strides if lines is values else strides[::-1]
    return Piece(file, offset, row, values.shape[0], column, values.shape[1], row_stride, column_stride)


@pytest.mark.parametrize("seed", range(40))
def test_random_tilings(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    encoding = list(ENCODINGS)[seed % 3]
    rows, columns = (int(n) for n in generator.integers(1, 40, 2))
    values = generator.integers(0, 255, (rows, columns)).astype(ENCODINGS[encoding])
    files = {tmp_path / f"{index}.bin": bytearray() for index in range(3)}
    pieces, row_cuts = [], _cuts(generator, rows)
    for top, bottom in pairwise(row_cuts):
        cuts = _cuts(generator, columns)
        for left, right in pairwise(cuts):
            pieces.append(_store(generator, values[top:bottom, left:right], top, left, files))
    for path, data in files.items():
        path.write_bytes(data)
    generator.shuffle(pieces)  # type: ignore[arg-type]
    tensor = assembled("layers.0.mlp.down", "w2", (rows, columns), encoding, pieces)
    assert tensor.rows == rows and tensor.row_bytes == columns * values.itemsize
    for _ in range(5):
        lo, hi = sorted(int(n) for n in generator.integers(0, rows + 1, 2))
        assert FileRows().read(tensor, lo, hi).tobytes() == values[lo:hi].tobytes()
    assert FileRows().read(tensor, 0, rows).tobytes() == values.tobytes()


def test_a_vector_and_one_whole_piece(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(np.arange(12, dtype="<f4").tobytes())
    halves = [Piece(file, 24, 0, 1, 0, 6, 24, 4), Piece(file, 0, 0, 1, 6, 6, 24, 4)]
    vector = assembled("norm", "norm", (12,), "f32", halves)
    assert vector.rows == 1 and vector.nbytes == 48
    assert FileRows().read(vector, 0, 1).view("<f4").tolist() == [*range(6, 12), *range(6)]
    whole = assembled("head", "output", (3, 4), "f32", [Piece(file, 0, 0, 3, 0, 4, 16, 4)])
    assert whole == StoredTensor("head", "output", (3, 4), "f32", file, 0, 48)


def test_pieces_that_do_not_tile(tmp_path: Path) -> None:
    good = [Piece(tmp_path, 0, 0, 2, 0, 3, 12, 4), Piece(tmp_path, 24, 0, 2, 3, 1, 4, 4)]
    assembled("embed", "w", (2, 4), "f32", good)
    bad = [
        good[:1],
        [*good, good[1]],
        [good[0], replace(good[1], column=2)],
        [good[0], replace(good[1], rows=1)],
        [good[0], replace(good[1], columns=2)],
        [good[0], replace(good[1], row_stride=8, column_stride=8)],
        [good[0], replace(good[1], columns=0)],
        [],
    ]
    for pieces in bad:
        with pytest.raises(LlamacError, match="LLC0208 embed"):
            assembled("embed", "w", (2, 4), "f32", pieces)
    with pytest.raises(LlamacError, match="LLC0209 embed: q4_0 blocks in pieces"):
        assembled("embed", "w", (2, 32), "q4_0", good)


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    file = tmp_path / "short.pth"
    file.write_bytes(bytes(40))
    for strides in ((1024, 2), (2, 10)):
        tensor = assembled("layers.1.attn.o", "wo", (5, 5), "f16", [Piece(file, 0, 0, 5, 0, 5, *strides)])
        with pytest.raises(LlamacError, match=r"LLC0203 layers\.1\.attn\.o: short\.pth ended early"):
            FileRows().read(tensor, 0, 5)


@pytest.mark.parametrize("rows", [64, 4096])
def test_memory_of_a_transposed_read(rows: int, tmp_path: Path) -> None:
    """Besides the rows that are asked for no more than a chunk is held, dense or not."""
    file, height, columns = tmp_path / "experts", 8192, 4096
    with file.open("wb") as sparse:
        sparse.truncate(height * columns * 2)
    tensor = assembled("layers.0.moe.gate", "w", (height, columns), "bf16", [
        Piece(file, 0, 0, height, 0, columns, 2, height * 2)
    ])  # fmt: skip
    tracemalloc.start()
    FileRows().read(tensor, 1000, 1000 + rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows * columns * 2 + 2 * CHUNK_BYTES
