"""Casts: of known numbers, of stored tensors and rows of tables as what they are used as, and of values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llamac.ir.dtypes import I1, DType

from . import table_rows
from .call import DTYPES, Call, Found, LastToken, Rows
from .known import Known, Literal, Ramp, equal, the_number, uniform
from .packed import Packed
from .stored import ENCODINGS, Stored


def cast(call: Call) -> Found:
    """A cast to any type that the import knows; LLC0935 for another."""
    kind = call.attribute("to", 0)
    if kind not in DTYPES:
        raise call.unsupported(f"a cast to ONNX type {kind}")
    dtype, found = DTYPES[kind], call.raw(0)
    if isinstance(found, Stored) and found.type in ENCODINGS and kind in ENCODINGS:
        return replace(found, cast_to=kind)
    if isinstance(found, LastToken) and kind in ENCODINGS:
        return replace(found, tokens=call.cast(call.value(found.tokens), dtype))
    if isinstance(found, Packed) and kind in ENCODINGS:
        return found
    if isinstance(found, Rows) and (rows := table_rows.cast(found, kind)) is not None:
        return rows
    if isinstance(found, Literal | Ramp):
        return _cast_known(call, found, dtype)
    return call.cast(call.value(found), dtype)


def _cast_known(call: Call, known: Known, dtype: DType) -> Known:
    if dtype is I1:
        number = the_number(known)
        if number is not None:
            return uniform(known.shape, not equal(number, 0), I1)
    if isinstance(known, Ramp):
        start = int(known.start) if isinstance(known.start, bool) else known.start
        return Ramp(known.shape, start, known.steps, dtype)
    values = known.values.copy()
    for index in _indices(values.shape):
        number = values[index]
        plain = isinstance(number, bool | float)
        values[index] = (
            (float(number) if dtype.is_float else bool(number) if dtype is I1 else int(number)) if plain else number
        )
    return Literal(values, dtype)


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(np.ndindex(*shape))
