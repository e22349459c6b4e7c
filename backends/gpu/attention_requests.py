"""Which projection and attention kernels a kind of layer gets on a GPU: see `linear_requests`."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.row_layouts import RowLayout
from llamac.ir.types import CacheType

from .architectures import Architecture
from .cost_model import TILES, few_tiles, many_tiles, padded_tokens
from .linear_requests import between, product_type, weight_types
from .request import CompileOptions, Constant, KernelRequest
from .tuned_rows import tuned

DECODE_ROWS = 16
"""Query rows of a tile in decoding: the heads of a kv head, filled up to what matrix units take."""


@dataclass(frozen=True)
class Heads:
    """The attention of one kind of layer.

    cache_type: Triton's type of the cache's elements. scaled: whether keys and values have scales. qk_eps: of the norm
    of q and k, negative without one. floor, temperature: of Llama 4's layers without rotation; floor 0 without.
    """

    heads: int
    cache: CacheType
    cache_type: str
    scale: float
    rope: bool = True
    qk_eps: float = -1.0
    floor: int = 0
    temperature: float = 0.0
    scaled: bool = False

    def cache_constants(self) -> dict[str, Constant]:
        """What the kernels must know of the cache."""
        kind = self.cache
        return {
            "HEADS": self.heads, "KV_HEADS": kind.kv_heads, "HEAD": kind.head_dim, "LAYERS": kind.layers,
            "PAGE": kind.page,
        }  # fmt: skip

    def cache_signature(self) -> dict[str, str]:
        """The parameters that every kernel over the cache takes."""
        signature = {
            "cache_ptr": f"*{self.cache_type}", "positions_ptr": "*i32", "sequences_ptr": "*i32", "table_ptr": "*i32",
            "table_width": "i32", "layer": "i32",
        }  # fmt: skip
        return signature | ({"kv_scale_ptr": "*fp32"} if self.scaled else {})


def decode_qkv(machine: Architecture, layout: RowLayout, heads: Heads, tokens: int, eps: float) -> KernelRequest:
    """Norm, projection, rotation and append of few tokens."""
    signature, constants = weight_types(machine, layout)
    tile = few_tiles(machine, layout, tokens, True)
    pairs = min(tile.rows, heads.cache.head_dim // 2)
    signature |= _projection(layout, heads, "fp32") | {"norm_ptr": "*fp32"}
    if heads.qk_eps >= 0:  # the programs of a head meet before its norm
        signature |= {"partial_ptr": "*fp32", "counter_ptr": "*i32"}
    constants |= _finish(heads) | {
        "partial_ptr": None, "counter_ptr": None, "K": layout.columns, "EPS": eps, "M": padded_tokens(tokens),
        "BP": pairs, "BK": tile.columns, "SPLITS": 1, "PDL": machine.dependent_launch,
    }  # fmt: skip
    options = CompileOptions(tile.warps, 1, dependent_launch=True)
    return tuned(machine, KernelRequest("qkv", "decode_qkv", signature, _without(constants, signature), options))


def prefill_qkv(
    machine: Architecture, layout: RowLayout, heads: Heads, tokens: int, *, x: str, norm: bool, eps: float
) -> KernelRequest:
    """As `decode_qkv`, with matrix units: a whole head a tile, or a narrow one for few tokens."""
    signature, constants = weight_types(machine, layout)
    sizes, options = many_tiles(machine, layout, tokens, paired=True, busy=True)
    half = heads.cache.head_dim // 2
    pairs = half if heads.qk_eps >= 0 else min(half, int(sizes["BN"] or 0))
    signature |= _projection(layout, heads, x) | ({"norm_ptr": "*fp32"} if norm else {})
    constants |= _finish(heads) | {
        "x_scale_ptr": None, "norm_ptr": None, "K": layout.columns, "EPS": eps, "BP": pairs, "BM": sizes["BM"],
        "BK": sizes["BK"], "DOT": product_type(layout), "PDL": machine.dependent_launch,
    }  # fmt: skip
    return tuned(machine, KernelRequest("qkv", "prefill_qkv", signature, _without(constants, signature), options))


def keys_of(machine: Architecture, cache: CacheType) -> int:
    """Keys of a tile: what the machine can hold, a part of a page and of a chunk."""
    keys = min(TILES[machine.name].keys, cache.page)
    while cache.chunk % keys:
        keys //= 2
    return keys


def decode_attention(machine: Architecture, heads: Heads, splits: int, q: str) -> KernelRequest:
    """Attention of single rows, split `splits` ways."""
    signature = heads.cache_signature() | {"q_ptr": f"*{q}", "out_ptr": f"*{q}"}
    if splits > 1:
        signature |= {"partial_ptr": "*fp32", "weight_ptr": "*fp32", "counter_ptr": "*i32"}
    constants = heads.cache_constants() | _scratch() | {
        "SCALE": heads.scale, "CHUNK": heads.cache.chunk, "KEYS": keys_of(machine, heads.cache),
        "ROWS": max(DECODE_ROWS, padded_tokens(heads.heads // heads.cache.kv_heads)), "SPLITS": splits,
        "PDL": machine.dependent_launch,
    }  # fmt: skip
    options = CompileOptions(4, TILES[machine.name].stages, dependent_launch=True)
    return KernelRequest("attention", "decode_attention", signature, _without(constants, signature), options)


def prefill_attention(machine: Architecture, heads: Heads, q: str) -> KernelRequest:
    """Attention of tiles of rows."""
    tiles = TILES[machine.name]
    signature = heads.cache_signature() | {"q_ptr": f"*{q}", "out_ptr": f"*{q}", "tiles_ptr": "*i32"}
    constants = heads.cache_constants() | {
        "kv_scale_ptr": None, "SCALE": heads.scale, "CHUNK": heads.cache.chunk,
        "KEYS": keys_of(machine, heads.cache),
        "ROWS": tiles.query_rows, "PDL": machine.dependent_launch,
    }  # fmt: skip
    options = CompileOptions(tiles.attention_warps, tiles.stages, dependent_launch=True)
    request = KernelRequest("attention", "prefill_attention", signature, _without(constants, signature), options)
    return tuned(machine, request)


def _projection(layout: RowLayout, heads: Heads, x: str) -> dict[str, str]:
    angles = {"cos_ptr": "*fp32", "sin_ptr": "*fp32"} if heads.rope else {}
    return heads.cache_signature() | angles | {"x_ptr": f"*{x}", "q_ptr": f"*{between(layout)}", "tokens": "i32"}


def _finish(heads: Heads) -> dict[str, Constant]:
    return heads.cache_constants() | {
        "kv_scale_ptr": None, "cos_ptr": None, "sin_ptr": None, "ROPE": heads.rope, "QK_EPS": heads.qk_eps,
        "FLOOR": heads.floor, "TEMPERATURE": heads.temperature,
    }  # fmt: skip


def _scratch() -> dict[str, Constant]:
    return {"kv_scale_ptr": None, "partial_ptr": None, "weight_ptr": None, "counter_ptr": None}


def _without(constants: dict[str, Constant], signature: dict[str, str]) -> dict[str, Constant]:
    """The constants that are no parameters after all."""
    return {name: value for name, value in constants.items() if name not in signature}
