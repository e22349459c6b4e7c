"""One node of an ONNX graph, as the functions that import its op see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamac.errors import LlamacError
from llamac.ir.builder import Builder
from llamac.ir.dims import DimLike, symbol
from llamac.ir.dtypes import BF16, F16, F32, I1, I32, DType
from llamac.ir.graph import Value

from ..captured_ops import CapturedOps
from ..llama.config import LlamaConfig
from ..llama.graph import LlamaBuilder
from . import proto
from .known import Known, Literal, NotKnown, Ramp, as_literal, as_ramp, the_number
from .matrix import Matrix, whole
from .packed import Packed
from .proto import Node
from .stored import Stored

TOKENS = symbol("T")
PAST = symbol("P")
_LONGEST_REASON = 400
HINT = "the exporters that are read: torch.onnx.export, optimum, onnxruntime-genai's builder, llamac itself"

DTYPES: dict[int, DType] = {
    proto.FLOAT: F32, proto.DOUBLE: F32, proto.FLOAT16: F16, proto.BFLOAT16: BF16,
    proto.INT32: I32, proto.INT64: I32, proto.BOOL: I1, proto.UINT8: I32, proto.INT8: I32,
}  # fmt: skip
"""ONNX's element types. Ids, positions and sizes are i32 here: 64 bits have nothing to hold."""


@dataclass(eq=False)
class Product:
    """x times a weight, not made yet: whoever takes it may want only some of its columns."""

    x: Value
    matrix: Matrix
    made: Value | None = None


@dataclass(frozen=True, eq=False)
class Root:
    """The square root of x, not made yet: the IR has its reciprocal."""

    x: Value


@dataclass(frozen=True, eq=False)
class Grouped:
    """Heads [1, H, T, w] under the shape [1, K, H/K * T, w], or [1, K, H/K, T, w] where it is split (`grouped`)."""

    heads: Value
    kv_heads: int
    is_split: bool

    @property
    def shape(self) -> tuple[DimLike, ...]:
        _, count, tokens, width = self.heads.tensor.shape
        assert isinstance(count, int)
        group = count // self.kv_heads
        return (1, self.kv_heads, *((group, tokens) if self.is_split else (group * tokens,)), width)


@dataclass(frozen=True, eq=False)
class GroupSums:
    """The sums of x over groups of its columns, which a product with minima is made of."""

    x: Value
    group: int

    @property
    def shape(self) -> tuple[DimLike, ...]:
        *rows, columns = self.x.tensor.shape
        assert isinstance(columns, int)
        return (*rows, columns // self.group)


@dataclass(frozen=True, eq=False)
class Minima:
    """Stored minima and `factor` times stored scales: what groups of integers have besides their quants."""

    scales: Stored
    factor: float
    minima: Stored | None = None

    def turned(self) -> Minima:
        """Seen with their axes exchanged."""
        return Minima(self.scales.turned(), self.factor, None if self.minima is None else self.minima.turned())


@dataclass(frozen=True, eq=False)
class MinimaProduct:
    """Sums times minima [groups, outputs]: what is added to a product with integers."""

    sums: GroupSums
    minima: Minima | Stored


@dataclass(frozen=True, eq=False)
class LastToken:
    """The last token's row of `tokens` [.., T, d], under `shape`: a graph that gives its logits alone."""

    tokens: Value | Product
    shape: tuple[DimLike, ...]


@dataclass(eq=False)
class Rows:
    """Rows of a table, not taken yet: of integers, an exporter takes apart what it has looked up.

    shape: in which they are seen; steps: what was done to them since.
    """

    table: Stored | Packed | Minima
    ids: Value
    shape: tuple[DimLike, ...]
    steps: tuple[object, ...] = ()
    made: Value | None = None


Found = (
    Value | Known | Stored | Packed | Product | Root | Grouped | GroupSums | Minima | MinimaProduct | LastToken | Rows
)
"""What the name of a value stands for while a graph is imported."""


class Surroundings(Protocol):
    """What a call needs from the import it is part of."""

    builder: Builder
    config: LlamaConfig
    values: dict[str, Found]

    @property
    def file(self) -> Path:
        """The model's file, beside which its data lies."""

    @property
    def past(self) -> DimLike:
        """How many tokens the graph has before its new ones."""

    @property
    def pieces(self) -> LlamaBuilder:
        """The textbook's pieces in this graph."""

    def opset(self, domain: str) -> str:
        """The version of a domain's ops, for messages."""

    def version(self) -> int:
        """The version of ONNX's own ops."""

    def weight(self, matrix: Matrix) -> Value:
        """The weight that a matrix is."""

    def looked_up(self, call: Call, table: Matrix, rows: Value) -> Value:
        """Rows of a table, in the type that the model works in."""

    def constant(self, stored: Stored) -> Value:
        """A stored tensor used as it is."""

    def note(self, where: str, what: str, reason: str) -> None:
        """Add to the ledger, once."""

    def causal_mask(self) -> Value:
        """What is added to scores, [T, P + T]."""

    def rotation(self, call: Call, cosine: int, interleaved: int) -> Callable[[Value], Value]:
        """What rotates heads by the tables in inputs `cosine` and the next."""

    def rotated(self, x: Value) -> Value:
        """Heads [n, T, head size], rotated by the positions."""

    def rope_rows(self, call: Call, table: Stored, rows: Value) -> Value | None:
        """Rows of a table of cosines or sines by position; None for another table."""


class Call(CapturedOps):
    """A node with its inputs and attributes, and the ops to make."""

    def __init__(self, node: Node, around: Surroundings) -> None:
        self.node = node
        self.around = around
        self.b = around.builder

    def unsupported(self, reason: str) -> LlamacError:
        """LLC0935: the op is known, but not in this form."""
        shown = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        what = f"{self.node.key} ({self.around.opset(self.node.domain)}): {shown}"
        return LlamacError("LLC0935", self.node.title, what, HINT)

    # Inputs and attributes.

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def raw(self, index: int) -> Found:
        if not self.has(index):
            raise self.unsupported(f"input {index} is missing")
        name = self.node.inputs[index]
        if name not in self.around.values:
            raise self.unsupported(f"no node before it gives {name[:80]!r}")
        return self.around.values[name]

    def raws(self) -> list[Found]:
        return [self.raw(index) for index in range(len(self.node.inputs))]

    def tensor(self, index: int) -> Value:
        return self.value(self.raw(index))

    def value(self, found: Found) -> Value:
        """The tensor in the graph that a value is, made now where it was not yet."""
        if isinstance(found, Product):
            if found.made is None:
                weight = self.cast(self.around.weight(found.matrix), found.x.tensor.dtype)
                found.made = self.op("matmul", found.x, self.b.transpose(weight, 1, 0))
            return found.made
        if isinstance(found, Literal | Ramp):
            return self.made(found)
        if isinstance(found, Stored):
            return self.around.constant(found)
        if isinstance(found, Grouped):
            return self.reshape(found.heads, found.shape)
        if isinstance(found, Root):
            return self.op("reciprocal", self.op("rsqrt", found.x))
        if isinstance(found, Rows):
            return self._looked_up(found)
        if isinstance(found, LastToken):
            raise self.unsupported("it takes the last token alone, which is imported for its logits only")
        if isinstance(found, Packed | Minima | GroupSums | MinimaProduct):
            raise self.unsupported("a matrix of integers, or a part of it, is used outside a product")
        return found

    def product(self, x: Found, source: Stored | Packed) -> Product | LastToken:
        """x times a matrix [outputs, inputs]; of the last token alone, that of every token."""
        if not isinstance(x, LastToken):
            return Product(self.value(x), self.matrix(source))
        made = Product(self.value(x.tokens), self.matrix(source))
        return LastToken(made, (*x.shape[:-1], made.matrix.shape[0]))

    def _looked_up(self, found: Rows) -> Value:
        if found.steps or isinstance(found.table, Minima):
            raise self.unsupported("what is made of rows of a table of integers is not read")
        if found.made is None:
            found.made = self.around.looked_up(self, self.matrix(found.table), found.ids)
        return found.made

    def matrix(self, source: Stored | Packed) -> Matrix:
        """All rows of a matrix, which are its outputs."""
        if isinstance(source, Packed) and (reason := source.misfit()):
            raise self.unsupported(reason)
        return whole(source)

    def made(self, known: Known) -> Value:
        """A known tensor in the graph: a constant, or a ramp along one axis."""
        number = the_number(known)
        if number is not None:
            if not isinstance(number, int | float):
                raise self.unsupported(f"the size {number} is used as a number")
            constant = self.b.constant(float(number), known.dtype)
            return constant if not known.shape else self.broadcast(constant, known.shape)
        try:
            ramp = as_ramp(known)
        except NotKnown as error:
            raise self.unsupported(str(error)) from None
        axes = [axis for axis, step in enumerate(ramp.steps) if step]
        if len(axes) != 1 or ramp.steps[axes[0]] != 1:
            raise self.unsupported(f"a ramp with the steps {list(ramp.steps)}")
        line = self._line(ramp, ramp.shape[axes[0]])
        shape = tuple(size if axis == axes[0] else 1 for axis, size in enumerate(ramp.shape))
        return self.cast(self.broadcast(self.reshape(line, shape), ramp.shape), ramp.dtype)

    def _line(self, ramp: Ramp, length: DimLike) -> Value:
        """`start, start + 1, ...`: the positions, or an iota."""
        if ramp.start == self.around.past and length == TOKENS:
            assert self.b.graph is not None
            return self.b.graph.argument("positions")
        line = self.op("iota", length=length, dtype=I32)
        if ramp.start == 0:
            return line
        if not isinstance(ramp.start, int):
            raise self.unsupported(f"a ramp from {ramp.start} on, {length} long, is not that of the positions")
        return self.op("add", line, self.b.constant(ramp.start, I32))

    def known(self, index: int) -> Known | None:
        found = self.raw(index)
        return found if isinstance(found, Literal | Ramp) else None

    def numbers(self, index: int) -> list[DimLike]:
        """A list of sizes; a single number is a list of one."""
        known = self.known(index)
        if known is None:
            raise self.unsupported(f"input {index} must be known, and depends on the tokens")
        try:
            found = as_literal(known).list()
        except NotKnown as error:
            raise self.unsupported(str(error)) from None
        if any(isinstance(number, float) for number in found):
            raise self.unsupported(f"input {index} must hold sizes")
        return [int(n) if isinstance(n, bool) else n for n in found]

    def integers(self, index: int) -> list[int]:
        """A list of plain numbers."""
        found = [number for number in self.numbers(index) if isinstance(number, int)]
        if len(found) < len(self.numbers(index)):
            raise self.unsupported(f"input {index} must be fixed")
        return found

    def attribute(self, name: str, default: int) -> int:
        found = self.node.attributes.get(name, default)
        if not isinstance(found, int):
            raise self.unsupported(f"'{name}' is no integer")
        return found

    def number(self, name: str, default: float) -> float:
        found = self.node.attributes.get(name, default)
        if not isinstance(found, int | float):
            raise self.unsupported(f"'{name}' is no number")
        return float(found)

    def integer_list(self, name: str) -> list[int] | None:
        found = self.node.attributes.get(name)
        if found is None:
            return None
        if not isinstance(found, list):
            raise self.unsupported(f"'{name}' is no list")
        return [int(number) for number in found]

    def axes(self, index: int, rank: int) -> list[int] | None:
        """Axes from input `index` or, in older opsets, from the attribute, counted from the front; None: not given."""
        found = self.integers(index) if self.has(index) else self.integer_list("axes")
        if found is None:
            return None
        if any(not -rank <= axis < rank for axis in found):
            raise self.unsupported(f"axes {found} of a tensor of rank {rank}")
        return sorted(axis % rank for axis in found)

    def axis(self, rank: int, default: int) -> int:
        found = self.attribute("axis", default)
        if not -rank <= found < max(rank, 1):
            raise self.unsupported(f"axis {found} of a tensor of rank {rank}")
        return found % rank if rank else 0

    def expect(self, name: str, *allowed: object) -> None:
        """Refuse an attribute that changes the meaning in a way that is not imported."""
        if name in self.node.attributes and self.node.attributes[name] not in allowed:
            raise self.unsupported(f"{name} = {str(self.node.attributes[name])[:60]}")

    # Ops.

    def operand(self, index: int, dtype: DType) -> Value:
        """An input in `dtype`; one number everywhere is a plain constant."""
        found = self.raw(index)
        if isinstance(found, Literal | Ramp):
            number = the_number(found)
            if isinstance(number, int | float):
                return self.b.constant(float(number), dtype)
        return self.cast(self.value(found), dtype)


Importer = Callable[[Call], Found | Sequence[Found]]
