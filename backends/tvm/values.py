"""Numbers in TIR: how stored bits become f32 and f32 becomes stored bits, and the functions that ops are made of.

bf16 and e4m3fn travel as the integers that hold their bits, so that no backend of TVM has to know them.
"""

from __future__ import annotations

from tvm import tirx

from llamac.ir.dtypes import BF16, E4M3FN, F16, F32, DType

from .loops import Expression

STORED = {"f32": "float32", "f16": "float16", "bf16": "uint16", "e4m3fn": "uint8", "i8": "int8", "u8": "uint8",
          "i32": "int32", "i64": "int64"}  # fmt: skip
"""Our dtype -> that of the buffer that holds it."""


def f32(value: float) -> Expression:
    """A constant."""
    return tirx.const(value, "float32")


def i32(value: int) -> Expression:
    """A constant."""
    return tirx.const(value, "int32")


def to_float(value: Expression) -> Expression:
    """An integer as f32."""
    return tirx.Cast("float32", value)


def to_index(value: Expression) -> Expression:
    """An i32 as an index."""
    return tirx.Cast("int64", value)


def widened(value: Expression, dtype: DType) -> Expression:
    """A stored float as f32, exactly."""
    if dtype is F32:
        return value
    if dtype is F16:
        return tirx.Cast("float32", value)
    if dtype is BF16:
        return tirx.reinterpret("float32", tirx.Cast("uint32", value) << tirx.const(16, "uint32"))
    assert dtype is E4M3FN, dtype
    bits = tirx.Cast("uint16", value)
    # The exponent of f16 has 8 more: the same bits there are the value over 256, small ones included.
    half = ((bits & _u16(0x7F)) << _u16(7)) | ((bits & _u16(0x80)) << _u16(8))
    return tirx.Cast("float32", tirx.reinterpret("float16", half)) * f32(256.0)


def narrowed(value: Expression, dtype: DType) -> Expression:
    """f32 as a stored float, rounded to nearest, ties to even."""
    if dtype is F32:
        return value
    if dtype is F16:
        return tirx.Cast("float16", value)
    assert dtype is BF16, dtype
    return tirx.Cast("uint16", _rounded_bits(value) >> tirx.const(16, "uint32"))


def rounded(value: Expression, dtype: DType) -> Expression:
    """f32 rounded to what `dtype` holds, as f32."""
    if dtype is BF16:
        return tirx.reinterpret("float32", _rounded_bits(value) & tirx.const(0xFFFF0000, "uint32"))
    return widened(narrowed(value, dtype), dtype)


def _rounded_bits(value: Expression) -> Expression:
    bits = tirx.reinterpret("uint32", value)
    odd = (bits >> tirx.const(16, "uint32")) & tirx.const(1, "uint32")
    return bits + tirx.const(0x7FFF, "uint32") + odd


def _u16(value: int) -> Expression:
    return tirx.const(value, "uint16")


def exp(x: Expression, on_gpu: bool) -> Expression:
    """e to the power of x: on a GPU its own, else arithmetic that becomes vectors (Cephes' expf, within 2 ulp).

    x is bounded where 2^n has an exponent: what lies below gives 1e-38, not 0.
    """
    if on_gpu:
        return tirx.exp(x)
    bounded = tirx.Max(tirx.Min(x, f32(88.0)), f32(-87.0))
    n = tirx.floor(bounded * f32(1.44269504088896341) + f32(0.5))
    r = bounded - n * f32(0.693359375) + n * f32(2.12194440e-4)
    p: Expression = f32(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f32(coefficient)
    power = tirx.reinterpret("float32", (tirx.Cast("int32", n) + i32(127)) << i32(23))
    return (p * r * r + r + f32(1.0)) * power


def sigmoid(x: Expression, on_gpu: bool) -> Expression:
    """1 / (1 + exp(-x))."""
    return f32(1.0) / (f32(1.0) + exp(f32(0.0) - x, on_gpu))


def silu(x: Expression, on_gpu: bool) -> Expression:
    """x * sigmoid(x)."""
    return x / (f32(1.0) + exp(f32(0.0) - x, on_gpu))
