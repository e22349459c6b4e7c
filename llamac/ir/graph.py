"""The graph itself: modules hold weights and graphs; graphs are straight-line SSA lists of ops over values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .dims import Dim
from .dtypes import DType
from .types import CacheType, TensorType, Type

AttributeItem = int | float | str | Dim
Attribute = bool | int | float | str | Dim | DType | tuple[AttributeItem, ...]

STEP_TOP = "step_top"
"""The step whose head also ranks the logits: what `fuse-head` adds."""

NAME = re.compile(r"[\w.\-]+")
"""What the text form can hold as a name of a weight, a graph or an argument."""


class Value:
    """Something an op can use: a graph argument, an op's result, or (as `Weight`) a parameter of the model."""

    def __init__(self, name: str, type: Type, producer: Op | None = None) -> None:
        self.name = name
        self.type = type
        self.producer = producer
        self.users: dict[Op, int] = {}

    @property
    def tensor(self) -> TensorType:
        """The type, known to be a tensor (TypeError for a cache)."""
        if not isinstance(self.type, TensorType):
            raise TypeError(f"%{self.name} is a {self.type}, not a tensor")
        return self.type

    @property
    def cache(self) -> CacheType:
        """The type, known to be a key/value cache (TypeError for a tensor)."""
        if not isinstance(self.type, CacheType):
            raise TypeError(f"%{self.name} is a {self.type}, not a kv_cache")
        return self.type

    @property
    def reference(self) -> str:
        return f"%{self.name}"

    def __repr__(self) -> str:
        return f"{self.reference}: {self.type}"


@dataclass(frozen=True)
class FileSource:
    """A weight stored in the checkpoint: the model-level tensor name and how its bytes encode values."""

    tensor: str
    encoding: str


@dataclass(frozen=True)
class DataSource:
    """A small weight written out in the module itself, as little-endian bytes of its dtype."""

    data: bytes


WeightSource = FileSource | DataSource


class Weight(Value):
    """A parameter: either it has a `source`, or `producer` is an op over other weights that defines it."""

    def __init__(self, name: str, type: TensorType, source: WeightSource | None = None, producer: Op | None = None):
        super().__init__(name, type, producer)
        self.source = source

    @property
    def reference(self) -> str:
        return f"@{self.name}"


class Op:
    """One operation: `%results = opcode %operands {attributes} : types`. Operands keep use counts up to date."""

    def __init__(
        self,
        opcode: str,
        operands: Iterable[Value],
        attributes: Mapping[str, Attribute],
        result_types: Iterable[Type] = (),
        location: str = "",
    ) -> None:
        self.opcode = opcode
        self._operands: list[Value] = []
        self.attributes: dict[str, Attribute] = dict(attributes)
        self.location = location
        self.results: list[Value] = [Value("", t, self) for t in result_types]
        for value in operands:
            self._operands.append(value)
            value.users[self] = value.users.get(self, 0) + 1

    @property
    def operands(self) -> tuple[Value, ...]:
        return tuple(self._operands)

    @property
    def result(self) -> Value:
        """The only result (ValueError when there are several)."""
        (value,) = self.results
        return value

    def set_operand(self, index: int, value: Value) -> None:
        """Use `value` as operand `index` from now on."""
        _drop_use(self._operands[index], self)
        self._operands[index] = value
        value.users[self] = value.users.get(self, 0) + 1

    def drop_operands(self) -> None:
        """Forget every operand: the op is about to disappear."""
        for value in self._operands:
            _drop_use(value, self)
        self._operands.clear()

    def __repr__(self) -> str:
        return f"{', '.join(r.reference for r in self.results)} = {self.opcode}"


def _drop_use(value: Value, op: Op) -> None:
    remaining = value.users.get(op, 0) - 1
    if remaining > 0:
        value.users[op] = remaining
    else:
        value.users.pop(op, None)


class Graph:
    """One function of the module: arguments, ops in order, and the values it returns."""

    def __init__(self, name: str, arguments: Iterable[tuple[str, Type]] = ()) -> None:
        self.name = name
        self.arguments: list[Value] = [Value(n, t) for n, t in arguments]
        self.ops: list[Op] = []
        self.outputs: list[Value] = []

    def argument(self, name: str) -> Value:
        """The argument called `name` (KeyError when there is none)."""
        for value in self.arguments:
            if value.name == name:
                return value
        raise KeyError(name)

    def values(self) -> Iterator[Value]:
        yield from self.arguments
        for op in self.ops:
            yield from op.results

    def replace(self, old: Value, new: Value) -> None:
        """Make every user of `old`, and the return list, use `new`."""
        for user in list(old.users):
            for index, operand in enumerate(user.operands):
                if operand is old:
                    user.set_operand(index, new)
        self.outputs = [new if value is old else value for value in self.outputs]

    def rename_values(self) -> None:
        """Number the results %0, %1, ... in order, so that equal graphs print equally."""
        taken = {a.name for a in self.arguments}
        number = 0
        for op in self.ops:
            for result in op.results:
                while str(number) in taken:
                    number += 1
                result.name = str(number)
                number += 1

    def remove_dead_ops(self) -> int:
        """Remove ops none of whose results are used (every op is pure); returns how many went."""
        live = set(self.outputs)
        kept: list[Op] = []
        for op in reversed(self.ops):
            if any(r.users or r in live for r in op.results):
                kept.append(op)
            else:
                op.drop_operands()
        removed = len(self.ops) - len(kept)
        self.ops = kept[::-1]
        return removed


class Module:
    """Weights and graphs of one model at one level of lowering.

    `level` is one of `llamac.ir.levels.LEVELS`. `weights` is in definition order: a weight defined by an op over
    other weights comes after them.
    """

    def __init__(self, name: str, level: str) -> None:
        self.name = name
        self.level = level
        self.weights: dict[str, Weight] = {}
        self.graphs: dict[str, Graph] = {}

    def add_weight(self, weight: Weight) -> Weight:
        """Enter `weight` under its name (KeyError when the name is taken)."""
        if weight.name in self.weights:
            raise KeyError(f"weight @{weight.name} is defined twice")
        self.weights[weight.name] = weight
        return weight

    def add_graph(self, graph: Graph) -> Graph:
        """Enter `graph` under its name (KeyError when the name is taken)."""
        if graph.name in self.graphs:
            raise KeyError(f"graph @{graph.name} is defined twice")
        self.graphs[graph.name] = graph
        return graph

    @property
    def step(self) -> Graph:
        """The main graph, `@step`."""
        return self.graphs["step"]

    @property
    def main(self) -> Graph:
        """The graph that the others are parts of: `@step`, or `@encode_image` of an image encoder."""
        return self.graphs["step" if "step" in self.graphs else "encode_image"]

    @property
    def entries(self) -> list[Graph]:
        """The graphs that are run from outside: the main one, and `@step_top` where there is one."""
        return [self.main, *(graph for name, graph in self.graphs.items() if name == STEP_TOP)]

    def ops(self) -> Iterator[tuple[Graph, Op]]:
        """Every op of every graph, in order."""
        for graph in self.graphs.values():
            for op in graph.ops:
                yield graph, op

    def remove_dead_weights(self) -> int:
        """Remove weights that no op and no other weight uses; returns how many went."""
        removed = 0
        for name in reversed(list(self.weights)):
            weight = self.weights[name]
            if not weight.users and not any(weight in graph.outputs for graph in self.graphs.values()):
                if weight.producer is not None:
                    weight.producer.drop_operands()
                del self.weights[name]
                removed += 1
        return removed
