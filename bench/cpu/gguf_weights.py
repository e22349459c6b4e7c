"""The weights of a Llama GGUF file as integers and scales, for the programs that write them in another engine's format.

Runs in the environments of the peers, which have `gguf` and numpy but not llamac. Names are those of the file. Rows of
queries and keys come in the order of Hugging Face: the file keeps the two halves of a head interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

GROUP = 32
Integers = NDArray[np.int8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """What the file says about the model, and how rotary frequencies are divided (ones without scaling)."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    epsilon: float
    theta: float
    divisors: Floats

    @property
    def frequencies(self) -> Floats:
        """Radians a position, [head_dim / 2]."""
        plain = self.theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        return np.asarray(plain / self.divisors, np.float32)


class GgufWeights:
    """A GGUF file in which matrices are q4_0, q4_1, q8_0 or floats."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shape = self._shape()

    def __contains__(self, name: str) -> bool:
        return f"{name}.weight" in self._tensors

    def vector(self, name: str) -> Floats:
        """A vector in f32."""
        return np.array(self._tensors[f"{name}.weight"].data, np.float32)

    def quantized(self, name: str, bits: int, group: int | None = GROUP) -> tuple[Integers, Floats]:
        """Symmetric integers [rows, groups, group] and their scales [rows, groups]; `group` None is a whole row.

        The integers of a q4_0 (or q8_0) matrix are the file's own where 4 (or 8) bits in groups of 32 are asked for,
        and in wider groups where the scales within a group are equal; everything else is rounded anew.
        """
        tensor = self._tensors[f"{name}.weight"]
        kind, rows = tensor.tensor_type.name, tensor.data.shape[0]
        if (kind, bits) in (("Q4_0", 4), ("Q8_0", 8)):
            integers, scales = _blocks(tensor.data, kind)
            width = group or integers.shape[1] * GROUP
            integers = integers.reshape(rows, -1, width)
            scales = scales.reshape(rows, integers.shape[1], -1)
            if (scales == scales[:, :, :1]).all():
                return self._in_order(name, integers), self._in_order(name, scales[:, :, 0])
        return _rounded(self.floats(name), bits, group)

    def floats(self, name: str) -> Floats:
        """A matrix [rows, columns] in f32."""
        tensor = self._tensors[f"{name}.weight"]
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        return self._in_order(name, values)

    def _in_order(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        if not name.endswith(("attn_q", "attn_k")):
            return rows
        pairs = rows.reshape(-1, self.shape.head_dim // 2, 2, *rows.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    def _shape(self) -> Shape:
        heads = self._number("attention.head_count")
        hidden = self._number("embedding_length")
        dim = self._number("rope.dimension_count", hidden // heads)
        divisors = self.vector("rope_freqs") if "rope_freqs" in self else np.ones(dim // 2, np.float32)
        return Shape(
            hidden=hidden,
            inner=self._number("feed_forward_length"),
            layers=self._number("block_count"),
            heads=heads,
            kv_heads=self._number("attention.head_count_kv", heads),
            head_dim=dim,
            vocabulary=self._tensors["token_embd.weight"].data.shape[0],
            context=self._number("context_length"),
            epsilon=self._number("attention.layer_norm_rms_epsilon"),
            theta=self._number("rope.freq_base", 10000.0),
            divisors=divisors,
        )

    def _number(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(f"llama.{key}")
        return default if field is None else field.contents()


def _blocks(data: NDArray[np.uint8], kind: str) -> tuple[Integers, Floats]:
    """Integers [rows, blocks, 32] and scales [rows, blocks]."""
    size = 18 if kind == "Q4_0" else 34
    blocks = data.reshape(data.shape[0], -1, size)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0].astype(np.float32)
    values = blocks[:, :, 2:]
    if kind == "Q8_0":
        return np.ascontiguousarray(values).view(np.int8), scales
    integers = np.concatenate([values & 15, values >> 4], axis=2).astype(np.int8)
    return integers - np.int8(8), scales


def _rounded(values: Floats, bits: int, group: int | None) -> tuple[Integers, Floats]:
    """Symmetric rounding to nearest, the element of largest magnitude becoming the most negative integer."""
    lowest = -(1 << (bits - 1))
    groups = values.reshape(values.shape[0], -1, group or values.shape[1])
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)
    scales = (largest / lowest).astype(np.float16).astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    integers = np.clip(np.rint(groups * inverse), lowest, -lowest - 1).astype(np.int8)
    return integers, scales[:, :, 0]


def packed_nibbles(integers: Integers, offset: int) -> NDArray[np.uint8]:
    """Two 4-bit values a byte along the last axis, the first in the low half; `offset` 8 stores them unsigned."""
    nibbles = (integers + np.int8(offset)).view(np.uint8) & 15
    return np.asarray(nibbles[..., 0::2] | (nibbles[..., 1::2] << 4))
