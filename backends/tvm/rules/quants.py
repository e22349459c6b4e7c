"""Activations as int8 with a scale for each block: of rows, of a norm, of a gated activation."""

from __future__ import annotations

from tvm import tirx

from ..kernel import Kernel
from ..loops import Buffer, Expression, index
from ..values import f32, silu
from .rows import mean_inverse, sum_of_squares

SMALLEST = 2.0**-120
"""Largest magnitudes below this count as 0: their inverse would overflow."""


def quantize_block(k: Kernel, t: Expression, block: Expression, size: int, values: Buffer) -> None:
    """Store a block of `size` values of row t: quants, scale max|x| / 127, sum of the quants (results 0, 1 and 2)."""
    code = k.code
    largest = code.filled(1, 0.0)
    with code.loop(size) as i:
        code.store(largest, [0], tirx.Max(largest[index(0)], tirx.abs(values[i])))
    top = code.kept(tirx.Select(largest[index(0)] < f32(SMALLEST), f32(0.0), largest[index(0)]))
    inverse = code.kept(tirx.if_then_else(top > f32(0.0), f32(127.0) / top, f32(0.0)))
    total = code.filled(1, 0, "int32")
    with code.loop(size) as i:
        quant = code.kept(tirx.Cast("int32", tirx.nearbyint(values[i] * inverse)), "int32")
        code.store(total, [0], total[index(0)] + quant)
        k.store(0, [t, block * size + i], tirx.Cast("int8", quant))
    k.store(1, [t, block], top / f32(127.0))
    k.store(2, [t, block], total[index(0)])


def _in_blocks(k: Kernel, t: Expression, columns: int, value: object) -> None:
    """Quantize value(i), i < columns, of row t; what pads the last block is 0."""
    assert callable(value)
    size = k.integer("block")
    with k.code.loop(k.integer("padded") // size) as block:
        values = k.code.local(size)
        with k.code.loop(size) as i:
            at = block * size + i
            inside = tirx.if_then_else(at < columns, value(at), f32(0.0))
            k.code.store(values, [i], inside if k.integer("padded") != columns else value(at))
        quantize_block(k, t, block, size, values)


def quantize_rows(k: Kernel) -> None:
    """Rows as they are."""
    with k.code.each(k.rows()) as t:
        _in_blocks(k, t, k.width(), lambda i: k.load(0, t, i))


def rms_norm_quantized(k: Kernel) -> None:
    """Rows over their root mean square, times a weight."""
    width = k.width()
    with k.code.each(k.rows()) as t:
        inverse = mean_inverse(k, sum_of_squares(k, t, index(0), width), width)
        _in_blocks(k, t, width, lambda i: k.load(0, t, i) * inverse * k.load(1, i))


def swiglu_quantized(k: Kernel) -> None:
    """silu(gate) * up of rows that hold gates, then as many ups."""
    width = k.width() // 2
    with k.code.each(k.rows()) as t:
        _in_blocks(k, t, width, lambda i: silu(k.load(0, t, i), k.code.on_gpu) * k.load(0, t, width + i))


RULES = {
    "quantize_rows": quantize_rows,
    "rms_norm_quantized": rms_norm_quantized,
    "swiglu_quantized": swiglu_quantized,
}
"""Opcode -> rule."""
