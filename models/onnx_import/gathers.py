"""Lookups: rows of stored tables, sizes out of shapes, positions by positions, and the last token of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llamac.ir.dims import DimLike

from . import table_rows
from .call import TOKENS, Call, Found, Importer, LastToken, Minima
from .known import Indices, Literal, NotKnown, Number, Ramp, listed_sizes, plus, the_number, uniform
from .packed import Packed
from .shapes import INT64_END, moved, part_of, shape_of
from .stored import ENCODINGS, Stored


def _gather_nd(call: Call) -> Found:
    """From a tensor with one number everywhere, or of positions; the last token of every sequence."""
    known, indices = call.known(0), shape_of(call, 1)
    number = None if known is None else the_number(known)
    batch = call.attribute("batch_dims", 0)
    if batch == 1 and (last := _last_token(call, indices)) is not None:
        return last
    if isinstance(known, Ramp) and number is None and not batch:
        return _picked(call, known, call.raw(1))
    if known is None or number is None or not isinstance(indices[-1], int) or batch:
        raise call.unsupported("it is imported for the attention mask only")
    return uniform((*indices[:-1], *known.shape[indices[-1] :]), number, known.dtype)


def _picked(call: Call, known: Ramp, found: Found) -> Ramp:
    """Numbers of a ramp by known places: a ramp again."""
    if not isinstance(found, Indices) or len(found.parts) != len(known.shape):
        raise call.unsupported("a ramp is looked up at places that are not known")
    start: Number = known.start
    steps = [0] * (len(found.shape) - 1)
    try:
        for by, part in zip(known.steps, found.parts, strict=True):
            start = plus(start, part.start * by)
            steps = [total + by * step for total, step in zip(steps, part.steps[:-1], strict=True)]
    except NotKnown as error:
        raise call.unsupported(str(error)) from None
    return Ramp(found.shape[:-1], start, tuple(steps), known.dtype)


def _last_token(call: Call, indices: Sequence[DimLike]) -> LastToken | None:
    """The row T - 1 of the one sequence."""
    found, place = call.raw(0), call.known(1)
    if isinstance(found, Literal | Ramp) or place is None or the_number(place) != TOKENS - 1 or list(indices) != [1, 1]:
        return None
    x = call.value(found)
    shape = x.tensor.shape
    return LastToken(x, (1, *shape[2:])) if shape[:2] == (1, TOKENS) else None


def _gather(call: Call) -> Found:
    data = call.raw(0)
    if isinstance(data, Stored | Packed | Minima):
        return _look_up(call, data)
    shape, indices = shape_of(call, 0), shape_of(call, 1)
    axis = call.axis(len(shape), 0)
    if isinstance(data, Literal | Ramp):
        number = the_number(data)
        if number is not None:
            return uniform((*shape[:axis], *indices, *shape[axis + 1 :]), number, data.dtype)
    places = call.integers(1)
    if isinstance(data, Literal):
        if any(not -data.values.shape[axis] <= place < data.values.shape[axis] for place in places):
            raise call.unsupported(f"elements {places} of {list(shape)}")
        index = np.array(places).reshape([int(n) for n in indices if isinstance(n, int)])
        try:
            listed_sizes((*shape[:axis], *indices, *shape[axis + 1 :]))
        except NotKnown as error:
            raise call.unsupported(str(error)) from None
        return Literal(np.asarray(np.take(data.values, index, axis), object), data.dtype)
    if len(places) != 1:
        raise call.unsupported(f"elements {places} of an axis")
    stop = places[0] + 1 if places[0] != -1 else INT64_END
    kept = part_of(call, data, axis, places[0], stop)
    return _selected(call, kept, (*shape[:axis], *indices, *shape[axis + 1 :]))


def _selected(call: Call, kept: Found, shape: Sequence[DimLike]) -> Found:
    if isinstance(kept, Literal | Ramp):
        return moved(call, kept, shape)
    if isinstance(kept, LastToken):
        return replace(kept, shape=tuple(shape))
    return call.reshape(call.value(kept), shape)


def _look_up(call: Call, table: Stored | Packed | Minima) -> Found:
    """Rows of a stored table: the embedding by ids, or cosines and sines by positions."""
    rank = len(table.shape) if isinstance(table, Stored) else 2
    axis = call.axis(rank, 0)
    if rank not in (2, 3) or axis > 1 or (rank == 3 and axis):
        raise call.unsupported("of a stored tensor it is imported for rows of a table only")
    is_floats = isinstance(table, Stored) and rank == 2 and axis == 0 and table.type in ENCODINGS
    if is_floats and isinstance(table, Stored) and (rotary := call.around.rope_rows(call, table, call.tensor(1))):
        return rotary
    return table_rows.rows_of_table(call, table, axis)


GATHERS: dict[str, Importer] = {"Gather": _gather, "GatherND": _gather_nd}
"""Op -> what imports it."""
