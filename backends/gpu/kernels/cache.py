"""The paged key/value cache inside kernels.

A page holds PAGE tokens of every layer of its group: [layer][K, V][kv head][slot][head_dim], so a page is one run of
memory and the keys of a head in a page are one tile. Pages lie one after another and a table a sequence says which are
its own: the token at position t lies in page `table[t // PAGE]`, slot t % PAGE. The cache is f32, f16, bf16, or
e4m3fn (of Triton's own type where the hardware converts them, else as bytes), then perhaps with an f32 scale for the
keys and the values of each head: [2][kv heads].
"""

from __future__ import annotations

import triton
import triton.language as tl

from .packed import decode_e4m3, narrowed


@triton.jit
def head_offset(
    layer: tl.tensor,
    head: tl.tensor,
    LAYERS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Elements (i64) from the start of a page to the keys of one head, and from the keys to the values."""
    return (layer * (2 * KV_HEADS) + head).to(tl.int64) * (PAGE * HEAD), KV_HEADS * PAGE * HEAD


@triton.jit
def page_start(
    page: tl.tensor,
    LAYERS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD: tl.constexpr,
) -> tl.tensor:
    """Elements (i64) from the start of the cache to that of a page."""
    return page.to(tl.int64) * (LAYERS * 2 * KV_HEADS * PAGE * HEAD)


@triton.jit
def to_cache(values: tl.tensor, scale: tl.tensor, cache_ptr: tl.tensor, SCALED: tl.constexpr) -> tl.tensor:
    """f32 values as the cache holds them; what exceeds an 8-bit float is cut at its largest value, 448."""
    if SCALED:
        values = values / scale
    if cache_ptr.dtype.element_ty.primitive_bitwidth == 8:
        values = tl.clamp(values, -448.0, 448.0)
    return narrowed(values, cache_ptr)


@triton.jit
def from_cache(stored: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """What the cache holds, without its scale, in the type that products are made in: 8-bit floats become f16 or bf16.

    Bytes come out divided by 256, see `decode_e4m3`.
    """
    if stored.dtype == tl.uint8:
        values = decode_e4m3(stored)
    elif stored.dtype.primitive_bitwidth == 8:
        values = stored.to(KIND)
    else:
        values = stored
    return values
