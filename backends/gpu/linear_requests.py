"""Which kernel a matrix, a head or a mixture gets on a GPU: types, constants and tile sizes, nothing compiled yet.

Tile sizes come from rules on shapes and from `TILES`, a row an instruction set; measured rows can replace them without
touching a kernel. Few tokens (`few_tokens`) are multiplied element by element, more by matrix units in narrow tiles, a
prompt in wide ones. The residual stream is f32; what goes between two kernels of a layer is bf16, or f16 where weights
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamac.ir.dtypes import E4M3FN, F16, F32
from llamac.ir.row_layouts import UNIT, RowLayout

from .architectures import Architecture
from .request import CompileOptions, Constant, KernelRequest

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


def weight_types(machine: Architecture, layout: RowLayout) -> tuple[dict[str, str], dict[str, Constant]]:
    """The parameters and constants that speak of a weight."""
    fmt = layout.format
    constants: dict[str, Constant] = {"KP": layout.padded_columns, "GROUP": fmt.group, "ZERO": fmt.offset}
    if not fmt.is_dense:
        signature = {"w_ptr": "*u32", "scale_ptr": "*fp16" if fmt.scale is F16 else "*fp32"}
        if fmt.minimum is not None:
            signature["min_ptr"] = "*fp16" if fmt.minimum is F16 else "*fp32"
        constants |= {"WEIGHT": f"int{fmt.quants.bits}"}
    elif fmt.quants is E4M3FN:
        hardware = machine.converts_e4m3
        signature = {"w_ptr": "*fp8e4nv" if hardware else "*u8", "scale_ptr": "*fp32"}
        constants |= {"WEIGHT": "dense" if hardware else "e4m3"}
    else:
        signature = {"w_ptr": {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16"}[fmt.quants.name]}
        constants |= {"WEIGHT": "dense"}
    return signature, constants | {key: None for key in ("scale_ptr", "min_ptr") if key not in signature}


def between(layout: RowLayout) -> str:
    """The type of what goes between two kernels of a layer."""
    return {"f16": "fp16", "f32": "fp32"}.get(layout.format.name, "bf16")


def product_type(layout: RowLayout) -> str:
    """The type in which tiles of this weight are multiplied."""
    return layout.format.name if layout.format.quants in (F16, F32) else "bf16"


def few_tokens(machine: Architecture, layout: RowLayout) -> int:
    """Most tokens that are multiplied element by element: above, matrix units need fewer instructions.

    Each token's sums take registers; with quants AMD's compiler needs more of them than there are sooner.
    """
    if machine.kind == "hip" and not layout.format.is_dense:
        return 2 if machine.warp == 64 else 1
    return 4


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


def decode_linear(
    machine: Architecture, layout: RowLayout, tokens: int, *, x: str, norm: bool = False, residual: bool = False,
    listed: bool = False, eps: float = 0.0,
) -> KernelRequest:  # fmt: skip
    """y f32 [tokens, N] = [residual +] [rms_norm](x) W^T of few tokens; x of type `x`; `listed`: rows from a list."""
    signature, constants = weight_types(machine, layout)
    tile = few_tiles(machine, layout, tokens, False)
    given = {"x_ptr": f"*{x}", "y_ptr": "*fp32", "tokens": "i32"}
    given |= _present(
        row_ptr="*i32" if listed else "", norm_ptr="*fp32" if norm else "", residual_ptr="*fp32" if residual else ""
    )
    constants |= _absent(given, "row_ptr", "norm_ptr", "residual_ptr", "partial_ptr", "counter_ptr")
    constants |= {
        "N": layout.rows, "K": layout.columns, "X_STRIDE": layout.columns, "EPS": eps, "M": padded_tokens(tokens),
        "BN": tile.rows, "BK": tile.columns, "SPLITS": 1, "PDL": machine.dependent_launch,
    }  # fmt: skip
    return KernelRequest("linear", "decode_linear", given | signature, constants, _few(tile))


def decode_gate_up(machine: Architecture, layout: RowLayout, tokens: int, eps: float) -> KernelRequest:
    """swiglu of [rms_norm](x f32) for few tokens; the layout holds gate, then up."""
    signature, constants = weight_types(machine, layout)
    tile = few_tiles(machine, layout, tokens, True)
    given = {"x_ptr": "*fp32", "norm_ptr": "*fp32", "y_ptr": f"*{between(layout)}", "tokens": "i32"}
    constants |= {
        "N": layout.rows // 2, "K": layout.columns, "X_STRIDE": layout.columns, "EPS": eps, "M": padded_tokens(tokens),
        "BN": tile.rows, "BK": tile.columns, "PDL": machine.dependent_launch,
    }  # fmt: skip
    return KernelRequest("linear", "decode_gate_up", given | signature, constants, _few(tile))


def decode_best(machine: Architecture, layout: RowLayout, tokens: int, eps: float) -> KernelRequest:
    """The best token of each listed row, tile by tile."""
    signature, constants = weight_types(machine, layout)
    tile = few_tiles(machine, layout, tokens, False)
    given = {
        "x_ptr": "*fp32",
        "row_ptr": "*i32",
        "norm_ptr": "*fp32",
        "best_ptr": "*fp32",
        "index_ptr": "*i32",
        "tokens": "i32",
    }
    constants |= {
        "N": layout.rows, "K": layout.columns, "EPS": eps, "M": padded_tokens(tokens), "BN": tile.rows,
        "BK": tile.columns, "PDL": machine.dependent_launch,
    }  # fmt: skip
    return KernelRequest("head", "decode_best", given | signature, constants, _few(tile))


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


def prefill_linear(
    machine: Architecture, layout: RowLayout, tokens: int, *, x: str, norm: bool = False, residual: bool = False,
    listed: bool = False, eps: float = 0.0,
) -> KernelRequest:  # fmt: skip
    """As `decode_linear`, with matrix units."""
    signature, constants = weight_types(machine, layout)
    sizes, options = many_tiles(machine, layout, tokens, busy=residual)
    given = {"x_ptr": f"*{x}", "y_ptr": "*fp32", "tokens": "i32"}
    given |= _present(
        row_ptr="*i32" if listed else "", norm_ptr="*fp32" if norm else "", residual_ptr="*fp32" if residual else ""
    )
    constants |= (
        _absent(given, "row_ptr", "norm_ptr", "residual_ptr") | sizes | _shape(machine, layout, layout.rows, eps)
    )
    return KernelRequest("linear", "prefill_linear", given | signature, constants, options)


def prefill_gate_up(
    machine: Architecture, layout: RowLayout, tokens: int, *, x: str, norm: bool, eps: float
) -> KernelRequest:
    """As `decode_gate_up`, with matrix units."""
    signature, constants = weight_types(machine, layout)
    sizes, options = many_tiles(machine, layout, tokens, paired=True)
    given = {"x_ptr": f"*{x}", "y_ptr": f"*{between(layout)}", "tokens": "i32"} | _present(
        norm_ptr="*fp32" if norm else ""
    )
    constants |= _absent(given, "norm_ptr") | sizes | _shape(machine, layout, layout.rows // 2, eps)
    return KernelRequest("linear", "prefill_gate_up", given | signature, constants, options)


def eight_bit(request: KernelRequest, machine: Architecture) -> KernelRequest:
    """The same product of e4m3fn weights with 8-bit activations and their row scales, where the hardware can."""
    kind = {"e4m3fn": "*fp8e4nv", "e4m3fnuz": "*fp8e4b8"}[machine.e4m3]
    signature = {**request.signature, "x_ptr": kind, "x_scale_ptr": "*fp32", "w_ptr": kind}
    constants = {key: value for key, value in request.constants.items() if key != "x_scale_ptr"}
    wider: dict[str, Constant] = {"BK": 2 * int(constants["BK"] or 0), "WEIGHT": "dense", "DOT": machine.e4m3}
    return KernelRequest(request.family, request.kernel, signature, constants | wider, request.options)


def _shape(machine: Architecture, layout: RowLayout, rows: int, eps: float) -> dict[str, Constant]:
    return {
        "x_scale_ptr": None, "N": rows, "K": layout.columns, "X_STRIDE": layout.columns, "EPS": eps, "BAND": 8,
        "DOT": product_type(layout), "PDL": machine.dependent_launch,
    }  # fmt: skip


def _few(tile: FewTiles) -> CompileOptions:
    return CompileOptions(tile.warps, 1, dependent_launch=True)


def _present(**types: str) -> dict[str, str]:
    """The parameters that are there: those with a type."""
    return {name: kind for name, kind in types.items() if kind}


def _absent(given: Mapping[str, str], *names: str) -> dict[str, Constant]:
    """The parameters that are not there, as constants."""
    return {name: None for name in names if name not in given}
