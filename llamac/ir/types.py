"""Value types: tensors with named symbolic dimensions, and the paged key/value cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .dims import Dim, DimLike, evaluate, substitute
from .dtypes import DType

LARGEST_RANK = 32
"""Most axes of a tensor; text from elsewhere may claim thousands."""


@dataclass(frozen=True)
class TensorType:
    """`tensor<T x 2048 x bf16>`: a dense row-major tensor; no dimensions means a scalar."""

    shape: tuple[DimLike, ...]
    dtype: DType

    def __str__(self) -> str:
        dims = [f"({d})" if isinstance(d, Dim) and len(d.terms) > 1 else str(d) for d in self.shape]
        return f"tensor<{' x '.join([*dims, self.dtype.name])}>"

    @property
    def rank(self) -> int:
        return len(self.shape)

    def with_shape(self, *shape: DimLike) -> TensorType:
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(self.shape, dtype)

    def concrete_shape(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every symbol bound."""
        return tuple(evaluate(d, values) for d in self.shape)

    def substituted(self, values: Mapping[str, DimLike]) -> TensorType:
        return TensorType(tuple(substitute(d, values) for d in self.shape), self.dtype)


@dataclass(frozen=True)
class CacheType:
    """The paged key/value cache of one kind of layer: pages of `page` tokens, each holding K and V of every layer.

    chunk: a row sees only the block of `chunk` positions that its own lies in; 0: everything before it.
    cross: it holds vision tokens, of which each row sees a range of its own; positions count those.
    scale: of integers, the dtype of the scale that each key and each value of a head has; integers need one.
    """

    layers: int
    kv_heads: int
    head_dim: int
    page: int
    dtype: DType
    chunk: int = 0
    cross: bool = False
    scale: DType | None = None

    def __str__(self) -> str:
        kind = "cross, " if self.cross else f"chunk = {self.chunk}, " if self.chunk else ""
        return (
            f"kv_cache<layers = {self.layers}, kv_heads = {self.kv_heads}, head_dim = {self.head_dim}, "
            f"page = {self.page}, {kind}{self.dtype.name}{f', scale = {self.scale}' if self.scale else ''}>"
        )

    @property
    def kind(self) -> str:
        """What its rows see: "full", "chunk" or "cross"."""
        return "cross" if self.cross else "chunk" if self.chunk else "full"

    def first_visible(self, position: int) -> int:
        """The first position that a row at `position` sees."""
        return position // self.chunk * self.chunk if self.chunk else 0

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: K and V of `page` tokens in every layer, and their scales."""
        head_bits = self.head_dim * self.dtype.bits + (self.scale.bits if self.scale else 0)
        return 2 * self.layers * self.kv_heads * self.page * head_bits // 8


Type = TensorType | CacheType


def tensor(*parts: DimLike | DType) -> TensorType:
    """`tensor(T, 2048, BF16)` in the order it prints."""
    *shape, dtype = parts
    if not isinstance(dtype, DType) or any(isinstance(d, DType) for d in shape):
        raise TypeError("tensor(dims..., dtype)")
    return TensorType(tuple(shape), dtype)  # type: ignore[arg-type]
