"""Attention as ONNX Runtime's GroupQueryAttention does it: rotation and the cache inside, heads side by side.

What the op does itself is not emitted: the plan of an attention says from which values the op starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.graph import Graph, Op, Value

from .attention_rules import bias_of, same_chunk
from .emitter import MASK, Emitter
from .graph_writer import MICROSOFT

_WIDTHS = 8
"""What the width of a head is a multiple of in GroupQueryAttention (onnxruntime 1.32)."""
_ROTATED_WIDTHS = 16
"""The same where it rotates, too."""


@dataclass(frozen=True)
class GroupedPlan:
    """Where GroupQueryAttention begins and ends in place of one attention op.

    q, k, v: [T, heads * head_dim] each where the flag of `flat` is set, else [heads, T, head_dim]. packed: the value
    whose columns are q, k and v in this order, where there is one. frequencies: of the rotation that the op does.
    result: what the heads side by side are called, when nothing else reads the attention's result.
    """

    inputs: tuple[Value, Value, Value]
    flat: tuple[bool, bool, bool]
    packed: Value | None
    pasts: tuple[Value, Value]
    states: tuple[Value, Value]
    frequencies: Value | None
    result: Value | None

    def reads(self, op: Op) -> tuple[Value, ...]:
        """The values that the rule needs."""
        start = (self.packed,) if self.packed is not None else self.inputs
        return (*start, *self.pasts, op.operands[3])


def plan_attention(graph: Graph, op: Op) -> GroupedPlan | None:
    """The plan of an attention; None when its keys or values are no past with something new behind it."""
    q, k, v = op.operands[:3]
    joins = [value.producer for value in (k, v)]
    for join in joins:
        if join is None or join.opcode != "concat" or join.operands[0] not in graph.arguments:
            return None
    new = [join.operands[1] for join in joins if join is not None]
    pasts = [join.operands[0] for join in joins if join is not None]
    q, k, frequencies = _before_rotation(q, new[0])
    found = [_side_by_side(value) for value in (q, k, new[1])]
    inputs = [flat or value for flat, value in zip(found, (q, k, new[1]), strict=True)]
    return GroupedPlan(
        (inputs[0], inputs[1], inputs[2]),
        (found[0] is not None, found[1] is not None, found[2] is not None),
        _joined(found),
        (pasts[0], pasts[1]),
        (op.operands[1], op.operands[2]),
        frequencies,
        _joined_heads(graph, op.result),
    )


def _before_rotation(q: Value, k: Value) -> tuple[Value, Value, Value | None]:
    """q and k as they were before a rotation that both share, and its frequencies.

    ONNX Runtime rotates heads of a multiple of 16 numbers only; those of other widths are rotated before.
    """
    width = q.tensor.shape[-1]
    assert isinstance(width, int)
    if width % _ROTATED_WIDTHS:
        return q, k, None
    ropes = [value.producer for value in (q, k)]
    for rope in ropes:
        if rope is None or rope.opcode != "rope" or rope.attributes["style"] != "half_split":
            return q, k, None
    first, second = (rope.operands for rope in ropes if rope is not None)
    angles = first[1].producer
    if first[1:] != second[1:] or angles is None or angles.opcode != "rope_angles":
        return q, k, None
    return first[0], second[0], angles.operands[1]


def _side_by_side(heads: Value) -> Value | None:
    """The [T, heads * head_dim] that [heads, T, head_dim] was split from."""
    turn = heads.producer
    if turn is None or turn.opcode != "transpose" or turn.attributes["permutation"] != (1, 0, 2):
        return None
    split = turn.operands[0].producer
    return split.operands[0] if split is not None and split.opcode == "reshape" else None


def _joined(parts: list[Value | None]) -> Value | None:
    """The value that q, k and v are the columns of, in this order and without gaps."""
    start, whole = 0, None
    for part in parts:
        op = part.producer if part is not None else None
        if op is None or op.opcode != "slice" or op.attributes["axis"] != -1 or op.attributes["start"] != start:
            return None
        if whole not in (None, op.operands[0]):
            return None
        whole, stop = op.operands[0], op.attributes["stop"]
        assert isinstance(stop, int)
        start = stop
    return whole if whole is not None and whole.tensor.shape[-1] == start else None


def _joined_heads(graph: Graph, heads: Value) -> Value | None:
    """The [T, heads * head_dim] that the attention's result becomes, when it becomes nothing else."""
    for opcode in ("transpose", "reshape"):
        users = list(heads.users)
        if len(users) != 1 or users[0].opcode != opcode or heads in graph.outputs:
            return None
        heads = users[0].result
    return heads


def emit_attention(e: Emitter, op: Op, plan: GroupedPlan) -> None:
    """One GroupQueryAttention, which also gives the keys and values to hand on."""
    w = e.writer
    heads, _, head_dim = op.operands[0].tensor.shape
    kv_heads, scale = op.operands[1].tensor.shape[0], op.attributes["scale"]
    assert isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(head_dim, int)
    if head_dim % _WIDTHS:
        reason = f"ONNX Runtime's GroupQueryAttention takes heads of a multiple of {_WIDTHS} numbers, not of {head_dim}"
        raise LlamacError("LLC0932", op.location, reason, "write standard operators: llamac export --to onnx")
    if plan.packed is not None:
        start = [e.name(plan.packed), "", ""]
    else:
        start = [_flat(e, *each) for each in zip(plan.inputs, plan.flat, strict=True)]
    tables = _tables(e, plan.frequencies) if plan.frequencies is not None else ("", "")
    bias = _chunk_bias(e, op)
    inputs = [*start, *(e.name(past) for past in plan.pasts), *_lengths(e), *tables, *(("", bias) if bias else ())]
    results = ["", *(e.wanted(state) for state in plan.states)]
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale, "do_rotary": int(bool(tables[0]))}
    names = w.ops("GroupQueryAttention", inputs, results, MICROSOFT, **attributes)
    for state, name in zip(plan.states, names[1:], strict=True):
        e.bind(state, name)
    if plan.result is not None:
        e.bind(plan.result, names[0])
        return
    split = w.op("Reshape", names[0], w.constant([0, -1, heads, head_dim]))
    e.node("Transpose", split, of=op.result, perm=[0, 2, 1, 3])


def _flat(e: Emitter, value: Value, is_flat: bool) -> str:
    """Heads side by side, [batch, tokens, heads * head_dim]."""
    w = e.writer
    if is_flat:
        return e.name(value)
    heads, _, head_dim = value.tensor.shape
    assert isinstance(heads, int) and isinstance(head_dim, int)
    turned = w.op("Transpose", e.name(value), perm=[0, 2, 1, 3])
    return w.op("Reshape", turned, w.constant([0, -1, heads * head_dim]))


def _lengths(e: Emitter) -> tuple[str, str]:
    """The last position of each sequence, and the longest length."""
    w = e.writer

    def last() -> str:
        lengths = w.op("ReduceSum", MASK, w.constant([1]), keepdims=0)
        return w.op("Cast", w.op("Sub", lengths, w.constant(1)), to=6)

    def longest() -> str:
        total = w.op("Squeeze", w.op("Shape", MASK, start=1, end=2), w.constant([0]))
        return w.op("Cast", total, to=6)

    place, w.place = w.place, "lengths"
    found = w.once("last positions", last), w.once("longest", longest)
    w.place = place
    return found


def _tables(e: Emitter, frequencies: Value) -> tuple[str, str]:
    """cos and sin of every position of the context, which ONNX Runtime computes once, when it loads the graph."""
    w = e.writer

    def angles() -> str:
        positions = w.op("Range", w.constant(0), w.constant(e.settings.context), w.constant(1))
        column = w.op("Unsqueeze", w.op("Cast", positions, to=1), w.constant([1]))
        return w.op("Mul", column, e.weights.vector(frequencies))

    place, w.place = w.place, "rope"
    made = w.once(("angles", frequencies), angles)
    cos, sin = (w.once((kind, made), lambda kind=kind: w.op(kind, made)) for kind in ("Cos", "Sin"))
    w.place = place
    return cos, sin


def _chunk_bias(e: Emitter, op: Op) -> str:
    """What hides the keys of other chunks; "" where a layer sees everything before a query."""
    chunk = op.attributes.get("chunk", 0)
    assert isinstance(chunk, int)
    return e.writer.once(("chunk bias", chunk), lambda: bias_of(e, same_chunk(e, chunk))) if chunk else ""
