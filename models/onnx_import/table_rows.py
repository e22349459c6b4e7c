"""Lookups in tables of integers, which exporters write as several ops on what was looked up.

Rows of integers, of their scales and of minima are looked up apart, made numbers, and put together; the steps from the
one to the other are followed, until a matrix of integers with scales is known whose rows they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llamac.ir.dims import DimLike

from .call import Call, Found, Minima, Rows
from .known import Literal, Ramp, the_number
from .minima import with_minima
from .packed import INTEGERS, Packed, group_of, is_float
from .proto import BFLOAT16, FLOAT, FLOAT16, UINT4, UINT8
from .stored import Stored

_AFTER = (FLOAT, FLOAT16, BFLOAT16)


def rows_of_table(call: Call, table: Stored | Packed | Minima, axis: int) -> Rows:
    """Gather along an axis of a table; along its second axis the rows are columns until they are turned."""
    ids = call.tensor(1)
    seen = _seen(table)
    rest = (*seen[:axis], *seen[axis + 1 :])
    shape = (*ids.tensor.shape, *rest) if axis == 0 else (*rest, *ids.tensor.shape)
    kept = table if axis == 0 or (isinstance(table, Stored) and len(table.shape) == 3) else table.turned()
    steps: tuple[object, ...] = () if axis == 0 else ("columns",)
    if isinstance(table, Stored) and len(table.shape) == 3:
        steps = (*steps, "bytes")
    return Rows(kept, ids, shape, steps)


def _seen(table: Stored | Packed | Minima) -> tuple[int, ...]:
    return table.shape if isinstance(table, Packed) else table.scales.seen if isinstance(table, Minima) else table.seen


def turned(call: Call, found: Rows, order: list[int]) -> Found | None:
    """Columns put behind the tokens; None for another order."""
    if found.steps[:1] == ("columns",) and order == [*range(1, len(found.shape)), 0]:
        return replace(found, steps=found.steps[1:], shape=(*found.shape[1:], found.shape[0]))
    return None


def reshaped(found: Rows, shape: Sequence[DimLike]) -> Rows | None:
    """Rows as groups, groups as rows, and one number for each group; None for another shape."""
    if _is_last(found.steps, "pairs"):
        groups = found.shape[-3]
        wide = (*found.shape[:-3], groups, _twice(found.shape[-2]))
        return replace(found, shape=wide, steps=(*found.steps[:-1], "nibbles")) if tuple(shape) == wide else None
    tokens = found.ids.tensor.shape
    before, after = found.shape[len(tokens) :], tuple(shape)[len(tokens) :]
    if tuple(shape)[: len(tokens)] != tokens or not after or "columns" in found.steps:
        return None
    if _count(before) != _count(after) or (tuple(shape) != found.shape and len(after) > 2 and after[-1] != 1):
        return None
    return replace(found, shape=tuple(shape))


def _is_last(steps: tuple[object, ...], step: object) -> bool:
    return bool(steps) and steps[-1] == step


def _twice(size: DimLike) -> DimLike:
    return size * 2


def _count(sizes: Sequence[DimLike]) -> DimLike:
    total: DimLike = 1
    for size in sizes:
        total = total * size
    return total


def cast(found: Rows, kind: int) -> Rows | None:
    """Integers as numbers."""
    table = found.table
    if not isinstance(table, Stored) or table.type not in INTEGERS or kind not in _AFTER:
        return None
    return replace(found, steps=(*found.steps, "numbers"))


def combined(call: Call, op: str) -> Found | None:
    """Less the middle, times the scales, plus the minima: one step further. None for what is none of these."""
    a, b = call.raw(0), call.raw(1)
    if op in ("Mul", "Add") and isinstance(b, Rows) and not isinstance(a, Rows):
        a, b = b, a
    if not isinstance(a, Rows):
        return None
    if op == "Sub" and isinstance(b, Literal | Ramp):
        return _less(a, the_number(b))
    if isinstance(b, Rows) and a.ids is b.ids:
        if op == "Mul":
            return _scaled(call, a, b) or _scaled(call, b, a)
        if op == "Add":
            return _with_minima(call, a, b) or _with_minima(call, b, a)
    return None


def _less(found: Rows, number: object) -> Rows | None:
    if not isinstance(number, int | float) or not _is_last(found.steps, "numbers"):
        return None
    return replace(found, steps=(*found.steps, float(number)))


def _scaled(call: Call, quants: Rows, scales: Rows) -> Rows | None:
    table, held = quants.table, scales.table
    if not isinstance(table, Stored) or table.type not in INTEGERS or "numbers" not in quants.steps:
        return None
    if not isinstance(held, Stored) or scales.steps or len(held.shape) != 2 or not is_float(held):
        return None
    place = quants.steps.index("numbers")
    (zero,) = quants.steps[place + 1 :] or (0.0,)
    assert isinstance(zero, float)
    packed = _packed(table, held, quants.steps[:place], zero)
    groups = len(quants.ids.tensor.shape)
    if packed is None or scales.shape[groups:] != (packed.groups, 1) or quants.shape[groups:-1] != (packed.groups,):
        return None
    return Rows(packed, quants.ids, quants.shape, ("groups",))


def _packed(table: Stored, scales: Stored, steps: tuple[object, ...], zero: float) -> Packed | None:
    """The matrix that rows of integers and of scales are of."""
    if steps in (("bytes", "nibbles"), ("bytes",)) and len(table.shape) == 3 and table.type == UINT8:
        rows, groups, held = table.shape
        columns = groups * held * (2 if "nibbles" in steps else 1)
        kind = UINT4 if "nibbles" in steps else UINT8
        table = replace(table, type=kind, shape=(rows, columns))
    elif steps or len(table.shape) != 2:
        return None
    rows, columns = table.seen
    groups = scales.seen[1]
    if not groups or columns % groups:
        return None
    return Packed(table, scales, (rows, columns), group_of(columns // groups, columns), zero)


def _with_minima(call: Call, rows: Rows, minima: Rows) -> Rows | None:
    if not isinstance(rows.table, Packed) or rows.steps != ("groups",) or minima.steps:
        return None
    if isinstance(minima.table, Packed) or minima.shape != (*rows.shape[:-1], 1):
        return None
    return replace(rows, table=with_minima(call, rows.table, minima.table))


def joined(call: Call, found: Rows) -> Rows | None:
    """Rows of a matrix whose groups were apart, as rows again."""
    columns = found.shape[-1]
    if isinstance(found.table, Packed) and found.steps == ("groups",) and columns == found.table.shape[1]:
        return replace(found, steps=())
    return None


# Two integers of 4 bits in a byte.


def low_half(call: Call) -> Found:
    """BitwiseAnd with 15."""
    return _half(call, 15, "low")


def high_half(call: Call) -> Found:
    """A shift by 4."""
    call.expect("direction", "RIGHT")
    return _half(call, 4, "high")


def _half(call: Call, wanted: int, step: str) -> Found:
    found, by = call.raw(0), call.known(1)
    if not isinstance(found, Rows) or by is None or the_number(by) != wanted or found.steps != ("bytes",):
        raise call.unsupported("it is imported for rows of a table of 4-bit integers only")
    return replace(found, steps=("bytes", step))


def pairs(call: Call, found: Sequence[Found], axis: int) -> Rows | None:
    """The low and the high halves side by side; None for anything else."""
    parts = [part for part in found if isinstance(part, Rows)]
    if len(found) != 2 or len(parts) != 2 or [part.steps for part in parts] != [("bytes", s) for s in ("low", "high")]:
        return None
    first, second = parts
    shape = first.shape
    if first.table is not second.table or first.ids is not second.ids or shape[-1] != 1 or shape != second.shape:
        return None
    if axis not in (-1, len(shape) - 1):
        return None
    return replace(first, shape=(*shape[:-1], 2), steps=("bytes", "pairs"))
