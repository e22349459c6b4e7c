"""Attention in which the query heads of a group are rows of one matrix, taken back to a matrix for each head.

An exporter may spare itself the repetition of keys and values: it reads q [1, H, T, h] as [1, K, H/K * T, h],
multiplies with the keys [1, K, h, S], and splits the group off where the mask is added. Such a tensor is followed here
with the heads that it stands for, so that the graph gets the textbook's form, each KV head repeated for its queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llamac.ir.dims import DimLike
from llamac.ir.graph import Value

from .call import TOKENS, Call, Grouped
from .scaled_product import product


def regrouped(call: Call, found: Value | Grouped, shape: Sequence[DimLike]) -> Value | Grouped | None:
    """The reshape of heads to groups, of groups to groups in other axes, or back; None for any other reshape."""
    heads = found.heads if isinstance(found, Grouped) else found
    before = heads.tensor.shape
    if len(before) != 4 or before[0] != 1 or before[2] != TOKENS or not isinstance(before[1], int):
        return None
    if tuple(shape) == before:
        return heads
    count = before[1]
    for kv_heads in (size for size in shape[1:2] if isinstance(size, int) and 0 < size < count and not count % size):
        group = count // kv_heads
        for is_split in (False, True):
            made = Grouped(heads, kv_heads, is_split)
            if made.shape == tuple(shape) and (is_split or TOKENS * group in shape):
                return made
    return None


def grouped_product(call: Call, a: Grouped, b: Value) -> Grouped | None:
    """a b for each head; None where b is not one matrix for each KV head."""
    heads, (count, width) = a.heads, a.heads.tensor.shape[1::2]
    if a.is_split or b.tensor.rank != 4 or b.tensor.shape[:2] != (1, a.kv_heads) or b.tensor.shape[2] != width:
        return None
    made = b.producer
    is_turned = made is not None and made.opcode == "transpose" and made.attributes["permutation"] == (0, 1, 3, 2)
    kept = made.operands[0] if made is not None and is_turned else b
    repeated = call.around.pieces.repeat_kv(call.reshape(kept, kept.tensor.shape[1:]))
    right = call.b.transpose(repeated, 0, 2, 1) if is_turned else repeated
    found = product(call, _without_batch(call, heads), right)
    return replace(a, heads=call.reshape(found, (1, count, TOKENS, found.tensor.shape[-1])))


def _without_batch(call: Call, heads: Value) -> Value:
    """Heads [H, T, h]; a factor on them stays in sight."""
    op = heads.producer
    factor = op.operands[1].producer if op is not None and op.opcode == "mul" else None
    if op is None or factor is None or factor.opcode != "constant":
        return call.reshape(heads, heads.tensor.shape[1:])
    plain = call.reshape(op.operands[0], heads.tensor.shape[1:])
    return call.op("mul", plain, op.operands[1])


def with_mask(call: Call, a: Grouped, mask: Value) -> Grouped | None:
    """Scores with a mask that is the same for all heads; None for another one."""
    shape = mask.tensor.shape
    if any(size != 1 for size in shape[:-2]) or shape[-2:] != a.heads.tensor.shape[-2:]:
        return None
    return replace(a, heads=call.op("add", a.heads, call.reshape(mask, (1, 1, *shape[-2:]))))
