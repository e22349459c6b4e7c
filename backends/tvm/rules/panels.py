"""Packed weights (`llamac.ir.layouts`) in TIR: their elements as f32, and products of a panel with rows.

A panel is read unit by unit, a unit being the columns that one word of a lane holds: one of f32, two of bf16 in pairs,
eight of 4-bit integers. Quants are multiplied as f32: a block's sum of at most 32 products of bytes is exact there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from llamac.ir.dtypes import BF16, E4M3FN, F32, DType
from llamac.ir.layouts import PANEL

from ..kernel import Kernel
from ..loops import Buffer, Expression, index
from ..values import STORED, f32, to_float, widened


@dataclass(frozen=True)
class Lanes:
    """Which outputs of a panel a thread computes: `count` of them from `first` on."""

    first: Expression
    count: int


ALL_LANES = Lanes(0, PANEL)

TURNS = 2
"""Sums at which the columns of one row take turns."""


class Panels:
    """Operand `number` of a kernel: packed rows over `columns` inputs."""

    def __init__(self, k: Kernel, number: int, columns: int) -> None:
        self.k, self.number, self.columns = k, number, columns
        self.format = k.format
        self._sections = self.format.sections(columns)

    @property
    def columns_of_unit(self) -> int:
        """Columns that one word of a lane holds."""
        if self.format.in_pairs:
            return 2
        return 1 if self.format.is_dense else 32 // self.format.quants.bits

    def unit(self, panel: Expression, unit: Expression, lane: Expression) -> list[Expression]:
        """The values of a unit's columns, in their order, as f32: without scale, signed ones with the offset added."""
        at = (panel, unit * PANEL + lane)
        quants = self.format.quants
        if self.format.in_pairs:
            word = self._words(2 * quants.bits)[at]
            return _pair(word, quants)
        if self.format.is_dense:
            stored = self.k.view(self.number, STORED[quants.name], quants.bits // 8)
            return [widened(stored[at], quants)]
        word = self._words(32)[at]
        mask = tirx.const((1 << quants.bits) - 1, "uint32")
        shifts = [8 * b for b in range(4)]
        if quants.bits == 4:
            shifts += [8 * b + 4 for b in range(4)]
        return [to_float(tirx.Cast("int32", (word >> tirx.const(s, "uint32")) & mask)) for s in shifts]

    def row_scale(self, panel: Expression, lane: Expression) -> Expression | None:
        """The scale of an output, of e4m3fn; None elsewhere."""
        if self.format.quants is not E4M3FN:
            return None
        return self.k.view(self.number, "float32", 4)[panel, self._sections[1] // 4 + lane]

    def scale(self, panel: Expression, group: Expression, lane: Expression) -> Expression:
        """The scale of a group of an output."""
        assert self.format.scale is not None
        return self._per_group(1, self.format.scale, panel, group, lane)

    def minimum(self, panel: Expression, group: Expression, lane: Expression) -> Expression:
        """The minimum of a group of an output."""
        assert self.format.minimum is not None
        return self._per_group(2, self.format.minimum, panel, group, lane)

    def value(self, row: Expression, column: Expression) -> Expression:
        """One element of the matrix, as f32."""
        panel, lane = tirx.floordiv(row, index(PANEL)), tirx.floormod(row, index(PANEL))
        each = self.columns_of_unit
        found = self.unit(panel, tirx.floordiv(column, index(each)), lane)
        value, place = found[-1], tirx.floormod(column, index(each))
        for number, other in enumerate(found[:-1]):
            value = tirx.Select(place == number, other, value)
        if self.format.is_dense:
            scale = self.row_scale(panel, lane)
            return value if scale is None else value * scale
        group = tirx.floordiv(column, index(self.format.group))
        value = (value - f32(self.format.offset)) * self.scale(panel, group, lane)
        return value + self.minimum(panel, group, lane) if self.format.minimum else value

    def _words(self, bits: int) -> Buffer:
        return self.k.view(self.number, f"uint{bits}", bits // 8)

    def _per_group(
        self, section: int, dtype: DType, panel: Expression, group: Expression, lane: Expression
    ) -> Expression:
        size = dtype.bits // 8
        stored = self.k.view(self.number, STORED[dtype.name], size)
        return widened(stored[panel, self._sections[section] // size + group * PANEL + lane], dtype)


def _pair(word: Expression, quants: DType) -> list[Expression]:
    """The two values of a word, the first one in its low half."""
    if quants is BF16:
        high = word & tirx.const(0xFFFF0000, "uint32")
        return [tirx.reinterpret("float32", half) for half in (word << tirx.const(16, "uint32"), high)]
    assert quants is E4M3FN, quants
    halves = (word & tirx.const(0xFF, "uint16"), word >> tirx.const(8, "uint16"))
    return [widened(tirx.Cast("uint8", half), quants) for half in halves]


def products(panels: Panels, panel: Expression, lanes: Lanes, rows: Sequence[Expression]) -> list[Buffer]:
    """For each of `rows` of the inputs a local array of what it gives with the lanes of a panel."""
    if panels.format.is_dense:
        return _dense_products(panels, panel, lanes, rows)
    return _grouped_products(panels, panel, lanes, rows)


def _dense_products(panels: Panels, panel: Expression, lanes: Lanes, rows: Sequence[Expression]) -> list[Buffer]:
    k, code, each = panels.k, panels.k.code, panels.columns_of_unit
    sums = [code.filled(lanes.count, 0.0) for _ in rows]
    whole, rest = divmod(panels.columns, each)
    with code.loop(whole) as unit:
        _add_unit(panels, panel, lanes, rows, unit, each, sums)
    if rest:
        _add_unit(panels, panel, lanes, rows, index(whole), rest, sums)
    if panels.row_scale(index(0), index(0)) is not None:
        for total in sums:
            with code.lanes(lanes.count) as lane:
                scale = panels.row_scale(panel, lanes.first + lane)
                code.store(total, [lane], total[lane] * scale)
    assert k.op.operands[0].dtype is F32
    return sums


def _add_unit(
    panels: Panels,
    panel: Expression,
    lanes: Lanes,
    rows: Sequence[Expression],
    unit: Expression,
    count: int,
    sums: Sequence[Buffer],
) -> None:
    """sums += inputs of `count` columns of a unit times their weights; of quants, the integers alone.

    `sums` holds one array a row, or several times as many, at which the columns take turns.
    """
    k, code, each = panels.k, panels.k.code, panels.columns_of_unit
    for column in range(count):
        turn = column % (len(sums) // len(rows)) * len(rows)
        given = [k.load(0, row, unit * each + column) for row in rows]
        values = [code.kept(value if panels.format.is_dense else to_float(value)) for value in given]
        with code.lanes(lanes.count) as lane:
            weight = code.kept(panels.unit(panel, unit, lanes.first + lane)[column])
            for value, total in zip(values, sums[turn : turn + len(rows)], strict=True):
                code.add_to(total, lane, value * weight)


def _total(panels: Panels, lanes: Lanes, parts: Sequence[Buffer]) -> Buffer:
    """The sum of arrays, in the first of them."""
    with panels.k.code.lanes(lanes.count) as lane:
        value = parts[0][lane]
        for other in parts[1:]:
            value = value + other[lane]
        panels.k.code.store(parts[0], [lane], value)
    return parts[0]


def _grouped_products(panels: Panels, panel: Expression, lanes: Lanes, rows: Sequence[Expression]) -> list[Buffer]:
    k, code, fmt = panels.k, panels.k.code, panels.format
    sums = [code.filled(lanes.count, 0.0) for _ in rows]
    units = fmt.block // panels.columns_of_unit
    with code.loop(fmt.padded_columns(panels.columns) // fmt.block) as block:
        # One row alone would wait for each sum before the next: its columns take turns at several.
        turns = TURNS if len(rows) == 1 else 1
        parts = [code.filled(lanes.count, 0.0) for _ in range(turns * len(rows))]
        with code.loop(units) as unit:
            _add_unit(panels, panel, lanes, rows, block * units + unit, panels.columns_of_unit, parts)
        dots = parts if turns == 1 else [_total(panels, lanes, parts)]
        group = tirx.floordiv(block * fmt.block, index(fmt.group))
        for row, total, dot in zip(rows, sums, dots, strict=True):
            scale = code.kept(k.load(1, row, block))
            quants = code.kept(to_float(k.load(2, row, block)))
            with code.lanes(lanes.count) as lane:
                at = lanes.first + lane
                exact = dot[lane] - f32(fmt.offset) * quants
                code.add_to(total, lane, exact * (panels.scale(panel, group, at) * scale))
            if fmt.minimum:
                with code.lanes(lanes.count) as lane:
                    code.add_to(total, lane, panels.minimum(panel, group, lanes.first + lane) * (scale * quants))
    return sums
