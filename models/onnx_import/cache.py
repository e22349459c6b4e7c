"""Gives a graph that computes whole texts the keys and values of a past: each attention is rebuilt as a step's.

    softmax(scale * q k' + causal mask) v        k, v: [KV heads, T, h], each repeated for its query heads
    -> the same with past keys and values before k and v, and a mask of the P + T keys

Position t of a text is then P + t, and key s is seen where it is not after the query: with no past, that is the graph.
Whatever else an attention does is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.dims import DimLike
from llamac.ir.dtypes import F32
from llamac.ir.graph import Graph, Op, Value

from ..llama.config import LlamaConfig
from ..llama.graph import LlamaBuilder
from .call import TOKENS
from .signature import WHOLE_TEXTS

_MOVES = ("reshape", "cast", "broadcast")
_BLOCKED = -1e4
"""What a mask adds at most to the score of a key that is not seen."""


@dataclass(frozen=True)
class Attention:
    """One attention over whole texts: [heads, T, h] under any batch axis, its scale, and the op that mixes values."""

    q: Value
    k: Value
    v: Value
    scale: float
    mix: Op


def add_cache(graph: Graph, pieces: LlamaBuilder, config: LlamaConfig, file: str) -> None:
    """Rebuild every attention of `graph`, and add its keys and values to the outputs (LLC0937)."""
    found = [_attention(op, config, graph, file) for op in graph.ops if op.opcode == "softmax"]
    if len(found) != config.layers:
        raise _unlike(file, f"it has {len(found)} attentions in {config.layers} layers")
    first, start = graph.ops[0], len(graph.ops)
    mask = pieces.causal_mask()
    _in_front(graph, first, start)
    for layer, attention in enumerate(found):
        _rebuild(graph, pieces, layer, attention, mask)


def _unlike(file: str, reason: str) -> LlamacError:
    return LlamacError("LLC0937", file, reason, WHOLE_TEXTS)


def _in_front(graph: Graph, of: Op, start: int) -> None:
    """Put the ops from `start` on in front of another."""
    made = graph.ops[start:]
    del graph.ops[start:]
    place = graph.ops.index(of)
    graph.ops[place:place] = made


def _rebuild(graph: Graph, pieces: LlamaBuilder, layer: int, found: Attention, mask: Value) -> None:
    b, c, start = pieces.b, pieces.config, len(graph.ops)
    dtype = found.q.tensor.dtype
    kept = []
    for side, new in (("k", found.k), ("v", found.v)):
        rows = b.reshape(new, c.kv_heads, TOKENS, c.head_dim)
        kept.append(b.op("concat", graph.argument(f"past_{side}.{layer}"), rows, axis=1))
    keys, values = kept
    q = b.reshape(found.q, c.heads, TOKENS, c.head_dim)
    scores = b.op("matmul", q, b.transpose(pieces.repeat_kv(keys), 0, 2, 1))
    scores = b.op("add", b.op("mul", scores, b.constant(found.scale, dtype)), mask)
    weights = pieces.cast(b.op("softmax", pieces.cast(scores, F32), axis=2), dtype)
    mixed = b.op("matmul", weights, pieces.repeat_kv(values))
    shape = found.mix.result.tensor.shape
    mixed = mixed if mixed.tensor.shape == shape else b.reshape(mixed, *shape)
    _in_front(graph, found.mix, start)
    graph.replace(found.mix.result, mixed)
    graph.outputs += kept


# The attention of a whole text, from its softmax.


def _attention(softmax: Op, config: LlamaConfig, graph: Graph, file: str) -> Attention:
    total = _behind(softmax.operands[0])
    mix = _only_user(softmax.result)
    if total is None or total.opcode != "add" or mix is None or mix.opcode != "matmul":
        raise _unlike(file, "an attention of it adds no mask to its scores, or does not mix values")
    scores, mask = _scores_and_mask(total)
    if scores is None or mask is None or not _is_causal(mask, graph):
        raise _unlike(
            file, "the mask of an attention is not that of whole texts: every key that is not after the query"
        )
    product = _behind(scores.operands[0]) if scores.opcode != "matmul" else scores
    scale = _factor(scores)
    if product is None or product.opcode != "matmul" or math.isnan(scale):
        raise _unlike(file, "the scores of an attention are no scaled products of queries and keys")
    q = product.operands[0]
    k, v = (_unrepeated(value, config, turns) for value, turns in ((product.operands[1], 1), (mix.operands[1], 0)))
    if k is None or v is None or _count(q) != _count_of(config.heads, config):
        raise _unlike(file, f"its keys and values are not those of {config.kv_heads} heads of {config.head_dim}")
    scale = config.head_dim**-0.5 if math.isclose(scale, config.head_dim**-0.5, rel_tol=1e-6) else scale
    return Attention(q, k, v, scale, mix)


def _behind(value: Value) -> Op | None:
    while value.producer is not None and value.producer.opcode in _MOVES:
        value = value.producer.operands[0]
    return value.producer


def _only_user(value: Value) -> Op | None:
    """What uses a value, however it is reshaped or cast before."""
    users = list(value.users)
    if len(users) != 1:
        return None
    return _only_user(users[0].result) if users[0].opcode in _MOVES else users[0]


def _scores_and_mask(total: Op) -> tuple[Op | None, Op | None]:
    found = [_behind(value) for value in total.operands]
    scores = [op for op in found if op is not None and op.opcode in ("mul", "div", "matmul")]
    masks = [op for op in found if op is not None and op.opcode == "select"]
    return (scores[0], masks[0]) if len(scores) == len(masks) == 1 else (None, None)


def _factor(scores: Op) -> float:
    """What the products are multiplied with; NaN where that is no number."""
    if scores.opcode == "matmul":
        return 1.0
    number = _number(scores.operands[1])
    return math.nan if not number else 1 / number if scores.opcode == "div" else number


def _number(value: Value) -> float | None:
    op = _behind(value)
    found = op.attributes["value"] if op is not None and op.opcode == "constant" else None
    return float(found) if isinstance(found, int | float) else None


def _is_causal(mask: Op, graph: Graph) -> bool:
    """0 where the key's position is not after the query's, a very small number elsewhere."""
    condition = _behind(mask.operands[0])
    seen, other = (_number(value) for value in mask.operands[1:])
    if condition is None or condition.opcode not in ("less", "less_equal") or seen is None or other is None:
        return False
    keys, queries = condition.operands
    if condition.opcode == "less":  # the query is before the key: not seen
        (keys, queries), (seen, other) = (queries, keys), (other, seen)
    is_line = [_is_positions(value, axis, graph) for value, axis in ((keys, -1), (queries, -2))]
    return all(is_line) and seen == 0 and other <= _BLOCKED


def _is_positions(value: Value, axis: int, graph: Graph) -> bool:
    """Whether a value is the positions, along one axis."""
    shape = value.tensor.shape
    while value.producer is not None and value.producer.opcode == "reshape":
        value = value.producer.operands[0]
    wanted = [1] * len(shape)
    if len(shape) < -axis or value is not graph.argument("positions"):
        return False
    return list(shape) == [*wanted[: len(shape) + axis], TOKENS, *wanted[len(shape) + axis + 1 :]]


def _unrepeated(value: Value, config: LlamaConfig, turns: int) -> Value | None:
    """[KV heads, T, h] behind what repeats it for the query heads, and turns it; None for anything else."""
    wanted = (config.kv_heads, TOKENS, config.head_dim)
    for found in _chain(value):
        shape, op = found.tensor.shape, found.producer
        if shape in (wanted, (1, *wanted)) and not turns:
            return found
        if op is None:
            return None
        if op.opcode == "transpose":
            order = op.attributes["permutation"]
            rank = len(shape)
            if order != (*range(rank - 2), rank - 1, rank - 2):
                return None
            turns -= 1
        elif op.opcode == "broadcast" and not _repeats_heads(op, config):
            return None
    return None


def _chain(value: Value) -> Iterator[Value]:
    yield value
    while value.producer is not None and value.producer.opcode in (*_MOVES, "transpose"):
        value = value.producer.operands[0]
        yield value


def _repeats_heads(op: Op, config: LlamaConfig) -> bool:
    """Each KV head as often as it has query heads, one after the other."""
    before, after = op.operands[0].tensor.shape, op.result.tensor.shape
    size: tuple[DimLike, ...] = (TOKENS, config.head_dim)
    group = config.heads // config.kv_heads
    return before[-4:] == (config.kv_heads, 1, *size) and after[-4:] == (config.kv_heads, group, *size)


def _count(value: Value) -> DimLike:
    total: DimLike = 1
    for size in value.tensor.shape:
        total = total * size
    return total


def _count_of(heads: int, config: LlamaConfig) -> DimLike:
    return TOKENS * (heads * config.head_dim)
