"""What a rule sees of an op: its attributes, its operands and results as buffers, and the loops it writes.

The op is *flat*: a cache among its operands stands as two tensors, the keys and the values [KV heads, S, head size],
and a cache among its results likewise. A buffer becomes a parameter of the function when a rule first asks for it, so
what one sequence has no use for (page tables) never does. A packed weight may be asked for as arrays of several types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from llamac.ir.dims import Dim, DimLike, evaluate
from llamac.ir.dtypes import DType
from llamac.ir.graph import Attribute
from llamac.ir.layouts import WeightFormat, format_of
from llamac.ir.types import TensorType

from .loops import Buffer, Expression, Loops, index
from .values import STORED, narrowed, to_index, widened


@dataclass(frozen=True)
class FlatOp:
    """An op without caches. `location` is where in the model it stands."""

    opcode: str
    attributes: Mapping[str, Attribute]
    operands: tuple[TensorType, ...]
    results: tuple[TensorType, ...]
    location: str

    @property
    def signature(self) -> str:
        """Equal for ops that one function serves."""
        given = sorted((k, str(v)) for k, v in self.attributes.items() if k not in ("buffers", "layer", "cache"))
        return f"{self.opcode} {given} {list(map(str, self.operands))} -> {list(map(str, self.results))}"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function: which operand it is, seen as an array of which dtype of TVM."""

    operand: int
    dtype: str


class Kernel:
    """The function of one op while a rule writes it."""

    def __init__(self, op: FlatOp, on_gpu: bool) -> None:
        self.op = op
        self.code = Loops(on_gpu)
        self.parameters: list[Parameter] = []
        self._given: dict[Parameter, Buffer] = {}
        self._symbols: dict[str, Any] = {}
        self._results: list[Buffer] = [
            self._declare(f"result{n}", t.shape, STORED[t.dtype.name]) for n, t in enumerate(op.results)
        ]

    # Attributes.

    def integer(self, name: str) -> int:
        """Attribute `name`."""
        value = self.op.attributes[name]
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        """Attribute `name` as a float."""
        value = self.op.attributes[name]
        assert isinstance(value, int | float)
        return float(value)

    def text(self, name: str) -> str:
        """Attribute `name` as text."""
        return str(self.op.attributes[name])

    def integers(self, name: str) -> tuple[int, ...]:
        """Attribute `name`, a list."""
        value = self.op.attributes[name]
        assert isinstance(value, tuple)
        return tuple(int(str(v)) for v in value)

    @property
    def format(self) -> WeightFormat:
        """The format of the packed weight."""
        return format_of(self.text("format"))

    # Shapes.

    def has(self, operand: int) -> bool:
        """Whether the op has an operand of that number."""
        return operand < len(self.op.operands)

    def size(self, dim: DimLike) -> Expression:
        """A dimension as an expression; one symbol stands for each that is not a number."""
        if not isinstance(dim, Dim):
            return index(evaluate(dim, {}))
        return self._symbols.setdefault(str(dim), tirx.Var(f"n{len(self._symbols)}", "int64"))

    def rows(self, operand: int = 0) -> Expression:
        """The length of the first axis of an operand."""
        return self.size(self.op.operands[operand].shape[0])

    def width(self, operand: int = 0) -> int:
        """The length of the last axis of an operand, a number."""
        return int(str(self.op.operands[operand].shape[-1]))

    # Buffers.

    def operand(self, number: int) -> Buffer:
        """Operand `number` as it is stored."""
        found = self.op.operands[number]
        return self._buffer(Parameter(number, STORED[found.dtype.name]), found.shape)

    def view(self, number: int, dtype: str, itemsize: int) -> Buffer:
        """Operand `number`, the bytes of a packed weight [panels, bytes], as [panels, bytes / itemsize] of `dtype`."""
        panels, nbytes = (int(str(dim)) for dim in self.op.operands[number].shape)
        return self._buffer(Parameter(number, dtype), (panels, nbytes // itemsize))

    def result(self, number: int = 0) -> Buffer:
        """Result `number` as it is stored."""
        return self._results[number]

    def load(self, number: int, *at: Expression) -> Expression:
        """An element of a float operand as f32, or of another one as it is."""
        dtype = self.op.operands[number].dtype
        value = self.operand(number)[tuple(index(i) for i in at)]
        return widened(value, dtype) if dtype.is_float else value

    def row_number(self, number: int, at: Expression) -> Expression:
        """An element of a vector of i32 as an index."""
        return to_index(self.load(number, at))

    def store(self, number: int, at: Sequence[Expression], value: Expression) -> None:
        """An element of result `number`, rounded to its dtype where that is a float."""
        dtype: DType = self.op.results[number].dtype
        self.code.store(self.result(number), at, narrowed(value, dtype) if dtype.is_float else value)

    def function(self, name: str) -> Any:
        """The finished function; its parameters are `self.parameters`, then every result."""
        buffers = [self._given[parameter] for parameter in self.parameters]
        return self.code.function([*buffers, *self._results], name)

    def _buffer(self, parameter: Parameter, shape: Sequence[DimLike]) -> Buffer:
        if parameter not in self._given:
            self._given[parameter] = self._declare(f"operand{len(self._given)}", shape, parameter.dtype)
            self.parameters.append(parameter)
        return self._given[parameter]

    def _declare(self, name: str, shape: Sequence[DimLike], dtype: str) -> Buffer:
        sizes = tuple(self.size(dim) for dim in shape) or (index(1),)
        return tirx.decl_buffer(sizes, dtype, name, layout=None)
