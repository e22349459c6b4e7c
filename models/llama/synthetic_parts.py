"""Made-up parts of packed weights for the shrunken model: every value that a real checkpoint could hold."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamac.ir.dtypes import DTYPES

from ..checkpoint import StoredTensor
from ..packed_encoding import PackedEncoding, packed_encoding, packed_tensor, part_bytes

LARGEST = {"fp8": 448.0, "int8": 128.0, "ct4": 8.0, "ct8": 128.0, "gptq4": 8.0, "gptq8": 128.0,
           "i8": 128.0, "u8": 256.0, "u4": 16.0}  # fmt: skip
E4M3_NAN = 0x7F
"""The one e4m3fn pattern, apart from its sign, that is no number."""


def small_packed(name: str, shape: tuple[int, ...], encoding: PackedEncoding) -> StoredTensor:
    """A packed weight of a shrunken model; it lies in no file."""
    parts = {}
    for part, (part_shape, stored_as) in encoding.parts(shape[0], shape[1]).items():
        nbytes = part_bytes(part_shape, stored_as)
        parts[part] = StoredTensor(f"{name}.{part}", name, part_shape, stored_as, Path(), 0, nbytes)
    return packed_tensor(name, shape, encoding, parts)


def synthetic_parts(stored: StoredTensor, generator: np.random.Generator) -> dict[str, NDArray[np.uint8]]:
    """The bytes of every part, row by row, by its name."""
    encoding = packed_encoding(stored.encoding)
    assert encoding is not None
    return {
        part.name: _bytes(part, encoding, stored.shape[1], generator).reshape(part.rows, -1) for part in stored.parts
    }


def _bytes(
    part: StoredTensor, encoding: PackedEncoding, columns: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    kind = part.name.rpartition(".")[2]
    if kind == "scale":
        largest = LARGEST.get(encoding.layout, 8.0)
        values = generator.uniform(0.5, 1.5, part.shape).astype(np.float32) * np.float32(
            3 / (largest * math.sqrt(columns))
        )
        return np.ascontiguousarray(values.astype(DTYPES[part.encoding].storage)).view(np.uint8)
    if kind == "mins":
        values = generator.uniform(-1, 0.5, part.shape).astype("<f4") / np.float32(math.sqrt(columns))
        return np.ascontiguousarray(values).view(np.uint8)
    data = generator.integers(0, 256, part.nbytes, np.uint8)
    if part.encoding in ("i4", "u4"):
        return ((data & 15) - np.uint8(8 if part.encoding == "i4" else 0)).astype(np.uint8)
    if kind == "zeros" and encoding.is_gptq and encoding.symmetric:
        # The zero points of symmetric GPTQ are all the middle of the range.
        middle = (8 if encoding.bits == 4 else 128) - encoding.zero_offset
        data[:] = middle * 17 if encoding.bits == 4 else middle
    if part.encoding == "e4m3fn":
        data[(data & E4M3_NAN) == E4M3_NAN] -= 1
    return data
