"""The weights of a checkpoint by model-level name, as numbers, in either order of the rotated rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from llamac.ir.builder import Builder
from llamac.ir.dtypes import widen
from llamac.ir.evaluator import WeightEvaluator
from llamac.ir.graph import Module, Weight
from llamac.models.checkpoint import Checkpoint, StoredTensor
from llamac.models.llama.declared_weights import declare_weights

_ROTATED = re.compile(r"layers\.\d+\.attn\.[qk]")
_BLOCK_ELEMENTS = 1 << 21
"""Elements that `blocks` gives at a time, unless a row, or a head of a rotated matrix, has more."""


@dataclass(frozen=True)
class QuantizedRows:
    """Rows that are stored quantized, value = scale * quant (+ minimum).

    quants: [rows, columns] of int8 or uint8; scales and minima: [rows, groups] of f32, one for each `group` columns.
    """

    quants: NDArray[Any]
    scales: NDArray[np.float32]
    minima: NDArray[np.float32] | None
    group: int


class ModelWeights:
    """Weights read on demand, by rows; nothing is kept.

    rope_style: "half_split" or "interleaved", the order in which rows of q and k are given; the source's own unless
    named. Matrices are [out, in]; the experts of a layer are stacked (see `models.llama.weights.expected_shapes`).
    """

    def __init__(self, checkpoint: Checkpoint, rope_style: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.rope_style = rope_style or checkpoint.config.rope_style
        self._reorder = self.rope_style != checkpoint.config.rope_style
        module = Module("weights", "captured")
        declare_weights(Builder(module), checkpoint.tensors)
        self._weights: dict[str, Weight] = module.weights
        self._evaluator = WeightEvaluator(checkpoint.read_rows)

    @property
    def names(self) -> tuple[str, ...]:
        """Every weight, in the order the model applies them."""
        return tuple(self.checkpoint.tensors)

    def stored(self, name: str) -> StoredTensor:
        """Where and how a weight lies in the source; its shape is that of the values."""
        return self.checkpoint.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows and columns, or the length of a vector."""
        return self.stored(name).shape

    def float_dtype(self, name: str) -> str:
        """The dtype that holds its values: the stored one of floats, the model's own for what is stored quantized."""
        encoding = self.stored(name).encoding
        return encoding if encoding in ("f32", "f16", "bf16") else self.checkpoint.config.dtype

    def rows(self, name: str, lo: int, hi: int) -> NDArray[np.float32]:
        """Rows [lo, hi) as f32, dequantized where they are stored quantized; a vector is its one row, [n]."""
        weight = self._weights[name]
        return self._ordered(name, lo, hi, lambda a, b: widen(self._evaluator.rows(weight, a, b)))

    def stored_rows(self, name: str, lo: int, hi: int) -> NDArray[np.uint8]:
        """The bytes of rows [lo, hi) as the source encodes them, [hi - lo, row_bytes]; a vector is row 0 of one."""
        return self._ordered(name, lo, hi, lambda a, b: self.checkpoint.read_rows(name, a, b))

    def integer_dtype(self, name: str) -> str | None:
        """The dtype of the integers of a weight that is stored as integers with scales; None for any other weight."""
        producer = self._weights[name].producer
        if producer is None or producer.opcode != "dequantize":
            return None
        dtype = producer.operands[0].tensor.dtype
        return None if dtype.is_float else dtype.name

    def quantized_rows(self, name: str, lo: int, hi: int) -> QuantizedRows:
        """Rows [lo, hi) of a weight that is stored as integers, which come as they are stored."""
        op = self._weights[name].producer
        assert op is not None and op.opcode == "dequantize"
        parts = [self._ordered(name, lo, hi, partial(self._evaluator.rows, cast(Weight, part))) for part in op.operands]
        scales, *minima = (widen(part) for part in parts[1:])
        return QuantizedRows(parts[0], scales, minima[0] if minima else None, cast(int, op.attributes["group"]))

    def blocks(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows as f32) until all are given; blocks of whole heads where rows are reordered."""
        shape = self.shape(name)
        if len(shape) == 1:
            yield 0, self.rows(name, 0, 1)
            return
        rows, step = shape[0], self.rows_at_once(name)
        for lo in range(0, rows, step):
            yield lo, self.rows(name, lo, min(lo + step, rows))

    def rows_at_once(self, name: str) -> int:
        """Rows of a matrix in one of its `blocks`."""
        step = max(_BLOCK_ELEMENTS // max(self.shape(name)[1], 1), 1)
        if self._is_reordered(name):
            head = self.checkpoint.config.head_dim
            step = max(step // head, 1) * head
        return step

    def _is_reordered(self, name: str) -> bool:
        return self._reorder and _ROTATED.fullmatch(name) is not None

    def _ordered(self, name: str, lo: int, hi: int, read: Callable[[int, int], NDArray[Any]]) -> NDArray[Any]:
        """Rows [lo, hi) of `read(first, end)` in the wanted order: within whole heads, rows trade places."""
        if not self._is_reordered(name):
            return read(lo, hi)
        head = self.checkpoint.config.head_dim
        first, end = lo // head * head, -(-hi // head) * head
        found = read(first, end)
        order = _order(self.rope_style, head)
        ordered = found.reshape(-1, head, found.shape[-1])[:, order].reshape(found.shape)
        return ordered[lo - first : hi - first]


def _order(rope_style: str, head_dim: int) -> NDArray[np.intp]:
    """Row r of a head in `rope_style` is row `order[r]` of it in the other style."""
    half = np.arange(head_dim // 2)
    if rope_style == "interleaved":
        return np.stack([half, half + head_dim // 2], axis=1).reshape(-1)
    return np.concatenate([2 * half, 2 * half + 1])
