"""Runs graphs in numpy: the meaning of the IR.

In dtype mode every result is rounded to its dtype, arithmetic is f32. In exact mode everything is f64 and nothing is
rounded between ops, so that rewrites which are equal as mathematics agree to 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llamac.errors import LlamacError, did_you_mean

from .definition import Array, Evaluation
from .dims import Dim
from .dtypes import round_to, widen
from .evaluator import RowReader, WeightEvaluator, refuse_file_weights
from .graph import DataSource, Graph, Module, Op, Value, Weight
from .ops.cache_ops import CacheState
from .registry import find_op
from .types import CacheType, TensorType

Observe = Callable[[Graph, int, Mapping[str, int], list[Any]], Sequence[Any]]
"""(graph, index of the op, values of the symbols, the op's results) -> the results to go on with; after every op."""


class Interpreter:
    """Evaluates the graphs of one module; weights are read once and kept, so it is for small models.

    keep: False reads a weight whenever an op wants it, and holds the values of no two of them. exchange: how this rank
    of a sharded module meets the others (`ranks.Ranks`).
    """

    def __init__(
        self,
        module: Module,
        read_rows: RowReader = refuse_file_weights,
        exact: bool = False,
        observe: Observe | None = None,
        keep: bool = True,
        exchange: Callable[[str, Array], list[Array]] | None = None,
    ) -> None:
        self.module = module
        self.exact = exact
        self._observe = observe
        self._keep = keep
        self._exchange = exchange
        self._evaluator = WeightEvaluator(read_rows)
        self._weights: dict[Weight, Array] = {}

    def run(self, inputs: Mapping[str, Any], graph: str = "step") -> list[Any]:
        """The outputs of `graph` for named inputs; the symbols of its argument types are bound from their shapes."""
        if graph not in self.module.graphs:
            hint = did_you_mean(graph, self.module.graphs)
            raise LlamacError("LLC0406", f"@{graph}", f"the module has no such graph{hint}")
        target = self.module.graphs[graph]
        names = [a.name for a in target.arguments]
        if missing := [name for name in names if name not in inputs]:
            raise LlamacError("LLC0406", f"@{graph}", f"inputs are missing: {', '.join(missing)}")
        if unknown := [name for name in inputs if name not in names]:
            hint = did_you_mean(unknown[0], names)
            raise LlamacError("LLC0406", f"@{graph}", f"there is no input '{unknown[0]}'{hint}")
        return self._run(target, [inputs[a.name] for a in target.arguments], {})

    def override(self, name: str, value: Array) -> None:
        """Use `value`, in the weight's shape, instead of what weight `name` is defined as; in exact mode f64 stays."""
        weight = self.module.weights[name]
        is_exact = self.exact and value.dtype == np.float64
        self._weights[weight] = value if is_exact else self._widened(value, weight.tensor)

    def _run(self, graph: Graph, inputs: list[Any], symbols: Mapping[str, int]) -> list[Any]:
        bound = dict(symbols)
        for argument, given in zip(graph.arguments, inputs, strict=True):
            _bind(argument, given, bound)
        values: dict[Value, Any] = {
            argument: self._input(argument, given, bound, graph)
            for argument, given in zip(graph.arguments, inputs, strict=True)
        }
        last_use = {v: i for i, op in enumerate(graph.ops) for v in op.operands}
        kept = set(graph.outputs)
        constant: set[Value] = set()
        for index, op in enumerate(graph.ops):
            arguments = [self._value(v, values) for v in op.operands]
            types = [r.type for r in op.results]
            # Tables made of constants alone are data of the model: they have their dtype's values in both modes.
            fixed = _is_constant(op, constant)
            if fixed:
                constant.update(op.results)
                arguments = [_narrow(a) for a in arguments]
            exact = self.exact and (not fixed or op.opcode == "constant")
            run = Evaluation(arguments, op.attributes, types, bound, exact, self._call, self._exchange)
            results = self.evaluate(op, run)
            if self._observe is not None:
                results = self._observe(graph, index, bound, list(results))
            values.update(zip(op.results, results, strict=True))
            for v in op.operands:
                if last_use[v] == index and v not in kept:
                    values.pop(v, None)
        return [self._value(v, values) for v in graph.outputs]

    def evaluate(self, op: Op, run: Evaluation) -> Sequence[Any]:
        """The results of an op: what its definition says. Other implementations are compared by overriding this."""
        return find_op(op.opcode).evaluate(run)

    def _call(self, name: str, inputs: list[Any], symbols: Mapping[str, int]) -> list[Any]:
        return self._run(self.module.graphs[name], inputs, symbols)

    def _value(self, value: Value, values: Mapping[Value, Any]) -> Any:
        if isinstance(value, Weight):
            if value in self._weights:
                return self._weights[value]
            found = self._widened(self._evaluator.whole(value), value.tensor)
            if self._keep:
                self._weights[value] = found
            return found
        return values[value]

    def _widened(self, array: Array, type: TensorType) -> Array:
        if not type.dtype.is_float:
            return array
        return widen(array).astype(np.float64 if self.exact else np.float32)

    def _input(self, argument: Value, given: Any, symbols: Mapping[str, int], graph: Graph) -> Any:
        where, type = f"@{graph.name}", argument.type
        if isinstance(type, CacheType) or isinstance(given, CacheState):
            if not isinstance(given, CacheState) or given.type != type:
                raise LlamacError("LLC0406", where, f"{argument!r} was given {getattr(given, 'type', 'no cache')}")
            return given
        array = np.asarray(given)
        try:
            shape = type.concrete_shape(symbols)
        except KeyError as error:
            raise LlamacError("LLC0406", where, f"{argument!r}: no argument gives {error.args[0]} a value") from None
        if shape != array.shape:
            values = ", ".join(f"{name} = {value}" for name, value in sorted(symbols.items()))
            reason = f"{argument!r} was given shape {array.shape}{f' with {values}' if values else ''}"
            raise LlamacError("LLC0406", where, reason)
        if not type.dtype.is_float:
            return array.astype(type.dtype.storage)
        return array.astype(np.float64) if self.exact else round_to(array.astype(np.float32), type.dtype)


def _bind(argument: Value, given: Any, symbols: dict[str, int]) -> None:
    """Give the symbols that are whole dimensions of `argument` the lengths of `given`; the first one to come counts."""
    if isinstance(argument.type, TensorType):
        for dim, length in zip(argument.type.shape, np.shape(given), strict=False):
            name = dim.lone_symbol if isinstance(dim, Dim) else None
            if name is not None:
                symbols.setdefault(name, length)


def _is_constant(op: Op, constant: set[Value]) -> bool:
    fixed = all(isinstance(r.type, TensorType) and all(isinstance(d, int) for d in r.type.shape) for r in op.results)
    return fixed and all(
        v in constant or (isinstance(v, Weight) and isinstance(v.source, DataSource)) for v in op.operands
    )


def _narrow(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float64 else array
