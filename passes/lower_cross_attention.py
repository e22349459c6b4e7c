"""What lower-kv-cache does to layers that attend to vision tokens.

Before: `cross_attention(norm(heads(linear x)), %cross_k.i, %cross_v.i, start, stop)`, `transpose`, `reshape`
After:  `attend_range(norm_heads(linear x), cache.cross, start, stop, sequence_of_token, page_tables.cross)`

The keys and values are in the cache when the step runs: encoding the picture put them there, so the step only reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.dtypes import DTYPES
from llamac.ir.graph import Op, Value
from llamac.ir.types import CacheType
from llamac.transform.pattern import Any, AnyWeight, Match, Node, match

CACHE, TABLES = "cache.cross", "page_tables.cross"
"""The arguments that hold the cache of vision tokens and its page tables."""

PAST_PREFIXES = ("past_k.", "past_v.", "cross_k.", "cross_v.")
"""Arguments that become places in a cache."""

_HEADS = Node("transpose", Node("reshape", Any("flat")), name="heads")
_NORMED = Node("rms_norm", _HEADS, AnyWeight("weight"), name="norm")


@dataclass(frozen=True)
class CrossLayer:
    """One attention to vision tokens: the rows q is made of, its norm, and the rows that come out."""

    rows: Value
    weight: Value
    eps: float
    mixed: Value
    inside: frozenset[Op]


def read_cross_layer(op: Op) -> CrossLayer:
    """The parts of a `cross_attention` (LLC0505 when it is built otherwise)."""
    producer = op.operands[0].producer
    found = match(_NORMED, producer) if producer is not None else None
    if found is None or not _splits_rows(found):
        raise LlamacError("LLC0505", op.location, "q is not the norm of a product's heads")
    keys, values = (v.reference.removeprefix("%") for v in op.operands[1:3])
    if not keys.startswith("cross_k.") or values != keys.replace("cross_k.", "cross_v."):
        raise LlamacError("LLC0505", op.location, f"attends to %{keys} and %{values}, not to a layer's vision tokens")
    if [(v.producer, v.name) for v in op.operands[3:]] != [(None, "vision_start"), (None, "vision_stop")]:
        raise LlamacError("LLC0505", op.location, "the ranges are not %vision_start and %vision_stop")
    mixed, after = _joined(op)
    eps = found.op("norm").attributes["eps"]
    assert isinstance(eps, float)
    inside = {found.op("norm"), found.op("heads"), *after}
    inside |= {v.producer for v in found.op("heads").operands if v.producer is not None}
    return CrossLayer(found["flat"], found["weight"], eps, mixed, frozenset(inside))


def _splits_rows(found: Match) -> bool:
    """Whether [T, H h] became [H, T, h]."""
    heads, tokens, width = found["heads"].tensor.shape
    order = found.op("heads").attributes["permutation"]
    return order == (1, 0, 2) and found["flat"].tensor.shape == (tokens, heads * width)


def _joined(op: Op) -> tuple[Value, list[Op]]:
    """The rows [T, H h] made of the result, and the ops that make them."""
    heads, tokens, width = op.result.tensor.shape
    result, made = op.result, []
    for opcode, shape in (("transpose", (tokens, heads, width)), ("reshape", (tokens, heads * width))):
        user = next(iter(result.users)) if len(result.users) == 1 else None
        if user is None or user.opcode != opcode or user.result.tensor.shape != shape:
            raise LlamacError("LLC0505", op.location, f"expected one use of the attention, a {opcode} to {list(shape)}")
        made.append(user)
        result = user.result
    return result, made


def cross_cache(ops: list[Op], dtype: str, page: int) -> CacheType:
    """The cache of the layers `ops`, in their order."""
    heads = {(op.operands[1].tensor.shape[0], op.operands[1].tensor.shape[2]) for op in ops}
    if len(heads) != 1:
        raise LlamacError("LLC0505", ops[0].location, "the layers of one cache differ in their heads")
    ((kv_heads, head_dim),) = heads
    assert isinstance(kv_heads, int) and isinstance(head_dim, int)
    return CacheType(len(ops), kv_heads, head_dim, page, DTYPES[dtype], cross=True)
