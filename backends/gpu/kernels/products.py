"""Products of activations with packed weights, the heart of every linear kernel: `few_rows` and `many_rows`.

`few_rows` reads each weight once, 16 bytes a thread, and multiplies it with up to 16 activation rows: for decoding,
where memory is the limit. `many_rows` feeds matrix units. In both the weight rows come as a tensor of row numbers, so
that one kernel can take rows from two places: gate and up, the two halves of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .packed import (
    INTERPRETED,
    decode_e4m3,
    float_type,
    fraction,
    load_tile,
    load_units,
    quant_bits,
    row_factor,
    unit_columns,
    unit_scales,
)


@triton.jit
def load_lanes(
    ptr: tl.tensor,
    rows: tl.tensor,
    stride: tl.constexpr,
    k: tl.tensor,
    K: tl.constexpr,
    UNITS: tl.constexpr,
    LANES: tl.constexpr,
    STEP: tl.constexpr,
    TAIL: tl.constexpr,
) -> tl.tensor:
    """f32 [M, 1, UNITS, LANES]: columns k + u * STEP + lane of activation rows [M]; zeros behind column K.

    Loaded at most 16 bytes at once and joined in registers: a thread gets the columns of its own weight unit.
    """
    WIDE: tl.constexpr = 128 // ptr.dtype.element_ty.primitive_bitwidth
    WIDTH: tl.constexpr = LANES if LANES < WIDE else WIDE
    M: tl.constexpr = rows.shape[0]
    if WIDTH == LANES:
        x = _load_part(ptr, rows, stride, k, K, UNITS, STEP, WIDTH, TAIL)
    else:
        if 2 * WIDTH == LANES:
            first = _load_part(ptr, rows, stride, k, K, UNITS, STEP, WIDTH, TAIL)
            second = _load_part(ptr, rows, stride, k + WIDTH, K, UNITS, STEP, WIDTH, TAIL)
            x = tl.permute(tl.join(first, second), (0, 1, 3, 2))
        else:
            tl.static_assert(4 * WIDTH == LANES)
            first = _load_part(ptr, rows, stride, k, K, UNITS, STEP, WIDTH, TAIL)
            second = _load_part(ptr, rows, stride, k + WIDTH, K, UNITS, STEP, WIDTH, TAIL)
            third = _load_part(ptr, rows, stride, k + 2 * WIDTH, K, UNITS, STEP, WIDTH, TAIL)
            fourth = _load_part(ptr, rows, stride, k + 3 * WIDTH, K, UNITS, STEP, WIDTH, TAIL)
            x = tl.permute(tl.join(tl.join(first, second), tl.join(third, fourth)), (0, 1, 4, 3, 2))
    return tl.reshape(x, (M, 1, UNITS, LANES))


@triton.jit
def _load_part(
    ptr: tl.tensor,
    rows: tl.tensor,
    stride: tl.constexpr,
    k: tl.tensor,
    K: tl.constexpr,
    UNITS: tl.constexpr,
    STEP: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
) -> tl.tensor:
    columns = k + (tl.arange(0, UNITS) * STEP)[:, None] + tl.arange(0, WIDTH)[None, :]
    places = ptr + (rows.to(tl.int64) * stride)[:, None, None] + columns[None, :, :]
    if TAIL:
        return tl.load(places, mask=(columns < K)[None, :, :], other=0.0).to(tl.float32)
    return tl.load(places).to(tl.float32)


@triton.jit
def _activation(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    x_rows: tl.tensor,
    X_STRIDE: tl.constexpr,
    k: tl.tensor,
    K: tl.constexpr,
    UNITS: tl.constexpr,
    LANES: tl.constexpr,
    STEP: tl.constexpr,
    TAIL: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The activations times their norm weights, where there are any, and the sums of their squares [M, 1, UNITS]."""
    x = load_lanes(x_ptr, x_rows, X_STRIDE, k, K, UNITS, LANES, STEP, TAIL)
    squares = tl.sum(x * x, 3)
    if norm_ptr is not None:
        x *= load_lanes(norm_ptr, tl.arange(0, 1), K, k, K, UNITS, LANES, STEP, TAIL)
    return x, squares


@triton.jit
def _quant_step(
    units: tl.tensor,
    x: tl.tensor,
    total: tl.tensor,
    one: tl.tensor,
    STEP: tl.constexpr,
    WEIGHT: tl.constexpr,
) -> tl.tensor:
    """total [M, BN, UNITS, 4] plus x times quant STEP of each word of units [BN, UNITS, 4], as 1 + quant / 2^bits."""
    words = tl.reshape(units, (1, units.shape[0], units.shape[1], 4))
    return total + fraction(words, one, STEP, WEIGHT) * x


@triton.jit
def _scaled(
    total: tl.tensor,
    sums: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    rows: tl.tensor,
    k: tl.tensor,
    KP: tl.constexpr,
    UNITS: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    TAIL: tl.constexpr,
) -> tl.tensor:
    """Products [M, BN, UNITS] of the values that fractions stand for, from their sums and those of the activations."""
    STEPS: tl.constexpr = 1 << quant_bits(WEIGHT)
    quants = STEPS * tl.sum(total, 3) - (STEPS + ZERO) * sums
    scaled = quants * unit_scales(scale_ptr, rows, k, KP, UNITS, WEIGHT, GROUP, TAIL)
    if min_ptr is not None:
        scaled += sums * unit_scales(min_ptr, rows, k, KP, UNITS, WEIGHT, GROUP, TAIL)
    return scaled


@triton.jit
def few_rows(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    x_rows: tl.tensor,
    rows: tl.tensor,
    rows2: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    one: tl.tensor,
    K: tl.constexpr,
    KP: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    PAIRED: tl.constexpr,
    PDL: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """x[x_rows] W[rows]^T and x[x_rows] W[rows2]^T over columns [start, stop): two f32 [M, BN]; sums of squares [M, 1].

    x rows [M] are multiplied with the norm weights where there are any; dividing by the root of the mean square is
    left to the caller, who gets the sums of squares of these columns. The first units are asked for before anything
    that the previous kernel writes is touched, later ones before the current ones are used. Without PAIRED, rows2 is
    not looked at. Row scales are applied. `one` is `exponent_of_one`.
    """
    UNIT: tl.constexpr = unit_columns(WEIGHT, w_ptr.dtype.element_ty)
    UNITS: tl.constexpr = BK // UNIT
    M: tl.constexpr = x_rows.shape[0]
    BN: tl.constexpr = rows.shape[0]
    TAIL: tl.constexpr = KP % BK != 0
    X_TAIL: tl.constexpr = K % BK != 0 or KP != K
    units = load_units(w_ptr, rows, start, stop, KP, UNITS, WEIGHT, True)
    units2 = units
    if PAIRED:
        units2 = load_units(w_ptr, rows2, start, stop, KP, UNITS, WEIGHT, True)
    wait(PDL)
    y = tl.zeros((M, BN, UNITS), tl.float32)
    y2 = tl.zeros((M, BN, UNITS), tl.float32)
    squares = tl.zeros((M, 1, UNITS), tl.float32)
    for k in range(start, stop, BK):
        following = load_units(w_ptr, rows, k + BK, stop, KP, UNITS, WEIGHT, True)
        following2 = following
        if PAIRED:
            following2 = load_units(w_ptr, rows2, k + BK, stop, KP, UNITS, WEIGHT, True)
        if GROUP > 0:
            total = tl.zeros((M, BN, UNITS, 4), tl.float32)
            total2 = total
            sums = tl.zeros((M, 1, UNITS), tl.float32)
            for step in tl.static_range(32 // quant_bits(WEIGHT)):
                x, more = _activation(x_ptr, norm_ptr, x_rows, X_STRIDE, k + 4 * step, K, UNITS, 4, UNIT, X_TAIL)
                squares += more
                sums += tl.sum(x, 3)
                total = _quant_step(units, x, total, one, step, WEIGHT)
                if PAIRED:
                    total2 = _quant_step(units2, x, total2, one, step, WEIGHT)
            y += _scaled(total, sums, scale_ptr, min_ptr, rows, k, KP, UNITS, WEIGHT, GROUP, ZERO, TAIL)
            if PAIRED:
                y2 += _scaled(total2, sums, scale_ptr, min_ptr, rows2, k, KP, UNITS, WEIGHT, GROUP, ZERO, TAIL)
        else:
            x, more = _activation(x_ptr, norm_ptr, x_rows, X_STRIDE, k, K, UNITS, UNIT, UNIT, X_TAIL)
            squares += more
            y += tl.sum(_dense(units, WEIGHT) * x, 3)
            if PAIRED:
                y2 += tl.sum(_dense(units2, WEIGHT) * x, 3)
        units = following
        units2 = following2
    first = row_scaled(tl.sum(y, 2), scale_ptr, w_ptr, rows, WEIGHT, GROUP)
    second = first
    if PAIRED:
        second = row_scaled(tl.sum(y2, 2), scale_ptr, w_ptr, rows2, WEIGHT, GROUP)
    return first, second, tl.sum(squares, 2)


@triton.jit
def _dense(units: tl.tensor, WEIGHT: tl.constexpr) -> tl.tensor:
    """Units [BN, UNITS, lanes] of floats as f32 [1, BN, UNITS, lanes]."""
    shaped = tl.reshape(units, (1, units.shape[0], units.shape[1], units.shape[2]))
    if WEIGHT == "e4m3":
        return decode_e4m3(shaped).to(tl.float32)
    return shaped.to(tl.float32)


@triton.jit
def row_scaled(
    y: tl.tensor,
    scale_ptr: tl.tensor,
    w_ptr: tl.tensor,
    rows: tl.tensor,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """y [M, BN] times the scales of its weight rows, where a format has them."""
    if GROUP == 0 and scale_ptr is not None:
        y = y * (tl.load(scale_ptr + rows)[None, :] * row_factor(WEIGHT, w_ptr.dtype.element_ty))
    return y


@triton.jit
def sums_of_squares(
    x_ptr: tl.tensor, x_rows: tl.tensor, K: tl.constexpr, X_STRIDE: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """f32 [M, 1]: the sum of squares of whole activation rows [M]."""
    total = tl.zeros((x_rows.shape[0], BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        columns = k + tl.arange(0, BLOCK)
        places = x_ptr + (x_rows.to(tl.int64) * X_STRIDE)[:, None] + columns[None, :]
        x = tl.load(places, mask=(columns < K)[None, :], other=0.0).to(tl.float32)
        total += x * x
    return tl.sum(total, 1)[:, None]


@triton.jit
def wait(PDL: tl.constexpr) -> None:
    """Let the next kernel start, then wait for all that the previous one wrote."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def multiply(a: tl.tensor, b: tl.tensor, total: tl.tensor) -> tl.tensor:
    """total + a b. The interpreter multiplies the bits of 16-bit floats, so it gets f32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def load_activations(
    x_ptr: tl.tensor,
    x_rows: tl.tensor,
    k: tl.tensor,
    K: tl.constexpr,
    X_STRIDE: tl.constexpr,
    BK: tl.constexpr,
    TAIL: tl.constexpr,
) -> tl.tensor:
    """Columns [k, k + BK) of activation rows [BM] (i64) as [BM, BK]; zeros behind column K, where TAIL has any."""
    columns = k + tl.arange(0, BK)
    places = x_ptr + x_rows[:, None] * X_STRIDE + columns[None, :]
    if TAIL:
        x = tl.load(places, mask=(columns < K)[None, :], other=0.0)
    else:
        x = tl.load(places)
    if x_ptr.dtype.element_ty == tl.uint8:
        x = decode_e4m3(x)
    return x


@triton.jit
def many_rows(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    w_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    min_ptr: tl.tensor,
    x_rows: tl.tensor,
    rows: tl.tensor,
    rows2: tl.tensor,
    K: tl.constexpr,
    KP: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EPS: tl.constexpr,
    BK: tl.constexpr,
    WEIGHT: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    PAIRED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """W[rows] n^T and W[rows2] n^T of n = [rms_norm](x[x_rows]): two f32 [BN, BM], the second only when PAIRED.

    Weights are the left operand: their rows fill the instruction's fixed side, so that few activation rows waste
    little, and quants can go from registers straight into the product. What scales whole rows, of the weights or of
    the activations, is applied to what comes out; x times the norm weights must fit DOT, so f16 takes no norm here.
    """
    BN: tl.constexpr = rows.shape[0]
    BM: tl.constexpr = x_rows.shape[0]
    TAIL: tl.constexpr = K % BK != 0 or KP != K
    tl.static_assert(norm_ptr is None or DOT != "f16", "unscaled activations can exceed f16")
    y = tl.zeros((BN, BM), tl.float32)
    y2 = tl.zeros((BN, BM), tl.float32)
    squares = tl.zeros((BM, BK), tl.float32)
    for k in range(0, KP, BK):
        x = load_activations(x_ptr, x_rows, k, K, X_STRIDE, BK, TAIL)
        if norm_ptr is not None:
            wide = x.to(tl.float32)
            squares += wide * wide
            x = wide * load_activations(norm_ptr, tl.arange(0, 1), k, K, K, BK, TAIL).to(tl.float32)
        x = tl.trans(x.to(float_type(DOT)))
        w = load_tile(w_ptr, scale_ptr, min_ptr, rows, k, KP, BK, WEIGHT, GROUP, ZERO, DOT)
        y = multiply(w, x, y)
        if PAIRED:
            w2 = load_tile(w_ptr, scale_ptr, min_ptr, rows2, k, KP, BK, WEIGHT, GROUP, ZERO, DOT)
            y2 = multiply(w2, x, y2)
    if norm_ptr is not None:
        factor = tl.rsqrt(tl.sum(squares, 1) / K + EPS)[None, :]
        y *= factor
        y2 *= factor
    if GROUP == 0 and scale_ptr is not None:
        FACTOR: tl.constexpr = row_factor(WEIGHT, w_ptr.dtype.element_ty)
        y *= tl.load(scale_ptr + rows)[:, None] * FACTOR
        if PAIRED:
            y2 *= tl.load(scale_ptr + rows2)[:, None] * FACTOR
    return y, y2
