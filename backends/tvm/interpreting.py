"""An interpreter whose ops are computed by TVM: the same walk over the graph, another implementation of every op.

Each op runs as a function of its own, on the values that the interpreter hands it, so two implementations can be
compared op by op. Caches are those of the interpreter; what an op sees of them are the keys and values of one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm

from llamac.ir.definition import Array, Evaluation
from llamac.ir.dims import evaluate, symbol
from llamac.ir.dtypes import BF16, F32, DType, widen
from llamac.ir.graph import Attribute, Op, Value
from llamac.ir.interpreter import Interpreter
from llamac.ir.layouts import format_of
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.types import TensorType

from .apart import apart
from .build import refusal, this_machine
from .kernel import FlatOp, Parameter
from .lowering import flat_result, held, traits
from .rules.table import written
from .values import STORED


class TvmInterpreter(Interpreter):
    """Evaluates the kernel-level step of one sequence, all its tokens in one step, op by op with TVM."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._functions: dict[str, tuple[Any, tuple[Parameter, ...]]] = {}

    def evaluate(self, op: Op, run: Evaluation) -> Sequence[Any]:
        if op.opcode == "call":
            return super().evaluate(op, run)
        values: dict[Value, Any] = dict(zip(op.operands, run.inputs, strict=True))
        with apart(op) as parts:
            for part in parts:
                types = [result.type for result in part.results]
                given = replace(run, inputs=[values[v] for v in part.operands], attributes=part.attributes)
                found = self._evaluated(part, replace(given, result_types=types))
                values.update(zip(part.results, found, strict=True))
            return found

    def _evaluated(self, op: Op, run: Evaluation) -> Sequence[Any]:
        tokens = len(_positions(op, run))
        given = [_flat_operand(value, array, op, run) for value, array in zip(op.operands, run.inputs, strict=True)]
        types = [t for part, _ in given for t in part]
        arrays = [array for _, part in given for array in part]
        attributes: dict[str, Attribute] = dict(op.attributes)
        for value in op.operands:
            if not isinstance(value.type, TensorType):
                attributes |= traits(value.type)
        results = [t for r in op.results for t in flat_result(r, types)]
        flat = FlatOp(op.opcode, attributes, tuple(types), tuple(results), op.location)
        symbols = {**run.symbols, "P": 0}
        found = self._call_function(flat, self._prepared(flat, arrays, symbols), symbols)
        return _unflattened(op, run, found, tokens)

    def _prepared(self, op: FlatOp, arrays: list[Array], symbols: Mapping[str, int]) -> list[Array]:
        """Inputs of weights in pairs are rounded to bf16 before."""
        name = op.attributes.get("format")
        if name is None or op.operands[0].dtype is not F32 or not format_of(str(name)).in_pairs:
            return arrays
        flat = FlatOp("round_bf16", {}, op.operands[:1], op.operands[:1], op.location)
        return [self._call_function(flat, arrays[:1], symbols)[0], *arrays[1:]]

    def _call_function(self, op: FlatOp, arrays: Sequence[Array], symbols: Mapping[str, int]) -> list[Array]:
        """The results of one op as they are stored."""
        function, parameters = self._function(op)
        given = [_seen_as(arrays[p.operand], op.operands[p.operand].dtype, p.dtype) for p in parameters]
        made = []
        for result in op.results:
            shape = tuple(evaluate(dim, symbols) for dim in result.shape)
            made.append(tvm.runtime.empty(shape, STORED[result.dtype.name]))
        function(*map(tvm.runtime.tensor, given), *made)
        return [_read_as(tensor.numpy(), t.dtype) for tensor, t in zip(made, op.results, strict=True)]

    def _function(self, op: FlatOp) -> tuple[Any, tuple[Parameter, ...]]:
        if op.signature not in self._functions:
            kernel = written(op, on_gpu=False)
            module = tvm.IRModule({op.opcode: kernel.function(op.opcode)})
            try:
                built = tvm.tirx.build(module, target=this_machine())
            except Exception as error:  # TVM raises whatever its C++ side threw
                raise refusal(op.location or op.opcode, error) from None
            self._functions[op.signature] = built[op.opcode], tuple(kernel.parameters)
        return self._functions[op.signature]


_POSITIONS = {"rope_append": 4, "append": 2, "attend": 2}
"""Op on a cache -> which operand its positions are."""


def _positions(op: Op, run: Evaluation) -> Array:
    """The positions that an op on a cache takes, which count from 0; empty for other ops."""
    place = _POSITIONS.get(op.opcode)
    return np.zeros(0, np.int32) if place is None else np.asarray(run.inputs[place])


def _flat_operand(value: Value, given: Any, op: Op, run: Evaluation) -> tuple[list[TensorType], list[Array]]:
    """Types and arrays of an operand; of a cache, the keys and values that the op reads."""
    if not isinstance(given, CacheState):
        return [value.tensor], [given]
    kind = given.type
    appends = any(not isinstance(r.type, TensorType) for r in op.results)
    pages = run.inputs[-1][0]
    layer = run.integer("layer")
    length = 0 if appends else _seen(op, run)
    arrays = []
    for store in (given.keys, given.values):
        joined = store[pages, layer].transpose(1, 0, 2, 3).reshape(kind.kv_heads, -1, kind.head_dim)
        arrays.append(np.ascontiguousarray(joined[:, :length]))
    return [held(kind, symbol("P" if appends else "S"))] * 2, arrays


def _seen(op: Op, run: Evaluation) -> int:
    """How many keys of its sequence an op may read."""
    if op.opcode == "attend_range":
        return int(np.max(run.inputs[3], initial=0))
    return int(np.max(_positions(op, run), initial=-1)) + 1


def _unflattened(op: Op, run: Evaluation, found: list[Array], tokens: int) -> list[Any]:
    """The results as the interpreter wants them: keys and values written to its cache."""
    made: list[Any] = []
    for result in op.results:
        if isinstance(result.type, TensorType):
            made.append(found.pop(0))
            continue
        state = next(given for given in run.inputs if isinstance(given, CacheState))
        kind, pages, layer = state.type, run.inputs[-1][0], run.integer("layer")
        new = CacheState(kind, state.keys.copy(), state.values.copy())
        at = np.arange(tokens)
        for store in (new.keys, new.values):
            store[pages[at // kind.page], layer, :, at % kind.page] = found.pop(0).transpose(1, 0, 2)
        made.append(new)
    return made


def _seen_as(array: Array, dtype: DType, wanted: str) -> Array:
    """A value of the interpreter as the bits that TVM takes: floats narrowed, packed bytes as arrays of words."""
    stored = np.ascontiguousarray(array, dtype.storage) if dtype.is_float else np.ascontiguousarray(array)
    return stored.view(wanted) if stored.dtype != np.dtype(wanted) else stored


def _read_as(array: Array, dtype: DType) -> Array:
    """What TVM gave as the interpreter holds it: floats as f32."""
    if not dtype.is_float:
        return array
    return widen(array.view(dtype.storage) if dtype is BF16 else array)
