"""How an op is defined: one `OpDefinition` holds its signature, type rule and numpy meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamac.errors import did_you_mean

from .dims import Dim, DimLike, evaluate
from .dtypes import I8, DType, round_to
from .graph import Attribute
from .types import CacheType, TensorType, Type

Array = np.ndarray
PLACEMENT = "buffers"
"""The one attribute that every op may have: where `plan-memory` put its results."""


class OpError(ValueError):
    """What is wrong with one op; the verifier and the parser add where."""


@dataclass(frozen=True)
class Signature:
    """What a type rule sees: operand types and attributes."""

    types: Sequence[Type]
    attributes: Mapping[str, Attribute]

    def tensor(self, index: int) -> TensorType:
        """Operand `index`, which must be a tensor."""
        found = self.types[index]
        if not isinstance(found, TensorType):
            raise OpError(f"operand {index} must be a tensor, not {found}")
        return found

    def cache(self, index: int) -> CacheType:
        """Operand `index`, which must be a kv_cache."""
        found = self.types[index]
        if not isinstance(found, CacheType):
            raise OpError(f"operand {index} must be a kv_cache, not {found}")
        return found

    def ranked(self, index: int, rank: int) -> TensorType:
        """Operand `index`, which must be a tensor of `rank`."""
        found = self.tensor(index)
        if found.rank != rank:
            raise OpError(f"operand {index} must have rank {rank}, not {found}")
        return found

    def tensors(self) -> list[TensorType]:
        return [self.tensor(i) for i in range(len(self.types))]

    def integer(self, name: str) -> int:
        value = self.attributes[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise OpError(f"attribute '{name}' must be an integer")
        return value

    def dims(self, name: str) -> tuple[DimLike, ...]:
        value = self.attributes[name]
        if not isinstance(value, tuple):
            raise OpError(f"attribute '{name}' must be a list of dimensions")
        return tuple(d for d in value if isinstance(d, int | Dim))

    def positive(self, name: str) -> int:
        value = self.integer(name)
        if value < 1:
            raise OpError(f"attribute '{name}' must be positive, not {value}")
        return value

    def text(self, name: str) -> str:
        return str(self.attributes[name])

    def axis(self, name: str, rank: int) -> int:
        """Attribute `name` as an axis of a tensor of `rank`, negative counted from the end."""
        axis = self.integer(name)
        if not -rank <= axis < rank:
            raise OpError(f"attribute '{name}' = {axis} is outside rank {rank}")
        return axis % rank


@dataclass
class Evaluation:
    """What an op's meaning sees: concrete inputs, attributes, result types, and the values of the symbols."""

    inputs: list[Any]
    attributes: Mapping[str, Attribute]
    result_types: Sequence[Type]
    symbols: Mapping[str, int]
    exact: bool
    call: Callable[[str, list[Any], Mapping[str, int]], list[Any]] | None = None
    exchange: Callable[[str, Array], list[Array]] | None = None

    def of_all_ranks(self, kind: str, mine: Array) -> list[Array]:
        """What every rank gives at this collective; OpError where no other rank runs."""
        if self.exchange is None:
            raise OpError(f"{kind} has a meaning with all ranks only (llamac.ir.ranks)")
        return self.exchange(kind, mine)

    @property
    def float_type(self) -> np.dtype[Any]:
        """f64 in exact mode, f32 in dtype mode."""
        return np.dtype(np.float64 if self.exact else np.float32)

    def integer(self, name: str) -> int:
        value = self.attributes[name]
        if isinstance(value, Dim):
            return evaluate(value, self.symbols)
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        value = self.attributes[name]
        assert isinstance(value, int | float)
        return float(value)

    def text(self, name: str) -> str:
        return str(self.attributes[name])

    def integers(self, name: str) -> tuple[int, ...]:
        value = self.attributes[name]
        assert isinstance(value, tuple)
        return tuple(evaluate(v, self.symbols) if isinstance(v, Dim) else int(v) for v in value)

    def result_shape(self, index: int = 0) -> tuple[int, ...]:
        found = self.result_types[index]
        assert isinstance(found, TensorType)
        return found.concrete_shape(self.symbols)

    def result_dtype(self, index: int = 0) -> DType:
        found = self.result_types[index]
        assert isinstance(found, TensorType)
        return found.dtype

    def rounded(self, values: Array, index: int = 0) -> Array:
        """`values` as the result's dtype holds them: rounded in dtype mode, untouched in exact mode."""
        dtype = self.result_dtype(index)
        if dtype.is_float:
            values = np.asarray(values, dtype=self.float_type)
            return values if self.exact else round_to(values, dtype)
        return np.asarray(values, dtype=dtype.storage)


RowRule = Callable[[Mapping[str, Attribute], Sequence[TensorType], int, int], list["tuple[int, int] | None"]]
"""(attributes, operand types, lo, hi) -> for each operand the rows that result rows [lo, hi) need (None: all of it)."""


@dataclass(frozen=True)
class OpDefinition:
    """One op of the IR.

    `operands` names them in order; a trailing `?` marks an optional last one, `*` a list. `attributes` maps each name
    to its kind (`int float str bool dtype dim dims ints floats`), `?` for optional. `rows` is the row rule of ops that
    may define weights: it lets them be evaluated block by block. `row_block`, where given, tells from the attributes
    of how many rows a block is a multiple: the rule is then asked for whole blocks (the last may be short).
    """

    name: str
    levels: frozenset[str]
    operands: tuple[str, ...]
    attributes: Mapping[str, str]
    infer: Callable[[Signature], Sequence[Type]]
    evaluate: Callable[[Evaluation], Sequence[Any]]
    summary: str
    rows: RowRule | None = None
    row_block: Callable[[Mapping[str, Attribute]], int] | None = None
    commutative: bool = False

    def check_signature(self, operand_count: int, attributes: Mapping[str, Attribute]) -> None:
        """Raise `OpError` for a wrong operand count or for missing, unknown or ill-typed attributes."""
        low = sum(not o.endswith(("?", "*")) for o in self.operands)
        high = 10**9 if any(o.endswith("*") for o in self.operands) else len(self.operands)
        if not low <= operand_count <= high:
            raise OpError(f"takes operands ({', '.join(self.operands)}), got {operand_count}")
        for name, kind in self.attributes.items():
            if name not in attributes:
                if not kind.endswith("?"):
                    raise OpError(f"attribute '{name}' is missing")
            elif not _fits(attributes[name], kind.rstrip("?")):
                raise OpError(f"attribute '{name}' must be of kind {kind.rstrip('?')}, got {attributes[name]!r}")
        for name in attributes:
            if name not in self.attributes and name != PLACEMENT:
                raise OpError(f"has no attribute '{name}'{did_you_mean(name, self.attributes)}")


def check_type(type: Type) -> None:
    """Raise `OpError` for a type that no value can have."""
    if isinstance(type, TensorType):
        if any(isinstance(d, int) and d < 0 for d in type.shape):
            raise OpError(f"{type} has a negative dimension")
    elif min(type.layers, type.kv_heads, type.head_dim, type.page) < 1 or type.chunk < 0:
        raise OpError(f"{type} must hold a positive number of elements")
    elif type.dtype is I8 and (type.scale is None or not type.scale.is_float):
        raise OpError(f"{type} holds integers: it needs scales, `scale = f16`")
    elif type.dtype is not I8 and (type.scale is not None or not type.dtype.is_float):
        raise OpError(f"{type} must hold floats without scales, or i8 with them")
    elif type.chunk and type.cross:
        raise OpError(f"{type} cannot have chunks: vision tokens are seen by ranges")


def _is_int(value: Attribute) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: Attribute, kind: str) -> bool:
    match kind:
        case "int":
            return _is_int(value)
        case "float":
            return isinstance(value, float)
        case "str":
            return isinstance(value, str)
        case "bool":
            return isinstance(value, bool)
        case "dtype":
            return isinstance(value, DType)
        case "dim":
            return _is_int(value) or isinstance(value, Dim)
        case "dims":
            return isinstance(value, tuple) and all(_is_int(v) or isinstance(v, Dim) for v in value)
        case "ints":
            return isinstance(value, tuple) and all(_is_int(v) for v in value)
        case "floats":
            return isinstance(value, tuple) and all(isinstance(v, float) for v in value)
    raise AssertionError(kind)
