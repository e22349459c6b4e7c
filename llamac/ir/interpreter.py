"""Runs graphs in numpy: the meaning of the IR.

In dtype mode every result is rounded to its dtype, arithmetic is f32. In exact mode everything is f64 and nothing is
rounded between ops, so that rewrites which are equal as mathematics agree to 1e-10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llamac.errors import LlamacError

from .definition import Array, Evaluation
from .dims import Dim
from .dtypes import widen
from .evaluator import RowReader, WeightEvaluator, refuse_file_weights
from .graph import Graph, Module, Value, Weight
from .ops.cache_ops import CacheState
from .registry import find_op
from .types import TensorType


class Interpreter:
    """Evaluates the graphs of one module; weights are read once and kept, so it is for small models."""

    def __init__(self, module: Module, read_rows: RowReader = refuse_file_weights, exact: bool = False) -> None:
        self.module = module
        self.exact = exact
        self._evaluator = WeightEvaluator(read_rows)
        self._weights: dict[Weight, Array] = {}

    def run(self, inputs: Mapping[str, Any], graph: str = "step") -> list[Any]:
        """The outputs of `graph` for named inputs; the symbols of its argument types are bound from their shapes."""
        target = self.module.graphs[graph]
        missing = [a.name for a in target.arguments if a.name not in inputs]
        if missing:
            raise LlamacError("LLC0406", f"@{graph}", f"inputs are missing: {', '.join(missing)}")
        return self._run(target, [inputs[a.name] for a in target.arguments], {})

    def _run(self, graph: Graph, inputs: list[Any], symbols: Mapping[str, int]) -> list[Any]:
        bound = dict(symbols)
        values: dict[Value, Any] = {}
        for argument, given in zip(graph.arguments, inputs, strict=True):
            values[argument] = self._input(argument, given, bound, graph)
        last_use = {v: i for i, op in enumerate(graph.ops) for v in op.operands}
        kept = set(graph.outputs)
        for index, op in enumerate(graph.ops):
            arguments = [self._value(v, values) for v in op.operands]
            types = [r.type for r in op.results]
            run = Evaluation(arguments, op.attributes, types, bound, self.exact, self._call)
            for result, found in zip(op.results, find_op(op.opcode).evaluate(run), strict=True):
                values[result] = found
            for v in op.operands:
                if last_use[v] == index and v not in kept:
                    values.pop(v, None)
        return [self._value(v, values) for v in graph.outputs]

    def _call(self, name: str, inputs: list[Any], symbols: Mapping[str, int]) -> list[Any]:
        return self._run(self.module.graphs[name], inputs, symbols)

    def _value(self, value: Value, values: Mapping[Value, Any]) -> Any:
        if isinstance(value, Weight):
            if value not in self._weights:
                self._weights[value] = self._widened(self._evaluator.whole(value), value.tensor)
            return self._weights[value]
        return values[value]

    def _widened(self, array: Array, type: TensorType) -> Array:
        if not type.dtype.is_float:
            return array
        return widen(array).astype(np.float64 if self.exact else np.float32)

    def _input(self, argument: Value, given: Any, symbols: dict[str, int], graph: Graph) -> Any:
        if isinstance(given, CacheState):
            return given
        type = argument.tensor
        array = np.asarray(given)
        if array.ndim != type.rank:
            raise LlamacError("LLC0406", f"@{graph.name}", f"{argument!r} was given shape {array.shape}")
        for dim, length in zip(type.shape, array.shape, strict=True):
            if isinstance(dim, Dim) and len(dim.symbols) == 1 and str(dim) not in symbols and str(dim) in dim.symbols:
                symbols[str(dim)] = length
        if type.concrete_shape(symbols) != array.shape:
            raise LlamacError("LLC0406", f"@{graph.name}", f"{argument!r} was given shape {array.shape}")
        kind = (np.float64 if self.exact else np.float32) if type.dtype.is_float else type.dtype.storage
        return array.astype(kind)
