"""Reads a written ONNX model back: its structure, and its weights as numbers, by what the file itself says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.ir.dtypes import widen

from .emit import MODEL
from .library import library
from .weights import Stored

Floats = NDArray[np.float32]
_BLOCK_ELEMENTS = 1 << 22


class WrittenModel:
    """A model of a folder with its external file. Tensors are read through maps, as much as is asked for."""

    def __init__(self, folder: Path, file: str = MODEL) -> None:
        self._onnx = library("onnx")
        self._folder, self._file = folder, file
        self.proto = self._onnx.load(str(folder / file), load_external_data=False)
        self.tensors: dict[str, Any] = {t.name: t for t in self.proto.graph.initializer}

    def validate(self) -> None:
        """Run onnx.checker over the model in its place; raises its ValidationError."""
        library("onnx.checker").check_model(str(self._folder / self._file))

    @property
    def external(self) -> set[str]:
        """Names of the tensors in the external file; of two names for one place the first."""
        places: dict[str, str] = {}
        for name, tensor in self.tensors.items():
            if tensor.data_location == tensor.EXTERNAL:
                entries = {e.key: e.value for e in tensor.external_data}
                places.setdefault(entries["offset"], name)
        return set(places.values())

    def rows(self, stored: Stored) -> Iterator[tuple[int, Floats]]:
        """(first row, rows as f32) of the matrix or vector that `stored` describes, until all are given."""
        values = self._integers_or_floats(stored.values)
        if values.ndim == 1:
            yield 0, np.asarray(widen(values), np.float32)
            return
        scales, minima = (self._floats(name, stored.transposed) for name in (stored.scales, stored.minima))
        matrix = values.T if stored.transposed else values
        step = max(_BLOCK_ELEMENTS // max(int(np.prod(matrix.shape[1:])), 1), 1)
        for lo in range(0, matrix.shape[0], step):
            part = slice(lo, min(lo + step, matrix.shape[0]))
            rows = _numbers(stored, matrix[part], None if scales is None else scales[part])
            yield lo, rows if minima is None else rows + _spread(minima[part], stored.group, rows.shape[1])

    def _integers_or_floats(self, name: str) -> NDArray[Any]:
        """A tensor of the external file; two 4-bit integers of a byte are taken apart."""
        tensor = self.tensors[name]
        entries = {e.key: e.value for e in tensor.external_data}
        kind, dims = tensor.data_type, tuple(tensor.dims)
        names = self._onnx.TensorProto
        if kind in (names.INT4, names.UINT4):
            size = (int(np.prod(dims)) + 1) // 2
            packed = np.memmap(self._folder / entries["location"], np.uint8, "r", int(entries["offset"]), (size,))
            return _nibbles(packed, kind == names.INT4).reshape(dims)
        dtype = self._onnx.helper.tensor_dtype_to_np_dtype(kind)
        return np.memmap(self._folder / entries["location"], dtype, "r", int(entries["offset"]), dims)

    def _floats(self, name: str, transposed: bool) -> Floats | None:
        if not name:
            return None
        found = self._integers_or_floats(name)
        return found.T if transposed else found


def _nibbles(packed: NDArray[Any], signed: bool) -> NDArray[Any]:
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)
    return ((both.astype(np.int8) ^ 8) - 8).astype(np.int8) if signed else both


def _numbers(stored: Stored, values: NDArray[Any], scales: Floats | None) -> Floats:
    """Rows as f32, minima aside."""
    if stored.form == "floats":
        rows = np.asarray(widen(np.ascontiguousarray(values)), np.float32)
        return rows if scales is None else rows * scales
    assert scales is not None
    quants = values.astype(np.float32) if stored.form == "quants" else _unblocked(stored, values)
    columns = stored.weight.tensor.shape[1]
    assert isinstance(columns, int)
    return (quants[:, :columns] + np.float32(stored.middle)) * _spread(scales, stored.group, columns)


def _unblocked(stored: Stored, blocks: NDArray[Any]) -> Floats:
    """Signed quants of [rows, groups, bytes]."""
    bytes_ = np.ascontiguousarray(blocks).reshape(blocks.shape[0], -1)
    quants = bytes_ if stored.bits == 8 else _nibbles(bytes_, signed=False).reshape(blocks.shape[0], -1)
    return quants.astype(np.float32) - np.float32(1 << (stored.bits - 1))


def _spread(per_group: Floats, group: int, columns: int) -> Floats:
    return np.repeat(per_group, group, axis=1)[:, :columns]


def covered(stored: Mapping[str, Stored]) -> set[str]:
    """The tensors that these descriptions account for."""
    return {name for each in stored.values() for name in (each.values, each.scales, each.minima) if name}
