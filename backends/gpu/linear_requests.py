"""Which kernel a matrix, a head or a mixture gets on a GPU: types, constants and tile sizes, nothing compiled yet.

Tile sizes are those of a measured row (`tuned_rows`) where there is one for the shape, else those of `cost_model`. Few
tokens (`few_tokens`) are multiplied element by element, more by matrix units in narrow tiles, a prompt in wide ones.
The residual stream is f32; what goes between two kernels of a layer is bf16, or f16 where weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llamac.ir.dtypes import E4M3FN, F16, F32
from llamac.ir.row_layouts import RowLayout

from .architectures import Architecture
from .cost_model import FewTiles, few_tiles, many_tiles, padded_tokens
from .request import CompileOptions, Constant, KernelRequest
from .tuned_rows import tuned


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
    return tuned(machine, KernelRequest("linear", "decode_linear", given | signature, constants, _few(tile)))


def decode_gate_up(machine: Architecture, layout: RowLayout, tokens: int, eps: float) -> KernelRequest:
    """swiglu of [rms_norm](x f32) for few tokens; the layout holds gate, then up."""
    signature, constants = weight_types(machine, layout)
    tile = few_tiles(machine, layout, tokens, True)
    given = {"x_ptr": "*fp32", "norm_ptr": "*fp32", "y_ptr": f"*{between(layout)}", "tokens": "i32"}
    constants |= {
        "N": layout.rows // 2, "K": layout.columns, "X_STRIDE": layout.columns, "EPS": eps, "M": padded_tokens(tokens),
        "BN": tile.rows, "BK": tile.columns, "PDL": machine.dependent_launch,
    }  # fmt: skip
    return tuned(machine, KernelRequest("linear", "decode_gate_up", given | signature, constants, _few(tile)))


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
    return tuned(machine, KernelRequest("head", "decode_best", given | signature, constants, _few(tile)))


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
    return tuned(machine, KernelRequest("linear", "prefill_linear", given | signature, constants, options))


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
    return tuned(machine, KernelRequest("linear", "prefill_gate_up", given | signature, constants, options))


def eight_bit(request: KernelRequest, machine: Architecture) -> KernelRequest:
    """The same product of e4m3fn weights with 8-bit activations and their row scales.

    The portable build, whose matrix units have no such product, decodes both: the same values.
    """
    constants = {key: value for key, value in request.constants.items() if key != "x_scale_ptr"}
    signature = {**request.signature, "x_ptr": "*u8", "x_scale_ptr": "*fp32"}
    if not machine.e4m3:
        return tuned(machine, replace(request, signature=signature, constants=constants))
    kind = {"e4m3fn": "*fp8e4nv", "e4m3fnuz": "*fp8e4b8"}[machine.e4m3]
    signature |= {"x_ptr": kind, "w_ptr": kind}
    wider: dict[str, Constant] = {"BK": 2 * int(constants["BK"] or 0), "WEIGHT": "dense", "DOT": machine.e4m3}
    return tuned(machine, replace(request, signature=signature, constants=constants | wider))


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
