"""Element types: their names, widths and numpy storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

Kind = Literal["float", "int", "bool"]


@dataclass(frozen=True)
class DType:
    """One element type. `storage` is the numpy dtype a file or an array of this type uses (i4, u4: one byte each)."""

    name: str
    bits: int
    kind: Kind
    storage: np.dtype[np.generic]

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


F32 = DType("f32", 32, "float", np.dtype(np.float32))
F16 = DType("f16", 16, "float", np.dtype(np.float16))
BF16 = DType("bf16", 16, "float", np.dtype(ml_dtypes.bfloat16))
E4M3FN = DType("e4m3fn", 8, "float", np.dtype(ml_dtypes.float8_e4m3fn))
E4M3FNUZ = DType("e4m3fnuz", 8, "float", np.dtype(ml_dtypes.float8_e4m3fnuz))
E5M2 = DType("e5m2", 8, "float", np.dtype(ml_dtypes.float8_e5m2))
I8 = DType("i8", 8, "int", np.dtype(np.int8))
U8 = DType("u8", 8, "int", np.dtype(np.uint8))
I4 = DType("i4", 4, "int", np.dtype(np.int8))
U4 = DType("u4", 4, "int", np.dtype(np.uint8))
I32 = DType("i32", 32, "int", np.dtype(np.int32))
I64 = DType("i64", 64, "int", np.dtype(np.int64))
I1 = DType("i1", 1, "bool", np.dtype(np.bool_))

DTYPES: dict[str, DType] = {t.name: t for t in (F32, F16, BF16, E4M3FN, E4M3FNUZ, E5M2, I8, U8, I4, U4, I32, I64, I1)}


def round_to(values: np.ndarray, dtype: DType) -> np.ndarray:
    """`values` (f32 or f64) rounded to the nearest `dtype`, ties to even, returned in the width of `values`."""
    if not dtype.is_float or (dtype is F32 and values.dtype == np.float32):
        return values
    if dtype is BF16 and values.dtype == np.float32:
        return _round_bf16(values)
    with np.errstate(over="ignore", invalid="ignore"):  # too large is infinite, as IEEE says
        return values.astype(dtype.storage).astype(values.dtype)


def widen(values: np.ndarray) -> np.ndarray:
    """A stored float array (bf16, f16, fp8, f32) as f32, exactly."""
    if values.dtype == BF16.storage:
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


_EXPONENTS = {"f32": 0x7F800000, "f16": 0x7C00, "bf16": 0x7F80}


def all_finite(values: np.ndarray, dtype: DType) -> bool:
    """Whether a stored float array holds no infinity and no NaN; looks at exponents, so it costs one pass."""
    mask = _EXPONENTS.get(dtype.name)
    if mask is None:
        return bool(np.isfinite(widen(values)).all())
    bits: np.ndarray[Any, np.dtype[Any]] = np.ascontiguousarray(values).view(np.uint32 if dtype is F32 else np.uint16)
    return not bool(((bits & mask) == mask).any())


def _round_bf16(values: np.ndarray) -> np.ndarray:
    # ml_dtypes converts element by element; this is the same rounding on whole words, several times faster.
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    # A NaN stays one even when its payload lies in the bits that are cut off; infinities round to themselves.
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits | 0x00400000) & np.uint32(0xFFFF0000), rounded).view(np.float32).reshape(values.shape)
