"""A checkpoint as the compiler sees it: config, weights by reference, tokenizer, and rows of weights read on demand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from .ledger import LedgerEntry
from .llama.config import LlamaConfig
from .pieces import Piece, check_pieces, read_fully, read_pieces

BLOCKS: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "e4m3fn": (1, 1),
    "i8": (1, 1),
    "u8": (1, 1),
    "i32": (1, 4),
    "i4": (1, 1),
    "u4": (1, 1),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
}
"""Encoding -> (values in a block, bytes of a block). A row of a weight is a whole number of blocks."""

ONLY_IN_PARTS = frozenset({"i4", "u4", "i8", "u8", "i32"})
"""Encodings of parts of packed weights: integers that are no values by themselves, those of 4 bits one a byte."""


@dataclass(frozen=True)
class StoredTensor:
    """One weight where it lies: `nbytes` bytes at `offset` of `file`, row-major, in `encoding` (a key of `BLOCKS`).

    Where `pieces` is not empty they say where its elements lie, and file and offset are those of the first piece.
    A quantized weight may lie in several tensors: then it has `parts`, each read by its own name, and `encoding` is the
    text of a `PackedEncoding`; `shape` is that of the matrix they stand for.
    """

    name: str
    stored_name: str
    shape: tuple[int, ...]
    encoding: str
    file: Path
    offset: int
    nbytes: int
    pieces: tuple[Piece, ...] = ()
    parts: tuple[StoredTensor, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that `read_rows` can address: a vector is one row."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.nbytes // self.rows


@dataclass(frozen=True)
class TokenizerSource:
    """What an artifact stores to tokenize: member file names with their bytes, and the facts that files leave out.

    kind is "tokenizer.json", "tiktoken" (base64 rank lines), "gguf-bpe" or "gguf-spm". `info` holds plain JSON values.
    """

    kind: str
    files: dict[str, bytes]
    info: dict[str, object]


@dataclass(frozen=True)
class GenerationDefaults:
    """Where a sequence starts and stops, and the sampling settings that the model was published with."""

    bos_id: int | None = None
    add_bos: bool = False
    stop_ids: tuple[int, ...] = ()
    stop_sources: dict[int, tuple[str, ...]] = field(default_factory=dict)
    sampling: dict[str, float] = field(default_factory=dict)


class RowSource(Protocol):
    """Yields the bytes of rows [lo, hi) of a weight as a uint8 array of `(hi - lo) * tensor.row_bytes` values."""

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> NDArray[np.uint8]: ...


class FileRows:
    """Rows read straight from the file of the weight.

    Plain reads into a fresh array instead of a memory map: nothing is ever mapped, so streaming a file of any size
    leaves no resident pages behind, and a file that shrinks meanwhile is an error instead of a bus error.
    """

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> NDArray[np.uint8]:
        if tensor.pieces:
            return read_pieces(tensor, tensor.shape[-1], BLOCKS[tensor.encoding][1], lo, hi)
        rows = np.empty((hi - lo) * tensor.row_bytes, dtype=np.uint8)
        with tensor.file.open("rb", buffering=0) as file:
            read_fully(file, rows.data, tensor.offset + lo * tensor.row_bytes, tensor.name, tensor.file.name)
        return rows


@dataclass
class Checkpoint:
    """A model ready to compile. `tensors` holds every weight of the architecture under its model-level name.

    format is "hf", "gguf" or "random"; `tokenizer` is None when the source carries none that can be used.
    """

    config: LlamaConfig
    tensors: dict[str, StoredTensor]
    format: str
    tokenizer: TokenizerSource | None
    chat_template: str | None
    generation: GenerationDefaults
    name: str
    license: str | None
    ledger: list[LedgerEntry]
    row_source: RowSource = field(default_factory=FileRows)

    def read_rows(self, name: str, lo: int, hi: int) -> NDArray[np.uint8]:
        """Bytes of rows [lo, hi) of weight or part `name`, shape [hi - lo, row_bytes]; a vector is row 0 of one."""
        tensor = self.tensors.get(name) or self._part(name)
        if not 0 <= lo <= hi <= tensor.rows:
            raise LlamacError("LLC0217", name, f"rows {lo}..{hi} of a weight with {tensor.rows} rows", "")
        return self.row_source.read(tensor, lo, hi).reshape(hi - lo, tensor.row_bytes)

    def _part(self, name: str) -> StoredTensor:
        """The part of a packed weight that is called `name`, which is the weight's own name and one word more."""
        weight = self.tensors[name.rpartition(".")[0]]
        return next(part for part in weight.parts if part.name == name)


def assembled(
    name: str, stored_name: str, shape: tuple[int, ...], encoding: str, pieces: Iterable[Piece]
) -> StoredTensor:
    """A weight made of pieces (a vector is one row); LLC0208 when they do not tile it, LLC0209 for block encodings."""
    if BLOCKS[encoding][0] != 1:
        raise LlamacError("LLC0209", name, f"{encoding} blocks in pieces are not read", "convert the checkpoint again")
    rows = shape[0] if len(shape) == 2 else 1
    item, found = BLOCKS[encoding][1], tuple(sorted(pieces, key=lambda piece: (piece.row, piece.column)))
    check_pieces(name, found, rows, shape[-1], item)
    nbytes = rows * shape[-1] * item
    first = found[0]
    if len(found) == 1 and (first.row_stride, first.column_stride) == (shape[-1] * item, item):
        return StoredTensor(name, stored_name, shape, encoding, first.file, first.offset, nbytes)
    return StoredTensor(name, stored_name, shape, encoding, first.file, first.offset, nbytes, found)


def bytes_of(encoding: str, shape: tuple[int, ...]) -> int | None:
    """Bytes that a tensor occupies, or None when its innermost dimension is no whole number of blocks."""
    values, block_bytes = BLOCKS[encoding]
    if not shape:
        return block_bytes
    if shape[-1] % values:
        return None
    total = shape[-1] // values * block_bytes
    for size in shape[:-1]:
        total *= size
    return total


def encodings(tensors: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Encoding -> number of weights stored so, most frequent first."""
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        counts[tensor.encoding] = counts.get(tensor.encoding, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
