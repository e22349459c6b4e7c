"""Products with packed weights: linear, the gated linear, experts, rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx

from llamac.ir.layouts import PANEL

from ..kernel import Kernel
from ..loops import Buffer, Expression, index
from ..values import silu
from .panels import ALL_LANES, Lanes, Panels, products
from .quants import quantize_block

ROWS = 4
"""Rows of inputs that share a reading of the weights."""

Tile = Callable[[Sequence[Expression]], None]

Finish = Callable[[Expression, Expression, Expression], Expression]
"""(row, output, product) -> what is stored there."""


def in_tiles(k: Kernel, first: Expression, stop: Expression, tile: Tile) -> None:
    """`tile` for the rows first .. stop - 1, ROWS at a time while there are as many, then one at a time."""
    whole = k.code.kept_index(tirx.floordiv(stop - first, index(ROWS)))
    with k.code.loop(whole) as group:
        tile([first + group * ROWS + n for n in range(ROWS)])
    with k.code.loop(stop - first - whole * ROWS) as left:
        tile([first + whole * ROWS + left])


@contextmanager
def outputs_of(k: Kernel, panels: Expression) -> Iterator[tuple[Expression, Lanes]]:
    """Panel by panel on a CPU, with all its lanes; output by output on a GPU."""
    if not k.code.on_gpu:
        with k.code.each(panels) as panel:
            yield panel, ALL_LANES
        return
    with k.code.each(panels * PANEL) as n:
        yield tirx.floordiv(n, index(PANEL)), Lanes(tirx.floormod(n, index(PANEL)), 1)


def _weight(k: Kernel) -> int:
    """Which operand is the weight."""
    return 1 if k.format.is_dense else 3


def linear(k: Kernel) -> None:
    """x times a packed weight, plus the residual where there is one."""
    residual = _weight(k) + 1
    _linear(k, lambda t, n, value: k.load(residual, t, n) + value if k.has(residual) else value)


def linear_biased(k: Kernel) -> None:
    """x times a packed weight, plus the bias, plus the residual where there is one."""

    def finished(t: Expression, n: Expression, value: Expression) -> Expression:
        total = value + k.load(2, n)
        return k.load(3, t, n) + total if k.has(3) else total

    _linear(k, finished)


def _linear(k: Kernel, finished: Finish) -> None:
    rows = k.integer("rows")
    panels = Panels(k, _weight(k), k.integer("columns"))
    with outputs_of(k, index(-(-rows // PANEL))) as (panel, lanes):

        def tile(places: Sequence[Expression]) -> None:
            for t, sums in zip(places, products(panels, panel, lanes, places), strict=True):
                _write_panel(k, sums, panel, lanes, rows, t, finished)

        in_tiles(k, index(0), k.rows(0), tile)


def _write_panel(
    k: Kernel, sums: Buffer, panel: Expression, lanes: Lanes, rows: int, t: Expression, finished: Finish
) -> None:
    """Store what `finished` makes of the outputs of a panel, but of those that only pad the last one."""
    if rows % PANEL == 0:
        with k.code.lanes(lanes.count) as lane:
            n = panel * PANEL + lanes.first + lane
            k.store(0, [t, n], finished(t, n, sums[lane]))
        return
    with k.code.loop(lanes.count) as lane:
        n = panel * PANEL + lanes.first + lane
        with k.code.when(n < rows):
            k.store(0, [t, n], finished(t, n, sums[lane]))


def gated_linear_dense(k: Kernel) -> None:
    """silu(gate) * up of x times a packed weight, whose rows are gates, then as many ups."""
    half = k.integer("rows") // 2 // PANEL
    panels = Panels(k, 1, k.integer("columns"))
    with outputs_of(k, index(half)) as (panel, lanes):

        def tile(places: Sequence[Expression]) -> None:
            gates = products(panels, panel, lanes, places)
            ups = products(panels, panel + half, lanes, places)
            for t, gate, up in zip(places, gates, ups, strict=True):
                with k.code.lanes(lanes.count) as lane:
                    value = silu(gate[lane], k.code.on_gpu) * up[lane]
                    k.store(0, [t, panel * PANEL + lanes.first + lane], value)

        in_tiles(k, index(0), k.rows(0), tile)


def gated_linear_grouped(k: Kernel) -> None:
    """The same of int8 activations and a packed integer weight, its results quantized block by block."""
    half = k.integer("rows") // 2 // PANEL
    block, padded = k.integer("block"), k.integer("padded")
    panels = Panels(k, 3, k.integer("columns"))
    with k.code.each(padded // block) as number:

        def tile(places: Sequence[Expression]) -> None:
            values = [k.code.filled(block, 0.0) for _ in places]
            for part in range(block // PANEL):
                panel = number * (block // PANEL) + part
                with k.code.when(panel < half):
                    gates = products(panels, panel, ALL_LANES, places)
                    ups = products(panels, panel + half, ALL_LANES, places)
                    for kept, gate, up in zip(values, gates, ups, strict=True):
                        with k.code.lanes(PANEL) as lane:
                            k.code.store(kept, [part * PANEL + lane], silu(gate[lane], k.code.on_gpu) * up[lane])
            for t, kept in zip(places, values, strict=True):
                quantize_block(k, t, number, block, kept)

        in_tiles(k, index(0), k.rows(0), tile)


def expert_linear(k: Kernel) -> None:
    """Each routed row times the packed matrix of its expert."""
    rows, experts, weight = k.integer("rows"), k.integer("experts"), _weight(k)
    each, offsets = rows // PANEL, weight + 1
    panels = Panels(k, weight, k.integer("columns"))
    with outputs_of(k, index(each)) as (panel, lanes), k.code.loop(experts) as expert:

        def tile(places: Sequence[Expression]) -> None:
            for t, sums in zip(places, products(panels, expert * each + panel, lanes, places), strict=True):
                _write_panel(k, sums, panel, lanes, rows, t, lambda t, n, value: value)

        first, stop = (k.code.kept_index(k.row_number(offsets, expert + n)) for n in (0, 1))
        in_tiles(k, first, stop, tile)


def embed_rows(k: Kernel) -> None:
    """Row ids[t] of a packed weight."""
    columns = k.integer("columns")
    panels = Panels(k, 1, columns)
    with k.code.each(k.rows(0)) as t:
        row = k.code.kept_index(k.row_number(0, t))
        with k.code.loop(columns) as i:
            k.store(0, [t, i], panels.value(row, i))


RULES = {
    "linear_dense": linear,
    "linear_grouped": linear,
    "linear_biased": linear_biased,
    "gated_linear_dense": gated_linear_dense,
    "gated_linear_grouped": gated_linear_grouped,
    "expert_linear_dense": expert_linear,
    "expert_linear_grouped": expert_linear,
    "embed_rows": embed_rows,
}
"""Opcode -> rule."""
