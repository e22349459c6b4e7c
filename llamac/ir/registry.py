"""Every op llamac knows, by name."""

from __future__ import annotations

from functools import cache

from llamac.errors import did_you_mean

from .definition import OpDefinition, OpError
from .ops import arithmetic, attention, cache_ops, indexing, linear, normalization, quantized, rotary, shapes, weights

_FAMILIES = (
    arithmetic,
    shapes,
    indexing,
    linear,
    normalization,
    rotary,
    attention,
    quantized,
    weights,
    cache_ops,
)


@cache
def all_ops() -> dict[str, OpDefinition]:
    """Name -> definition of every op, family by family."""
    table: dict[str, OpDefinition] = {}
    for family in _FAMILIES:
        for definition in family.OPS:
            if definition.name in table:
                raise ValueError(f"op '{definition.name}' is defined twice")
            table[definition.name] = definition
    return table


def find_op(name: str) -> OpDefinition:
    """The definition of op `name` (OpError with the near match when there is none)."""
    table = all_ops()
    if name not in table:
        raise OpError(f"unknown op '{name}'{did_you_mean(name, table)}")
    return table[name]
