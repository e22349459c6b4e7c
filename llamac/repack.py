"""Weights of one layout evaluated from those of another: permutations of stored quants, never arithmetic on values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llamac.analysis.weight_plan import PlacedWeight, row_layout
from llamac.errors import LlamacError
from llamac.ir.definition import Array
from llamac.ir.evaluator import Known, WeightEvaluator
from llamac.ir.graph import DataSource, FileSource, Value, Weight
from llamac.ir.layouts import PANEL, format_of
from llamac.ir.stored_parts import panel_parts, row_parts

COMPILE_AGAIN = "compile the checkpoint again with this target"


@dataclass(frozen=True)
class Held:
    """What a stored weight holds: rows from `start` of a packed matrix's part number `part`, or of it all (None)."""

    item: PlacedWeight
    part: int | None
    start: int


class StoredWeights(WeightEvaluator):
    """Evaluates weights from the parts that another layout holds, instead of a checkpoint.

    data: the member with those weights, uint8. Two weights are the same part when they are defined alike.
    """

    def __init__(self, placed: Iterable[PlacedWeight], data: np.ndarray) -> None:
        super().__init__()
        self._data = data
        self._keys: dict[Value, int] = {}
        self._numbers: dict[object, int] = {}
        self._held: dict[int, Held] = {}
        for item in placed:
            producer = item.weight.producer
            if producer is not None and producer.opcode in ("pack", "pack_rows"):
                for number, part in enumerate(producer.operands):
                    self._hold(part, Held(item, number, 0))
            else:
                self._hold(item.weight, Held(item, None, 0))

    def _hold(self, value: Value, held: Held) -> None:
        self._held.setdefault(self._key(value), held)
        producer = value.producer
        if producer is not None and producer.opcode == "concat" and producer.attributes.get("axis") == 0:
            start = held.start
            for part in producer.operands:
                self._hold(part, Held(held.item, held.part, start))
                rows = part.tensor.shape[0]
                assert isinstance(rows, int)
                start += rows

    def _key(self, value: Value) -> int:
        """Equal for weights that are defined alike, down to the checkpoint."""
        if value not in self._keys:
            source = value.source if isinstance(value, Weight) else None
            producer = value.producer
            if source is not None:
                found: object = (source, str(value.type))
            else:
                assert producer is not None
                attributes = tuple(sorted((name, str(held)) for name, held in producer.attributes.items()))
                # A number stands for the structure below, so that keys of deep definitions stay small.
                found = (producer.opcode, attributes, tuple(self._key(v) for v in producer.operands), str(value.type))
            self._keys[value] = self._numbers.setdefault(found, len(self._numbers))
        return self._keys[value]

    def check(self, weight: Weight) -> None:
        """Refuse a weight that is not made of stored parts alone (LLC0615)."""
        if self._key(weight) in self._held or isinstance(weight.source, DataSource):
            return
        if isinstance(weight.source, FileSource) or weight.producer is None:
            reason = "the stored layout holds it only in another form, from which it cannot be had exactly"
            raise LlamacError("LLC0615", weight.name, reason, COMPILE_AGAIN)
        for operand in weight.producer.operands:
            assert isinstance(operand, Weight)
            self.check(operand)

    def _compute(self, weight: Weight, lo: int, hi: int, known: Known) -> Array:
        held = self._held.get(self._key(weight))
        if held is None:
            return super()._compute(weight, lo, hi, known)
        if held.part is None:
            return self._plain(weight, held, lo, hi)
        parts = self._parts(held.item, held.start + lo, held.start + hi)
        return parts[held.part]

    def _plain(self, weight: Weight, held: Held, lo: int, hi: int) -> Array:
        item = held.item
        shape = tuple(d for d in item.weight.tensor.shape if isinstance(d, int))
        stored = self._data[item.offset : item.offset + item.nbytes].view(weight.tensor.dtype.storage)
        if weight.tensor.rank < 2:
            return stored[held.start : held.start + int(np.prod(weight.tensor.concrete_shape({})))]
        return stored.reshape(shape)[held.start + lo : held.start + hi]

    def _parts(self, item: PlacedWeight, lo: int, hi: int) -> list[Array]:
        """The parts of rows [lo, hi) of a packed matrix."""
        layout = row_layout(item.weight)
        if layout is not None:
            places = [(item.offset + at + lo * n, (hi - lo) * n, n) for at, n in layout.sections]
            return row_parts(layout, [self._data[at : at + size].reshape(hi - lo, n) for at, size, n in places])
        fmt, columns = format_of(item.format), item.shape[1]
        first, last, panel = lo // PANEL, -(-hi // PANEL), fmt.panel_bytes(columns)
        packed = self._data[item.offset + first * panel : item.offset + last * panel].reshape(last - first, panel)
        return [part[lo - first * PANEL : hi - first * PANEL] for part in panel_parts(fmt, packed, columns)]
