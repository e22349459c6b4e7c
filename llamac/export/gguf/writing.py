"""A GGUF file: the header by the package `gguf`, then the tensors one after the other, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamac.models.checkpoint import bytes_of

from .keys import Keys, add_keys
from .library import gguf_library

ALIGNMENT = 32


@dataclass(frozen=True)
class FileTensor:
    """One tensor: its name, its row-major shape, its type, and its bytes in pieces."""

    name: str
    shape: tuple[int, ...]
    kind: str
    pieces: Callable[[], Iterator[NDArray[np.uint8]]]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        found = bytes_of(self.kind, self.shape)
        assert found is not None, self
        return found


def write_file(
    path: Path, architecture: str, keys: Keys, tensors: Sequence[FileTensor], progress: Callable[[int, int], None]
) -> None:
    """Write the file. progress: called with bytes of tensors written and bytes in all."""
    gguf = gguf_library()
    writer = gguf.GGUFWriter(path, architecture)
    add_keys(writer, keys)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind.upper()]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    with path.open("ab") as file:
        for tensor in tensors:
            file.write(_aligned(file.tell()))
            start = file.tell()
            for piece in tensor.pieces():
                file.write(piece.data)
                done += piece.nbytes
                progress(done, total)
            assert file.tell() - start == tensor.nbytes, tensor
        file.write(_aligned(file.tell()))


def _aligned(position: int) -> bytes:
    """Zeros up to the next place where a tensor may begin."""
    return bytes(-position % ALIGNMENT)
