"""Reading weights of the layout `gpu-rows16` inside kernels: 16-byte units for products of few rows, tiles for many.

A unit is 16 bytes of one weight row, what one thread loads at once. `WEIGHT` says what it holds: "dense", as many
floats as fit (of the pointer's type, hardware 8-bit floats included); "e4m3", 16 e4m3fn bytes that are decoded here;
"int8", "int4", 16 or 32 quants in four words, as `layouts.py` describes. `GROUP` is the columns that a scale covers,
0 where one covers the row; `ZERO` is what was added to signed quants.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs the kernels: it has neither dependent launches nor products of 16-bit floats."""


@triton.constexpr_function
def unit_columns(weight: str, element: Any) -> int:
    """Columns in one 16-byte unit of `weight` whose pointer points to `element`."""
    return {"int4": 32, "int8": 16, "e4m3": 16}.get(weight) or 128 // element.primitive_bitwidth


@triton.constexpr_function
def unit_lanes(weight: str, element: Any) -> int:
    """Elements that one unit is loaded as: four words of quants, else one a column."""
    return 4 if weight in ("int4", "int8") else unit_columns(weight, element)


@triton.constexpr_function
def quant_bits(weight: str) -> int:
    """Bits of one quant."""
    return 4 if weight == "int4" else 8


@triton.constexpr_function
def row_factor(weight: str, element: Any) -> float:
    """What the decoded values of a row lack beside its scale."""
    if weight == "e4m3":
        return 256.0  # `decode_e4m3` leaves it out
    return 2.0 if element == tl.float8e4b8 else 1.0  # the bits of e4m3fn stand for half its values


@triton.constexpr_function
def float_type(name: str) -> Any:
    """Triton's type for a dtype's name."""
    return {
        "f32": tl.float32, "f16": tl.float16, "bf16": tl.bfloat16,
        "e4m3fn": tl.float8e4nv, "e4m3fnuz": tl.float8e4b8,
    }[name]  # fmt: skip


@triton.jit
def decode_e4m3(bits: tl.tensor) -> tl.tensor:
    """e4m3fn bytes as f16 values, divided by 256: exponents differ by 8 and f16 keeps the small ones exactly."""
    wide = bits.to(tl.uint16)
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
def encode_e4m3(x: tl.tensor) -> tl.tensor:
    """f32 values as e4m3fn bytes, rounded to nearest even and cut at 448, for hardware that has no such conversion."""
    bits = x.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    magnitude = tl.minimum(size.to(tl.float32, bitcast=True), 448.0)
    size = magnitude.to(tl.uint32, bitcast=True)
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960
    # Below 2^-6 the step is 2^-9: adding 2^23 rounds to whole steps.
    small = (magnitude * 512.0 + 8388608.0).to(tl.uint32, bitcast=True) & 0xFF
    code = tl.where(magnitude < 0.015625, small, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def narrowed(x: tl.tensor, ptr: tl.tensor) -> tl.tensor:
    """f32 values as memory of the type of `ptr` holds them; what exceeds an 8-bit float is cut at its largest value.

    Bytes are e4m3fn made in software. So is what the interpreter stores as 8-bit floats: its own conversion loses the
    carry of the mantissa (1.98 becomes 1).
    """
    if ptr.dtype.element_ty == tl.uint8:
        stored = encode_e4m3(x)
    elif INTERPRETED and ptr.dtype.element_ty == tl.float8e4nv:
        stored = encode_e4m3(x).to(tl.float8e4nv, bitcast=True)
    elif INTERPRETED and ptr.dtype.element_ty == tl.float8e4b8:
        bits = encode_e4m3(x * 2.0)
        stored = tl.where(bits == 0x80, 0, bits).to(tl.uint8).to(tl.float8e4b8, bitcast=True)
    else:
        stored = x.to(ptr.dtype.element_ty)
    return stored


@triton.jit
def load_units(
    w_ptr: tl.tensor,
    rows: tl.tensor,
    k: tl.tensor,
    stop: tl.tensor,
    KP: tl.constexpr,
    UNITS: tl.constexpr,
    WEIGHT: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Units [BN, UNITS, lanes] of weight rows [BN] (i64), from column k on; zeros from column `stop` on.

    MASKED: whether units can lie behind `stop`. Streamed weights are not worth keeping in the cache.
    """
    UNIT: tl.constexpr = unit_columns(WEIGHT, w_ptr.dtype.element_ty)
    LANES: tl.constexpr = unit_lanes(WEIGHT, w_ptr.dtype.element_ty)
    unit = k // UNIT + tl.arange(0, UNITS)
    start = w_ptr + rows[:, None, None] * (KP // UNIT * LANES)
    places = start + (unit * LANES)[None, :, None] + tl.arange(0, LANES)[None, None, :]
    if MASKED:
        inside = (unit < stop // UNIT)[None, :, None]
        if WEIGHT == "dense":
            units = tl.load(places, mask=inside, other=0.0, eviction_policy="evict_first")
        else:
            units = tl.load(places, mask=inside, other=0, eviction_policy="evict_first")
    else:
        units = tl.load(places, eviction_policy="evict_first")
    return units


@triton.jit
def unit_scales(
    ptr: tl.tensor,
    rows: tl.tensor,
    k: tl.tensor,
    KP: tl.constexpr,
    UNITS: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    TAIL: tl.constexpr,
) -> tl.tensor:
    """The f32 scale (or minimum) of each unit: [1, BN, UNITS]."""
    UNIT: tl.constexpr = unit_columns(WEIGHT, tl.uint32)
    columns = k + tl.arange(0, UNITS) * UNIT
    places = ptr + rows[:, None] * (KP // GROUP) + (columns // GROUP)[None, :]
    if TAIL:
        found = tl.load(places, mask=(columns < KP)[None, :], other=0.0)
    else:
        found = tl.load(places)
    return tl.reshape(found.to(tl.float32), (1, rows.shape[0], UNITS))


@triton.jit
def exponent_of_one(tokens: tl.tensor) -> tl.tensor:
    """The bits of 1.0, in a register: an instruction holds one constant, and `fraction` would need two.

    The compiler cannot see that there is never a negative number of tokens.
    """
    return ((tokens >> 31) | 0x3F800000).to(tl.uint32)


@triton.jit
def fraction(words: tl.tensor, one: tl.tensor, step: tl.constexpr, WEIGHT: tl.constexpr) -> tl.tensor:
    """1 + quant / 2^bits of quant `step` of each word, made by moving its bits below the exponent of 1."""
    BITS: tl.constexpr = quant_bits(WEIGHT)
    SHIFT: tl.constexpr = 23 - BITS - BITS * step
    if SHIFT >= 0:
        moved = words << SHIFT
    else:
        moved = words >> -SHIFT
    MASK: tl.constexpr = ((1 << BITS) - 1) << (23 - BITS)
    return ((moved & MASK) | one).to(tl.float32, bitcast=True)


@triton.jit
def load_tile(
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    rows: tl.tensor,
    k: tl.tensor,
    KP: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
) -> tl.tensor:
    """Columns [k, k + BK) of weight rows [BN] as [BN, BK] in the type DOT; zeros behind column KP.

    Quants become values here; row scales and `row_factor` are left to whoever has the products.
    """
    TAIL: tl.constexpr = KP % BK != 0
    if GROUP > 0:
        tile = quant_tile(w_ptr, scale_ptr, min_ptr, rows, k, KP, BK, WEIGHT, GROUP, ZERO)
    else:
        columns = k + tl.arange(0, BK)
        places = w_ptr + rows[:, None] * KP + columns[None, :]
        if WEIGHT == "e4m3":
            tile = decode_e4m3(tl.load(places, mask=(columns < KP)[None, :], other=0))
        elif TAIL:
            tile = tl.load(places, mask=(columns < KP)[None, :], other=0.0)
        else:
            tile = tl.load(places)
    return tile.to(float_type(DOT))


@triton.jit
def quant_tile(
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    rows: tl.tensor,
    k: tl.tensor,
    KP: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
) -> tl.tensor:
    """Columns [k, k + BK) of rows [BN] of quants as f32 values [BN, BK]."""
    BITS: tl.constexpr = quant_bits(WEIGHT)
    STEPS: tl.constexpr = 32 // BITS
    UNITS: tl.constexpr = BK // unit_columns(WEIGHT, tl.uint32)
    BN: tl.constexpr = rows.shape[0]
    TAIL: tl.constexpr = KP % BK != 0
    words = tl.reshape(load_units(w_ptr, rows, k, KP, KP, UNITS, WEIGHT, TAIL), (BN, UNITS, 1, 4))
    shifts = (tl.arange(0, STEPS) * BITS)[None, None, :, None]
    # Quant j of word i is column 4 j + i of its unit, so this is their order.
    quants = ((words >> shifts) & ((1 << BITS) - 1)).to(tl.float32) - ZERO
    scale = unit_scales(scale_ptr, rows, k, KP, UNITS, WEIGHT, GROUP, TAIL)
    values = quants * tl.reshape(scale, (BN, UNITS, 1, 1))
    if min_ptr is not None:
        minimum = unit_scales(min_ptr, rows, k, KP, UNITS, WEIGHT, GROUP, TAIL)
        values += tl.reshape(minimum, (BN, UNITS, 1, 1))
    return tl.reshape(values, (BN, BK))
