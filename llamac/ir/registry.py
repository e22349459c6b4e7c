"""Every op llamac knows, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from llamac.errors import did_you_mean

from .definition import OpDefinition, OpError, Signature, check_type
from .graph import Attribute
from .ops import (
    arithmetic,
    attention,
    cache_ops,
    collectives,
    cross_attention,
    encoder_kernels,
    encoder_ops,
    expert_kernels,
    gated_kernels,
    head,
    indexing,
    linear,
    normalization,
    packed_weights,
    picture_kernels,
    qkv_kernels,
    quantized,
    rotary,
    routing,
    row_kernels,
    shapes,
    temperature,
    tile_ops,
    vision_ops,
    weights,
)
from .types import Type

_FAMILIES = (
    arithmetic,
    shapes,
    indexing,
    linear,
    normalization,
    rotary,
    attention,
    temperature,
    routing,
    quantized,
    head,
    expert_kernels,
    row_kernels,
    vision_ops,
    weights,
    packed_weights,
    cache_ops,
    cross_attention,
    encoder_ops,
    encoder_kernels,
    gated_kernels,
    tile_ops,
    picture_kernels,
    qkv_kernels,
    collectives,
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


def infer_types(opcode: str, types: Sequence[Type], attributes: Mapping[str, Attribute]) -> list[Type]:
    """The result types of an op on operands of `types` (OpError when the op is not well formed)."""
    definition = find_op(opcode)
    definition.check_signature(len(types), attributes)
    found = list(definition.infer(Signature(types, attributes)))
    for result in found:
        check_type(result)
    return found
