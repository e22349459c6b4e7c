"""Which kernels pictures get on a GPU, in image encoders and in attention to vision tokens: see `linear_requests`."""

from __future__ import annotations

from collections.abc import Mapping

from llamac.ir.row_layouts import RowLayout
from llamac.ir.types import CacheType

from .architectures import Architecture
from .attention_requests import DECODE_ROWS, keys_of
from .cost_model import NARROW, TILES, many_tiles, padded_tokens
from .linear_requests import product_type, weight_types
from .request import CompileOptions, Constant, KernelRequest

BLOCK = 1024
"""Elements that one block of an elementwise kernel takes at once."""

WIDEST_HEAD = 256
"""Columns of the widest head that a tile of attention holds."""

NARROWEST = 64
"""Rows of the narrowest tile of an encoder's product."""


def image_linear(
    machine: Architecture, layout: RowLayout, tokens: int, units: int, *, x: str, y: str, bias: str = "",
    residual: bool = False, gelu: bool = False,
) -> KernelRequest:  # fmt: skip
    """A product of all rows of an encoder; bias: its type, "" without one. Tiles shrink until all units have one."""
    signature, constants = weight_types(machine, layout)
    sizes, options = many_tiles(machine, layout, max(tokens, NARROW + 1), busy=True)
    across, tall = int(sizes["BM"] or 0), int(sizes["BN"] or 0)
    while across > NARROWEST and -(-tokens // across) * -(-layout.rows // tall) < units:
        across //= 2
    signature |= {"x_ptr": f"*{x}", "y_ptr": f"*{y}", "tokens": "i32"}
    signature |= ({"bias_ptr": f"*{bias}"} if bias else {}) | ({"residual_ptr": "*fp32"} if residual else {})
    constants |= {
        **sizes, "BM": across, "N": layout.rows, "K": layout.columns, "BAND": 8, "DOT": product_type(layout),
        "GELU": gelu, "PDL": machine.dependent_launch,
    }  # fmt: skip
    constants |= {name: None for name in ("bias_ptr", "residual_ptr") if name not in signature}
    return KernelRequest("encoder", "image_linear", signature, constants, options)


def attend_all(
    machine: Architecture, kind: str, out: str, count: int, heads: int, head_dim: int, scale: float,
    tokens: int, padded: int, tiled: bool,
) -> KernelRequest:  # fmt: skip
    """Attention of `count` rows of joined q, k and v of type `kind`; tiled: some tiles can be padding."""
    tiles, wide = TILES[machine.name], padded_tokens(head_dim)
    signature = {"qkv_ptr": f"*{kind}", "out_ptr": f"*{out}"} | ({"slots_ptr": "*i32"} if tiled else {})
    small = kind == "fp32"
    constants: dict[str, Constant] = {
        "SCALE": scale, "COUNT": count, "HEADS": heads, "HEAD": head_dim, "WIDE": max(wide, 16),
        "ROWS": tiles.query_rows // 2 if small else tiles.query_rows,
        "KEYS": max(tiles.keys // 2, 16) if small else tiles.keys, "TOKENS": tokens, "PADDED": padded,
        "PDL": machine.dependent_launch,
    }  # fmt: skip
    if not tiled:
        constants["slots_ptr"] = None
    options = CompileOptions(tiles.attention_warps, tiles.stages, dependent_launch=True)
    return KernelRequest("encoder", "attend_all", signature, constants, options)


def picture(
    machine: Architecture, kernel: str, signature: Mapping[str, str], warps: int = 4, **constants: Constant
) -> KernelRequest:
    """A kernel of `kernels/pictures.py`; pointers that are not there are None among the constants."""
    own = {**constants, "PDL": machine.dependent_launch}
    return KernelRequest("pictures", kernel, signature, own, CompileOptions(warps, 1, dependent_launch=True))


def cos_sin(count: int) -> KernelRequest:
    """Cosines and sines of fixed angles."""
    signature = {"angles_ptr": "*fp32", "cos_ptr": "*fp32", "sin_ptr": "*fp32"}
    return KernelRequest("pictures", "cos_sin", signature, {"COUNT": count, "BLOCK": BLOCK}, CompileOptions(4, 1))


def vision_attention(
    machine: Architecture, cache: CacheType, types: Mapping[str, str], heads: int, scale: float, eps: float,
    splits: int, rows: int = 0,
) -> KernelRequest:  # fmt: skip
    """Attention of rows to vision tokens: split `splits` ways row by row, or in tiles where that is 0.

    types: of the pointers that differ from model to model: q_ptr, norm_ptr, gate_ptr, cache_ptr, out_ptr. rows: query
    rows of a tile, 0 for as many as the machine takes.
    """
    tiles = TILES[machine.name]
    integers = ["start_ptr", "stop_ptr", "sequences_ptr", "table_ptr"]
    signature = {name: f"*{kind}" for name, kind in types.items()} | dict.fromkeys(integers, "*i32")
    signature |= {"table_width": "i32", "layer": "i32"}
    constants: dict[str, Constant] = {
        "SCALE": scale, "EPS": eps, "HEADS": heads, "KV_HEADS": cache.kv_heads, "HEAD": cache.head_dim,
        "LAYERS": cache.layers, "PAGE": cache.page, "KEYS": keys_of(machine, cache), "PDL": machine.dependent_launch,
    }  # fmt: skip
    if not splits:
        signature |= {"tiles_ptr": "*i32"}
        options = CompileOptions(tiles.attention_warps, tiles.stages, dependent_launch=True)
        return KernelRequest(
            "vision", "prefill_vision", signature, constants | {"ROWS": rows or tiles.query_rows}, options
        )
    scratch = {"partial_ptr": "*fp32", "weight_ptr": "*fp32", "counter_ptr": "*i32"}
    constants |= {"SPLITS": splits, "ROWS": max(DECODE_ROWS, padded_tokens(heads // cache.kv_heads))}
    if splits > 1:
        signature |= scratch
    else:
        constants |= dict.fromkeys(scratch)
    options = CompileOptions(4, tiles.stages, dependent_launch=True)
    return KernelRequest("vision", "decode_vision", signature, constants, options)
