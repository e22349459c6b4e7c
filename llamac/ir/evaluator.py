"""Evaluates weights, whole or by blocks of rows, pulling only the bytes that the wanted rows need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from llamac.errors import LlamacError

from .definition import Array, Evaluation, OpError
from .dtypes import DTYPES, all_finite, round_to, widen
from .graph import DataSource, FileSource, Op, Value, Weight
from .registry import find_op
from .types import TensorType

RowReader = Callable[[str, int, int], Array]
"""(tensor name, lo, hi) -> uint8 [hi - lo, row_bytes]; a rank-1 tensor is one row."""

Known = dict[tuple[Weight, int, int], Array]
"""Rows that are already evaluated, by weight, first row and end; no op changes its inputs."""


def refuse_file_weights(tensor: str, lo: int, hi: int) -> Array:
    """The row reader of modules that have no checkpoint."""
    raise LlamacError("LLC0405", tensor, "the module has no checkpoint to read this weight from")


class WeightEvaluator:
    """Gives the stored form of weights: float weights in their dtype, integers in their storage dtype."""

    def __init__(self, read_rows: RowReader = refuse_file_weights) -> None:
        self._read_rows = read_rows

    def whole(self, weight: Weight) -> Array:
        """The weight as one array of its type's storage dtype."""
        rows = weight.tensor.shape[0] if weight.tensor.rank > 1 else 1
        assert isinstance(rows, int)
        found = self.rows(weight, 0, rows)
        shape = tuple(d for d in weight.tensor.shape if isinstance(d, int))
        return found.reshape(shape)

    def rows(self, weight: Weight, lo: int, hi: int) -> Array:
        """Rows [lo, hi) of a weight of rank 2 or more; for rank 1 the whole of it."""
        return self._rows(weight, lo, hi, {})

    def _rows(self, weight: Weight, lo: int, hi: int, known: Known) -> Array:
        """As `rows`; what several ops use is read or computed once and kept in `known`."""
        key = (weight, lo, hi)
        if key in known:
            return known[key]
        found = self._compute(weight, lo, hi, known)
        if _may_overflow(weight) and not all_finite(found, weight.tensor.dtype):
            reason = f"holds values that are not finite, or too large for {weight.tensor.dtype}"
            raise LlamacError("LLC0219", weight.name, reason, "take an undamaged checkpoint, or another --quantize")
        if len(weight.users) > 1:
            known[key] = found
        return found

    def _compute(self, weight: Weight, lo: int, hi: int, known: Known) -> Array:
        if isinstance(weight.source, FileSource):
            return self._from_file(weight, weight.source, lo, hi)
        if isinstance(weight.source, DataSource):
            values = np.frombuffer(weight.source.data, weight.tensor.dtype.storage)
            shape = tuple(d for d in weight.tensor.shape if isinstance(d, int))
            return values.reshape(shape)[lo:hi] if len(shape) > 1 else values
        assert weight.producer is not None
        return self._from_op(weight.producer, weight.tensor, lo, hi, known)

    def _from_file(self, weight: Weight, source: FileSource, lo: int, hi: int) -> Array:
        t = weight.tensor
        if t.rank == 1:
            lo, hi = 0, 1
        raw = self._read_rows(source.tensor, lo, hi)
        values = raw if source.encoding not in DTYPES else np.ascontiguousarray(raw).view(t.dtype.storage)
        return values.reshape(-1) if t.rank == 1 else values

    def _from_op(self, op: Op, type: TensorType, lo: int, hi: int, known: Known) -> Array:
        definition = find_op(op.opcode)
        rule = definition.rows
        assert rule is not None
        types = [v.tensor for v in op.operands]
        first, last = lo, hi
        if definition.row_block is not None:
            block, total = definition.row_block(op.attributes), type.shape[0]
            assert isinstance(total, int)
            first, last = lo // block * block, min(-(-hi // block) * block, total)
        needed = rule(op.attributes, types, first, last) if type.rank > 1 else [None] * len(types)
        parts = list(zip(op.operands, needed, strict=True))
        if op.opcode == "concat":
            # A block of a joined matrix need not reach every part, and not every op has a meaning for no rows.
            parts = [(v, part) for v, part in parts if part is None or part[0] < part[1]]
        inputs = [self._operand(v, part, known) for v, part in parts]
        try:
            result = evaluate_op(op, inputs, type)
        except OpError as error:
            hint = "take the config.json that belongs to these files"
            raise LlamacError("LLC0224", op.result.name, str(error), hint) from None
        if any(part is None for part in needed) and type.rank > 1:
            return result[lo:hi]
        return result if definition.row_block is None else result[lo - first : hi - first]

    def _operand(self, value: Value, part: tuple[int, int] | None, known: Known) -> Array:
        assert isinstance(value, Weight)
        return self.whole(value) if part is None else self._rows(value, *part, known)


def _may_overflow(weight: Weight) -> bool:
    """Floats straight from the checkpoint, and casts: everything else is finite when its inputs are."""
    if not weight.tensor.dtype.is_float:
        return False
    if isinstance(weight.source, FileSource):
        return True
    return weight.producer is not None and weight.producer.opcode in _ROUNDING


_ROUNDING = ("block_scales", "block_mins", "cast", "zero_minimum", "scale_columns")
"""Ops whose result may be infinite though their operands are not."""


def evaluate_op(op: Op, inputs: list[Array], type: TensorType) -> Array:
    """One weight-defining op on stored arrays, giving the stored form of its result."""
    run = partial(Evaluation, inputs, op.attributes, [type], {}, False)
    (found,) = find_op(op.opcode).evaluate(run())
    result = np.asarray(found)
    if type.dtype.is_float and result.dtype != type.dtype.storage:
        return round_to(widen(result), type.dtype).astype(type.dtype.storage)
    return result
