"""Runs a planned module inside one arena, so that buffers which overlap while both are live corrupt the result.

Every value that `plan-memory` placed is written to and read from its planned bytes, and from nowhere else. The arena
has one f64 cell for each byte of the plan: an element of four bytes lies in the first of its four cells, the other
three hold NaN, so values of different widths that overlap spoil one another as they would in memory. Before an op runs,
the memory of its results is spoiled too: a kernel may write before it has read everything. The one operand that an op
takes over in place is excepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llamac.errors import LlamacError
from llamac.ir.definition import PLACEMENT, Array, Evaluation
from llamac.ir.dims import Dim
from llamac.ir.evaluator import RowReader, refuse_file_weights
from llamac.ir.graph import Graph, Module, Op, Value, Weight
from llamac.ir.interpreter import Interpreter
from llamac.ir.registry import find_op
from llamac.ir.types import CacheType, TensorType

_IN_PLACE = {
    "linear_dense": 2,
    "linear_biased": 3,
    "linear_grouped": 4,
    "rope_append": 1,
    "append": 1,
    "norm_heads": 0,
    "rope_pairs": 0,
    "take_rows": 0,
    "gelu": 0,
    "add_places": 0,
    "temper_heads": 0,
    "scatter_routed": 2,
    "gated_add": 1,
    "merge_rows": 0,
}
"""Opcode -> the operand that its result may overwrite: read at each element before that element is written."""


@dataclass(frozen=True)
class _Place:
    """Rows of elements of `item` bytes from byte `offset` on, `stride` elements from one row to the next."""

    offset: int
    stride: int
    item: int


@dataclass
class _Frame:
    """One run of a graph: the values the caller owns, and where the placed ones lie."""

    graph: Graph
    symbols: Mapping[str, int]
    values: dict[Value, Any] = field(default_factory=dict)
    places: dict[Value, _Place] = field(default_factory=dict)


def is_planned(module: Module) -> bool:
    """Whether every op says where its results lie."""
    return all(PLACEMENT in op.attributes for _, op in module.ops())


class ArenaInterpreter(Interpreter):
    """The interpreter in exact mode, with intermediate values in the arena that `plan-memory` laid out."""

    def __init__(self, module: Module, read_rows: RowReader = refuse_file_weights) -> None:
        super().__init__(module, read_rows, exact=True)
        self._arena = np.full(0, np.nan)

    def _run(self, graph: Graph, inputs: list[Any], symbols: Mapping[str, int]) -> list[Any]:
        bound = dict(symbols)
        for argument, given in zip(graph.arguments, inputs, strict=True):
            shape = argument.type.shape if isinstance(argument.type, TensorType) else ()
            for dim, length in zip(shape, np.shape(given), strict=False):
                if isinstance(dim, Dim) and dim.lone_symbol is not None:
                    bound.setdefault(dim.lone_symbol, length)
        frame = _Frame(graph, bound)
        for argument, given in zip(graph.arguments, inputs, strict=True):
            frame.values[argument] = self._input(argument, given, bound, graph)
        self._execute(frame)
        return [self._read(v, frame) for v in graph.outputs]

    def _execute(self, frame: _Frame) -> None:
        strips = _strips(frame.graph)
        for op in frame.graph.ops:
            if op.opcode == "call":
                self._enter(op, frame)
                continue
            for result, offset in zip(op.results, _offsets(op), strict=True):
                place = _place(result, offset, op, frame, strips)
                if place is not None:
                    frame.places[result] = place
            if op.opcode != "concat":  # the parts of a concat were written in place
                self._compute(op, frame)

    def _compute(self, op: Op, frame: _Frame) -> None:
        taken = self._taken_over(op, frame)
        for result in op.results:
            if result in frame.places:
                self._write(result, np.inf, frame)
        arguments = [taken[v] if v in taken else self._read(v, frame) for v in op.operands]
        types = [r.type for r in op.results]
        run = Evaluation(arguments, op.attributes, types, frame.symbols, True)
        with np.errstate(invalid="ignore"):
            found = find_op(op.opcode).evaluate(run)
        for result, value in zip(op.results, found, strict=True):
            if result in frame.places:
                self._write(result, value, frame)
            else:
                frame.values[result] = value

    def _taken_over(self, op: Op, frame: _Frame) -> dict[Value, Any]:
        """The operand that a result of `op` lies exactly on, when such an op may take it over."""
        index = _IN_PLACE.get(op.opcode, len(op.operands))
        if index >= len(op.operands) or op.operands[index] not in frame.places:
            return {}
        operand = op.operands[index]
        if all(frame.places.get(r) != frame.places[operand] for r in op.results):
            return {}
        return {operand: self._read(operand, frame)}

    def _enter(self, op: Op, frame: _Frame) -> None:
        """Run the called graph in this arena; the first operand is updated where it lies."""
        callee = self.module.graphs[str(op.attributes["callee"])]
        layer = op.attributes["layer"]
        assert isinstance(layer, int)
        inner = _Frame(callee, {**frame.symbols, "layer": layer})
        for argument, operand in zip(callee.arguments, op.operands, strict=True):
            if operand in frame.places:
                inner.places[argument] = frame.places[operand]
            else:
                inner.values[argument] = self._read(operand, frame)
        self._execute(inner)
        for index, result in enumerate(op.results):
            if op.operands[index] in frame.places:
                frame.places[result] = frame.places[op.operands[index]]
            else:
                frame.values[result] = self._read(callee.outputs[index], inner)

    # Memory.

    def _cells(self, value: Value, frame: _Frame) -> Array:
        """The cells of `value`, [rows, columns, bytes of an element]."""
        place = frame.places[value]
        rows, columns = _matrix(value, frame.symbols)
        end = place.offset + max(rows, 1) * place.stride * place.item
        if end > len(self._arena):
            self._arena = np.concatenate([self._arena, np.full(end - len(self._arena), np.nan)])
        steps = tuple(8 * n for n in (place.stride * place.item, place.item, 1))
        shape = (rows, columns, place.item)
        return np.lib.stride_tricks.as_strided(self._arena[place.offset :], shape, steps)

    def _read(self, value: Value, frame: _Frame) -> Any:
        if isinstance(value, Weight):
            return self._value(value, {})
        if value not in frame.places:
            return frame.values[value]
        cells = self._cells(value, frame)
        found = cells[:, :, 0].copy()
        found[~np.isnan(cells[:, :, 1:]).all(axis=2)] = np.nan  # another element begins inside this one
        return found.reshape(value.tensor.concrete_shape(frame.symbols))

    def _write(self, value: Value, found: Any, frame: _Frame) -> None:
        cells = self._cells(value, frame)
        cells[:, :, 1:] = np.nan
        cells[:, :, 0] = found if np.ndim(found) == 0 else np.reshape(found, cells.shape[:2])


def _strips(graph: Graph) -> dict[Value, tuple[int, int]]:
    """Part of a concat -> the first of its columns in the joined value, and the width of that."""
    found = {}
    for op in graph.ops:
        if op.opcode == "concat":
            column = 0
            for part in op.operands:
                found[part] = (column, _width(op.result))
                column += _width(part)
    return found


def _place(result: Value, offset: int, op: Op, frame: _Frame, strips: Mapping[Value, tuple[int, int]]) -> _Place | None:
    """Where a result lies; None for what the caller owns: caches, and outputs of the step."""
    if isinstance(result.type, CacheType):
        return None
    if offset < 0:
        index = -1 - offset
        return frame.places[frame.graph.arguments[index]] if index < len(frame.graph.arguments) else None
    item = result.tensor.dtype.bits // 8
    if op.opcode in ("rope_append", "append"):
        # q is rotated where it lies, in the rows of qkv.
        return _Place(offset, _width(op.operands[1]), item)
    column, stride = strips.get(result, (0, _width(result)))
    return _Place(offset + column * item, stride, item)


def _offsets(op: Op) -> tuple[int, ...]:
    found = op.attributes.get(PLACEMENT)
    if not isinstance(found, tuple) or len(found) != len(op.results):
        raise LlamacError("LLC0505", op.location, f"{op.opcode} has no place in memory", "run plan-memory first")
    return tuple(int(str(v)) for v in found)


def _width(value: Value) -> int:
    """Elements of a row; those of a vector are its rows."""
    width = value.tensor.shape[-1] if value.tensor.rank > 1 else 1
    assert isinstance(width, int)
    return width


def _matrix(value: Value, symbols: Mapping[str, int]) -> tuple[int, int]:
    rows, *rest = value.tensor.concrete_shape(symbols)
    return rows, int(np.prod(rest, dtype=np.int64))
