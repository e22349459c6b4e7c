"""Tile sizes, warps, stages and splits where nothing was measured: rules on shapes and a row an instruction set.

What decides is arithmetic: bytes in flight hide the latency of memory, registers hold the sums, shared memory holds
what is prefetched, and there should be a block for every multiprocessor. `tuning` holds what was measured instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dtypes import E4M3FN, F32
from llamac.ir.row_layouts import UNIT, RowLayout

from .architectures import Architecture
from .request import CompileOptions, Constant

NARROW = 16
"""Tokens of a narrow tile."""


@dataclass(frozen=True)
class Tiles:
    """How an instruction set is given matrix products: weight rows x tokens x columns of a tile, warps, stages.

    quant_columns: columns of a tile of quants, whose values take registers. query_rows, keys, attention_warps: a tile
    of attention and its warps.
    """

    weight_rows: int
    tokens: int
    columns: int
    warps: int
    stages: int
    quant_columns: int = 64
    query_rows: int = 64
    keys: int = 64
    attention_warps: int = 4


TILES: dict[str, Tiles] = {
    "sm_80": Tiles(128, 128, 64, 8, 3, keys=32),
    "sm_86": Tiles(128, 128, 32, 8, 3, quant_columns=32, keys=32),
    "sm_89": Tiles(128, 128, 32, 8, 3, quant_columns=32, keys=32),
    "sm_90": Tiles(128, 256, 64, 8, 3, query_rows=128, attention_warps=8),
    "sm_100": Tiles(128, 128, 64, 8, 3, query_rows=128, attention_warps=8),
    "sm_120": Tiles(128, 128, 32, 8, 3, quant_columns=32, keys=32),
    "gfx90a": Tiles(128, 128, 32, 4, 2, quant_columns=32, keys=32),
    "gfx942": Tiles(128, 128, 64, 4, 2, keys=32),
    "gfx950": Tiles(128, 128, 64, 4, 2, keys=32),
    "gfx1100": Tiles(64, 64, 32, 4, 2, quant_columns=32, query_rows=32, keys=16),
}
"""Instruction set -> tile sizes that fit its registers and shared memory; none measured yet."""


def padded_tokens(tokens: int) -> int:
    """The next power of two: what a kernel for `tokens` is compiled for."""
    return 1 << (tokens - 1).bit_length()


@dataclass(frozen=True)
class FewTiles:
    """Tile of a product with few tokens: weight rows, columns a step, warps."""

    rows: int
    columns: int
    warps: int


def few_tiles(machine: Architecture, layout: RowLayout, tokens: int, paired: bool) -> FewTiles:
    """A block whose every thread loads whole units of the same columns in several rows, so that activations are reused.

    The columns of a step divide the row where they can; more rows a block mean more bytes in flight and fewer reads of
    the activations, fewer tokens' sums leave registers for them.
    """
    unit = UNIT * 8 // layout.format.quants.bits
    width = layout.padded_columns
    step = width & -width
    if step < machine.warp * unit:
        step = padded_tokens(width)
    threads = max(machine.warp, min(256, step // unit))
    step = min(step, threads * unit)
    rows = 8 if tokens == 1 else 16 // padded_tokens(tokens)
    if layout.format.quants.bits <= 8 and tokens > 1:
        rows //= 2  # a unit has twice the columns or more, each with its activations in registers
    if layout.format.quants is E4M3FN and not machine.converts_e4m3:
        rows //= 2  # decoding takes registers too
    if machine.kind == "hip" and (machine.warp == 32 or not layout.format.is_dense):
        rows //= 2  # a wave of 64 holds as much in half the rows, and one of 32 has fewer registers
    return FewTiles(max(1, rows // 2 if paired else rows), step, threads // machine.warp)


def many_tiles(
    machine: Architecture, layout: RowLayout, tokens: int, *, paired: bool = False, busy: bool = False
) -> tuple[dict[str, Constant], CompileOptions]:
    """BN, BM, BK of a product with matrix units, and its options: narrow for up to NARROW tokens, else wide.

    busy: what is done with the sums takes registers too.
    """
    tiles = TILES[machine.name]
    columns = tiles.columns if layout.format.is_dense else tiles.quant_columns
    if layout.format.quants is F32:
        columns //= 2
    if tokens <= NARROW:
        wide = 2 if layout.format.is_dense or layout.format.quants.bits == 8 else 1
        # Bytes in flight hide the latency of memory, and here a unit has few blocks: deep pipelines where they fit.
        stages = 2 if machine.kind == "hip" else 6 if machine.shared_bytes > 128 << 10 else 4
        options = CompileOptions(4, stages, machine.dependent_launch)
        return {"BN": 32 // (2 if paired else 1), "BM": NARROW, "BK": columns * wide}, options
    tall = tiles.weight_rows // (2 if paired else 1)
    # Values of quants are made in registers beside the sums, which leaves room for fewer of those.
    across = tiles.tokens if layout.format.is_dense and not busy else min(tiles.tokens, 128)
    return {"BN": tall, "BM": across, "BK": columns}, CompileOptions(
        tiles.warps, tiles.stages, machine.dependent_launch
    )


MOST_SPLITS = 32
"""Programs that share the keys of a row at most: each result is read again to merge them."""


def splits_of(units: int, tokens: int, kv_heads: int) -> int:
    """Programs among which the keys of a row are split: as many as keep all multiprocessors busy, a power of two."""
    wanted = max(1, units // (tokens * kv_heads))
    return min(MOST_SPLITS, 1 << (wanted.bit_length() - 1))
