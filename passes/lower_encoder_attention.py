"""Turns the attention of an image encoder into kernels over joined rows of q, k and v.

Before: `full_attention(heads(%q), heads(%k), heads(%v))`, heads = transpose(reshape(linear + bias)), q and k rotated
After:  `%y = add(linear(%x, @qkv), @qkv.bias)`, `rope_pairs %y, %cos, %sin`, `%p = token_pages %y`,
        `attend_tokens %y, %p {heads, head_dim, scale}`; with padding, in the order of `order_tokens %slots`

The transposes and reshapes between projections and attention are part of the kernels. Where the three weights are
stored by different schemes, three products are the strips of one value. LLC0505 when q, k and v are anything else than
projections of one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.builder import define_weight
from llamac.ir.dtypes import F32
from llamac.ir.graph import Attribute, Module, Op, Value, Weight
from llamac.ir.levels import LOWERING, MODEL
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.pattern import Any, AnyWeight, Match, Node, match
from llamac.transform.rewriter import Rewriter
from llamac.transform.weight_rows import over_rows, scheme_of

_PLAIN = Node("linear", Any("x"), AnyWeight("weight"), name="flat")
_BIASED = Node("add", Node("linear", Any("x"), AnyWeight("weight")), AnyWeight("bias"), name="flat")
_PROJECTIONS = [Node("transpose", Node("reshape", p, name="split"), name="heads") for p in (_BIASED, _PLAIN)]


@dataclass(frozen=True)
class LowerEncoderAttention(Pass):
    """full_attention -> token_pages and attend_tokens."""

    name = "lower-encoder-attention"
    requires = (MODEL,)
    produces = LOWERING

    def run(self, module: Module, context: PassContext) -> PassResult:
        lowered = 0
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in [op for op in graph.ops if op.opcode == "full_attention"]:
                _lower(rewriter, op)
                lowered += 1
            rewriter.finish()
        return PassResult({"attention": lowered})


def _lower(rewriter: Rewriter, op: Op) -> None:
    heads, _, width = op.result.tensor.shape
    turned = [v.producer for v in op.operands[:2]]
    ropes = [rope for rope in turned if rope is not None and rope.opcode == "rope"]
    sources = [rope.operands[0] for rope in ropes] if len(ropes) == 2 else list(op.operands[:2])
    parts = [_projection(op, v) for v in (*sources, op.operands[2])]
    if len({part["x"] for part in parts}) != 1 or len({"bias" in part.values for part in parts}) != 1:
        raise LlamacError("LLC0505", op.location, "q, k and v are not three projections of one value")
    out = _merged(rewriter, op)
    rewriter.at(op)
    assert isinstance(heads, int) and isinstance(width, int)
    attributes: dict[str, Attribute] = {"heads": heads, "head_dim": width}
    qkv = _joined(rewriter, op, parts)
    if ropes:
        qkv = rewriter.op("rope_pairs", qkv, *_tables(op, ropes), **attributes)
    order = _order(rewriter, op)
    pages = rewriter.op("token_pages", qkv, *order[:1], **attributes)
    mixed = rewriter.op("attend_tokens", qkv, pages, *order, **attributes, scale=op.attributes["scale"])
    rewriter.replace(out, mixed)


def _projection(op: Op, value: Value) -> Match:
    """The projection that a q, k or v [heads, tokens, head_dim] is the heads of."""
    heads, tokens, width = value.tensor.shape
    for pattern in _PROJECTIONS:
        found = match(pattern, value.producer) if value.producer is not None else None
        is_split = found is not None and found.op("heads").attributes["permutation"] == (1, 0, 2)
        if found is not None and is_split and found["split"].tensor.shape == (tokens, heads, width):
            return found
    raise LlamacError("LLC0505", op.location, "q, k or v is not a projection split into heads")


def _order(rewriter: Rewriter, op: Op) -> list[Value]:
    """The tokens with padding last, and how many are none; nothing where no token is padding."""
    if len(op.operands) == 3:
        return []
    padding = op.operands[3].producer
    if padding is None or padding.opcode != "tile_padding":
        raise LlamacError("LLC0505", op.location, "the padding is not that of tiles", "run raise-padding first")
    rewriter.at(op, padding.location)
    found = rewriter.multi("order_tokens", *padding.operands, **padding.attributes).results
    rewriter.at(op)
    return found


def _tables(op: Op, ropes: Sequence[Op]) -> tuple[Value, ...]:
    tables = ropes[0].operands[1:]
    if ropes[1].operands[1:] != tables or any(rope.attributes["style"] != "interleaved" for rope in ropes):
        raise LlamacError("LLC0505", op.location, "q and k are not rotated alike, in adjacent pairs")
    return tables


def _joined(rewriter: Rewriter, op: Op, parts: Sequence[Match]) -> Value:
    """The rows of q, k and v side by side."""
    x, weights = parts[0]["x"], [part["weight"] for part in parts]
    biases = [_wide(rewriter, part["bias"]) for part in parts] if "bias" in parts[0].values else []
    if len({scheme_of(w) for w in weights}) == 1:
        y = rewriter.op("linear", x, over_rows(rewriter.module, f"{op.location}.qkv", "concat", weights, axis=0))
    else:
        y = rewriter.op("concat", *(rewriter.op("linear", x, w) for w in weights), axis=-1)
    if not biases:
        return y
    return rewriter.op("add", y, define_weight(rewriter.module, f"{op.location}.qkv.bias", "concat", *biases, axis=0))


def _wide(rewriter: Rewriter, bias: Value) -> Weight:
    assert isinstance(bias, Weight)
    return bias if bias.tensor.dtype is F32 else rewriter.weight(f"{bias.name}.f32", "cast", bias, dtype=F32)


def _merged(rewriter: Rewriter, op: Op) -> Value:
    """The rows [tokens, heads * head_dim] that the heads of the attention are put together to."""
    heads, tokens, width = op.result.tensor.shape
    value = op.result
    for opcode, shape in (("transpose", (tokens, heads, width)), ("reshape", (tokens, heads * width))):
        user = next(iter(value.users)) if len(value.users) == 1 and value not in rewriter.graph.outputs else None
        if user is None or user.opcode != opcode or user.result.tensor.shape != shape:
            raise LlamacError("LLC0505", op.location, f"expected one use of the attention, a {opcode} to {list(shape)}")
        value = user.result
    return value
