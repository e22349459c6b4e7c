"""Builds graphs op by op, inferring and checking every type as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llamac.errors import LlamacError

from .definition import OpError
from .dims import DimLike
from .dtypes import DType
from .graph import Attribute, Graph, Module, Op, Value, Weight, WeightSource
from .registry import infer_types
from .types import TensorType, Type


def make_op(opcode: str, operands: tuple[Value, ...], attributes: dict[str, Attribute], location: str = "") -> Op:
    """A well-typed op (LLC0402 with the location when it is not)."""
    try:
        types = infer_types(opcode, [v.type for v in operands], attributes)
    except OpError as error:
        raise LlamacError("LLC0402", location or opcode, f"{opcode}: {error}") from None
    return Op(opcode, operands, attributes, types, location)


class Builder:
    """Appends ops to `graph`. `at(...)` sets the model-level location of the ops made inside it."""

    def __init__(self, module: Module, graph: Graph | None = None) -> None:
        self.module = module
        self.graph = graph
        self.location = ""

    @contextmanager
    def at(self, location: str) -> Iterator[None]:
        """Ops made inside carry this location."""
        before, self.location = self.location, location
        try:
            yield
        finally:
            self.location = before

    def op(self, opcode: str, *operands: Value, **attributes: Attribute) -> Value:
        """Append an op with one result and return it."""
        return self.multi(opcode, *operands, **attributes).result

    def multi(self, opcode: str, *operands: Value, **attributes: Attribute) -> Op:
        """Append an op and return it."""
        assert self.graph is not None
        made = make_op(opcode, operands, attributes, self.location)
        self.graph.ops.append(made)
        return made

    def constant(self, value: float, dtype: DType) -> Value:
        return self.op("constant", value=float(value), dtype=dtype)

    def reshape(self, x: Value, *shape: DimLike) -> Value:
        return self.op("reshape", x, shape=tuple(shape))

    def transpose(self, x: Value, *permutation: int) -> Value:
        return self.op("transpose", x, permutation=tuple(permutation))

    def weight(self, name: str, type: TensorType, source: WeightSource) -> Weight:
        """Declare a weight with a source."""
        return self.module.add_weight(Weight(name, type, source))

    def define(self, name: str, opcode: str, *operands: Value, **attributes: Attribute) -> Weight:
        """Declare the weight that `opcode` over other weights defines; the same definition is made once."""
        return define_weight(self.module, name, opcode, *operands, **attributes)


def define_weight(module: Module, name: str, opcode: str, *operands: Value, **attributes: Attribute) -> Weight:
    """Add `@name = opcode operands {attributes}` to the module, or return the weight that already is exactly that."""
    made = make_op(opcode, operands, attributes, name)
    existing = module.weights.get(name)
    if existing is not None:
        before = existing.producer
        if before and (before.opcode, before.operands, before.attributes) == (opcode, operands, made.attributes):
            made.drop_operands()
            return existing
        raise LlamacError("LLC0402", name, f"the weight is already defined otherwise than by {opcode}")
    weight = Weight(name, made.result.tensor, None, made)
    made.results = [weight]
    return module.add_weight(weight)


def new_graph(module: Module, name: str, arguments: list[tuple[str, Type]]) -> Graph:
    """Add an empty graph to the module."""
    return module.add_graph(Graph(name, arguments))
