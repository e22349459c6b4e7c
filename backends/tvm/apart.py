"""Kernels of the CPU backend that do more than one thing, as the ops that they were fused from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llamac.ir.builder import make_op
from llamac.ir.graph import Attribute, Op

_PRODUCTS = {"qkv_dense": ("linear_dense", 2), "qkv_grouped": ("linear_grouped", 4)}
"""Opcode -> the product in it, and the operand that is its weight."""


@contextmanager
def apart(op: Op) -> Iterator[list[Op]]:
    """The ops that `op` stands for, in order, the last with its results; `op` alone where it is a single one.

    They belong to no graph, and are no users of its values any more behind the `with`.
    """
    parts = _projection(op) if op.opcode in _PRODUCTS else [op]
    try:
        yield parts
    finally:
        for part in parts:
            if part is not op:
                part.drop_operands()


def _projection(op: Op) -> list[Op]:
    product, at = _PRODUCTS[op.opcode]
    cache, positions, angles = op.operands[0], op.operands[at + 1 : at + 4], op.operands[at + 4 :]
    given, heads = op.attributes, int(str(op.attributes["heads"]))
    kept: dict[str, Attribute] = {name: given[name] for name in ("format", "rows", "columns")}
    parts = [make_op(product, op.operands[1 : at + 1], kept, op.location)]
    width: dict[str, Attribute] = {"head_dim": cache.cache.head_dim}
    if "qk_eps" in given:
        norm = {**width, "heads": heads + cache.cache.kv_heads, "eps": given["qk_eps"]}
        parts.append(make_op("norm_heads", (parts[-1].result,), norm, op.location))
    if "floor" in given:
        temper = {**width, "heads": heads, "floor": given["floor"], "scale": given["scale"]}
        parts.append(make_op("temper_heads", (parts[-1].result, positions[0]), temper, op.location))
    places: dict[str, Attribute] = {"layer": given["layer"], "heads": heads}
    appended = (cache, parts[-1].result, *angles, *positions)
    return [*parts, make_op("rope_append" if angles else "append", appended, places, op.location)]
