"""Lowers the kernel-level step of one sequence to a Relax function: one call of a TIR function for each op.

The level is that of the CPU pipeline, with its packed weights: so an artifact's weights serve CPU code and TVM alike,
and the IR that lies in any CPU artifact can be run by TVM on the very weights of the artifact, quantized or not. What
is particular to the runtime goes: calls of layers are written out, places in the arena are forgotten, and a paged cache
becomes explicit past,

    step(weights..., token_ids [T], positions [T], logit_rows [R], pictures..., past.0.k [KV heads, P, head size], ...)
      -> (logits [R, vocab], present.0.k [KV heads, P + T, head size], ...)

in the order of the caches and of their layers. Keys and values have the cache's dtype; those of an int8 cache are f32,
rounded to what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, tirx

from llamac.errors import LlamacError
from llamac.ir.dims import Dim, DimLike, evaluate, symbol
from llamac.ir.dtypes import F32
from llamac.ir.graph import Attribute, Graph, Module, Op, Value, Weight
from llamac.ir.layouts import format_of
from llamac.ir.types import CacheType, TensorType

from .apart import apart
from .kernel import FlatOp, Parameter
from .rules.table import written
from .values import STORED

PAST, VISION = symbol("P"), symbol("V")
"""Past tokens; vision tokens of the cache that cross attention reads."""


@dataclass(frozen=True)
class WeightInput:
    """A weight as one array: its name, the dtype that TVM sees it in, the shape."""

    weight: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class CacheInput:
    """The keys (part 0) or values (part 1) of one layer of one cache."""

    cache: str
    layer: int
    part: int


@dataclass(frozen=True)
class Lowered:
    """A Relax module with the function `name`, whose arguments are `weights`, `inputs` and `past`, in this order."""

    module: Any
    name: str
    weights: tuple[WeightInput, ...]
    inputs: tuple[str, ...]
    past: tuple[CacheInput, ...]
    present: tuple[CacheInput, ...]
    kernels: tuple[str, ...]
    results: int
    """How many results stand before those of the caches."""


def lower(module: Module, on_gpu: bool = False) -> Lowered:
    """The main graph of a kernel-level module as Relax (LLC0942 for an op without a rule)."""
    if module.level != "kernel":
        reason = f"the graph is at the {module.level} level, TVM takes the kernel level"
        raise LlamacError("LLC0942", module.name, reason, "run the CPU pipeline first")
    return _Lowering(module, on_gpu).run()


def held(cache: CacheType, length: DimLike) -> TensorType:
    """Keys, or values, of one layer of a cache."""
    return TensorType((cache.kv_heads, length, cache.head_dim), F32 if cache.scale else cache.dtype)


@dataclass(frozen=True)
class _Cache:
    """A cache by the name of its argument."""

    name: str
    type: CacheType


_Bound = Any
"""What a value of the graph stands for: an expression of Relax, a weight, or a `_Cache`."""

_RUNTIME_ONLY = ("sequence_of_token", "page_tables")
"""Beginnings of the names of arguments that one sequence has no use for."""


class _Lowering:
    def __init__(self, module: Module, on_gpu: bool) -> None:
        self.module, self.on_gpu = module, on_gpu
        self.builder = relax.BlockBuilder()
        self.symbols: dict[str, Any] = {}
        self.functions: dict[str, tuple[Any, tuple[Parameter, ...]]] = {}
        self.kernels: list[str] = []
        self.weights: dict[WeightInput, Any] = {}
        self.past: dict[CacheInput, Any] = {}
        self.states: dict[CacheInput, tuple[Any, TensorType]] = {}
        self.rounded: dict[Any, Any] = {}

    def run(self) -> Lowered:
        graph = self.module.main
        values: dict[Value, _Bound] = {}
        inputs: dict[str, Any] = {}
        for argument in graph.arguments:
            if isinstance(argument.type, CacheType):
                values[argument] = _Cache(argument.name, argument.type)
            elif not argument.name.startswith(_RUNTIME_ONLY):
                values[argument] = inputs[argument.name] = self._variable(argument.name, argument.tensor)
        self._declare_past(graph)
        with self.builder.function(graph.name):
            with self.builder.dataflow():
                found = self._graph(graph, values, None)
                results = [value for value in found if not isinstance(value, _Cache)]
                present = self._present()
                outputs = self.builder.emit_output(relax.Tuple([*results, *(self.states[p][0] for p in present)]))
            past = self.past if graph is self.module.graphs.get("step") else {}  # an encoder writes, and reads nothing
            given = [*self.weights.values(), *inputs.values(), *past.values()]
            self.builder.emit_func_output(outputs, params=given)
        return Lowered(
            self.builder.get(),
            graph.name,
            tuple(self.weights),
            tuple(inputs),
            tuple(past),
            present,
            tuple(self.kernels),
            len(results),
        )

    def _declare_past(self, graph: Graph) -> None:
        """An input for the keys and values of each layer of each cache, in the order of the caches."""
        for argument in graph.arguments:
            if isinstance(argument.type, CacheType):
                for layer in range(argument.type.layers):
                    for part in (0, 1):
                        self._state(CacheInput(argument.name, layer, part), argument.type)

    def _present(self) -> tuple[CacheInput, ...]:
        """What the function has written to caches, in the order of its inputs."""
        return tuple(place for place, past in self.past.items() if self.states[place][0] is not past)

    def _graph(self, graph: Graph, values: dict[Value, _Bound], layer: int | None) -> list[_Bound]:
        """Write out the ops of a graph; its outputs."""
        for op in graph.ops:
            if op.opcode == "call":
                operands = _bound(op, values)
                callee = self.module.graphs[str(op.attributes["callee"])]
                given = dict(zip(callee.arguments, operands, strict=True))
                found = self._graph(callee, given, int(str(op.attributes["layer"])))
            else:
                found = self._parts(op, dict(values), layer)
            values.update(zip(op.results, found, strict=True))
        return [values[v] for v in graph.outputs]

    def _parts(self, op: Op, values: dict[Value, _Bound], layer: int | None) -> list[_Bound]:
        """Emit an op, part by part where it stands for several; what its results stand for."""
        with apart(op) as parts:
            for part in parts:
                found = self._op(part, _bound(part, values), layer)
                values.update(zip(part.results, found, strict=True))
            return found

    def _op(self, op: Op, operands: Sequence[_Bound], layer: int | None) -> list[_Bound]:
        """Emit the call of one op; what its results stand for."""
        types: list[TensorType] = []
        bound: list[_Bound] = []
        attributes: dict[str, Attribute] = dict(op.attributes)
        place = _place(op, layer)
        for value, operand in zip(op.operands, operands, strict=True):
            if isinstance(operand, _Cache):
                attributes |= traits(operand.type)
                for part in (0, 1):
                    expression, type = self._state(CacheInput(operand.name, place, part), operand.type)
                    types.append(type)
                    bound.append(expression)
            else:
                types.append(value.tensor)
                bound.append(operand)
        caches = [operand for operand in operands if isinstance(operand, _Cache)]
        results = [t for r in op.results for t in flat_result(r, types)]
        where = op.location if layer is None else op.location.replace("layers", f"layers.{layer}", 1)
        flat = FlatOp(op.opcode, attributes, tuple(types), tuple(results), where)
        made = self._call(flat, self._prepared(flat, bound))
        found: list[_Bound] = []
        for result in op.results:
            if isinstance(result.type, CacheType):
                for part in (0, 1):
                    self.states[CacheInput(caches[0].name, place, part)] = (made.pop(0), results.pop(0))
                found.append(caches[0])
            else:
                found.append(made.pop(0))
                results.pop(0)
        return found

    def _prepared(self, op: FlatOp, bound: list[_Bound]) -> list[_Bound]:
        """Inputs of weights in pairs are rounded to bf16, once for all that read them."""
        name = op.attributes.get("format")
        if name is None or op.operands[0].dtype is not F32 or not format_of(str(name)).in_pairs:
            return bound
        x = bound[0]
        if x not in self.rounded:
            flat = FlatOp("round_bf16", {}, op.operands[:1], op.operands[:1], op.location)
            (self.rounded[x],) = self._call(flat, [x])
        return [self.rounded[x], *bound[1:]]

    def _call(self, op: FlatOp, bound: Sequence[_Bound]) -> list[Any]:
        function, parameters = self._function(op)
        arguments = [self._argument(bound[p.operand], op.operands[p.operand], p) for p in parameters]
        types = [self._type(t) for t in op.results]
        called = self.builder.emit(relax.call_tir(function, arguments, types if len(types) > 1 else types[0]))
        if len(types) == 1:
            return [called]
        return [self.builder.emit(relax.TupleGetItem(called, n)) for n in range(len(types))]

    def _function(self, op: FlatOp) -> tuple[Any, tuple[Parameter, ...]]:
        """The TIR function of an op; ops of one signature share it."""
        if op.signature not in self.functions:
            kernel = written(op, self.on_gpu)
            name = f"{op.opcode}_{len(self.functions)}"
            variable = self.builder.add_func(kernel.function(name), name)
            self.kernels.append(name)
            self.functions[op.signature] = variable, tuple(kernel.parameters)
        return self.functions[op.signature]

    def _argument(self, bound: _Bound, type: TensorType, parameter: Parameter) -> Any:
        if not isinstance(bound, Weight):
            return bound
        shape = [int(str(dim)) for dim in type.shape]
        shape[-1] = shape[-1] * type.dtype.storage.itemsize // np.dtype(parameter.dtype).itemsize
        given = WeightInput(bound.name, parameter.dtype, tuple(shape))
        if given not in self.weights:
            variable = relax.Var(f"weight{len(self.weights)}", relax.TensorType(given.shape, given.dtype))
            self.weights[given] = variable
        return self.weights[given]

    def _state(self, place: CacheInput, cache: CacheType) -> tuple[Any, TensorType]:
        """The keys or values that a layer has so far; at first those that the function is given."""
        if place not in self.states:
            type = held(cache, VISION if cache.cross else PAST)
            self.past[place] = self._variable(f"past{len(self.past)}", type)
            self.states[place] = self.past[place], type
        return self.states[place]

    def _variable(self, name: str, type: TensorType) -> Any:
        return relax.Var(name, self._type(type))

    def _type(self, type: TensorType) -> Any:
        return relax.TensorType([self._size(dim) for dim in type.shape], STORED[type.dtype.name])

    def _size(self, dim: DimLike) -> Any:
        if not isinstance(dim, Dim):
            return dim
        for name in dim.symbols:
            self.symbols.setdefault(name, tirx.Var(name, "int64"))
        total: Any = 0
        for monomial, count in dim.terms:
            product: Any = count
            for name in monomial:
                product = product * self.symbols[name]
            total = total + product
        return total


def _bound(op: Op, values: Mapping[Value, _Bound]) -> list[_Bound]:
    """What the operands of an op stand for; None for those that one sequence has no use for."""
    return [v if isinstance(v, Weight) else values.get(v) for v in op.operands]


def _place(op: Op, layer: int | None) -> int:
    """The layer of its cache that an op works on; 0 for one that works on none."""
    found = op.attributes.get("layer", 0)
    if isinstance(found, Dim):
        return evaluate(found, {"layer": layer or 0})
    assert isinstance(found, int)
    return found


def traits(cache: CacheType) -> dict[str, Attribute]:
    """What a cache says of the ops on it."""
    found: dict[str, Attribute] = {"stored": cache.dtype.name}
    return found | {"chunk": cache.chunk} if cache.chunk else found


def flat_result(result: Value, operands: Sequence[TensorType]) -> list[TensorType]:
    """The types of a result; of a cache, the past and what the op adds to it."""
    if not isinstance(result.type, CacheType):
        return [result.tensor]
    past, rows = operands[0], operands[2].shape[0]
    length = rows if result.type.cross else past.shape[1] + rows
    return [held(result.type, length)] * 2
