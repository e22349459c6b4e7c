"""Gives equal graphs one form, so that each idea of the paper has one pattern, whichever front door it came through.

- `reshape`, `transpose`, `broadcast`, `cast` and `slice` that change nothing, `x * 1` and integer `x + 0` disappear
- `reshape(reshape x)` and `transpose(transpose x)` become one
- `cast(reshape x)` becomes `reshape(cast x)`, for every op of one operand that works element by element
- an op whose full-rank operands all gained a leading axis of 1 by a reshape works without it (the batch of torch)
- an operand of lower rank gets the rank of its op, but scalars and parameters stay as they are
- `transpose(matmul(column, row))` becomes the product of a column and a row that it is
- `select(a < b, x, y)` on integers becomes `select(b <= a, y, x)`; `select(c, -inf, x)` becomes `x + select(..., 0)`
- axes count from the front; operands of commutative ops stand in order of definition, weights and constants last

Must not touch an axis of 1 that is the model's own, such as a single KV head: only one that a reshape added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamac.ir.dims import DimLike
from llamac.ir.graph import FileSource, Graph, Module, Op, Value, Weight
from llamac.ir.levels import CAPTURED, RAISING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.operand_order import order_operands
from llamac.transform.rewriter import Rewriter
from llamac.transform.unit_axis import BROADCASTING, ROW_WISE, UNARY, front_axis, made_by, squeeze

_HIDING = -3e38
"""-inf and the lowest values of f32 and bf16 lie below: next to them a score is less than a rounding error."""

Local = Callable[[Op, Rewriter], Value | None]
"""The value that replaces the op's result, or None to leave it alone."""


@dataclass(frozen=True)
class Canonicalize(Pass):
    """One form for what can be written in several ways."""

    name = "canonicalize"
    requires = (CAPTURED, RAISING)

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts = dict.fromkeys(_RULES, 0)
        for graph in module.graphs.values():
            while any(found := _sweep(module, graph)):
                for name, count in zip(_RULES, found, strict=True):
                    counts[name] += count
        return PassResult(counts)


def _sweep(module: Module, graph: Graph) -> list[int]:
    """Apply the first rule that fits at every op, in order; returns how often each did."""
    counts = [0] * len(_RULES)
    rewriter = Rewriter(module, graph)
    for op in list(graph.ops):
        for index, rule in enumerate(_RULES.values()):
            rewriter.at(op)
            if (found := rule(op, rewriter)) is not None:
                rewriter.replace(op.result, found)
                counts[index] += 1
                break
    if any(counts):
        rewriter.finish()
    return [*counts[:-1], counts[-1] + order_operands(graph)]


def _no_op(op: Op, rewriter: Rewriter) -> Value | None:
    x, rest = op.operands[:1], op.operands[1:]
    if op.opcode in ("reshape", "transpose", "broadcast", "cast", "slice") and x[0].type == op.result.type:
        moves = op.opcode == "transpose" and op.attributes["permutation"] != tuple(range(x[0].tensor.rank))
        return None if moves else x[0]
    if op.opcode == "concat" and not rest:
        return x[0]
    is_integer = len(rest) == 1 and not rest[0].tensor.dtype.is_float
    neutral = 1.0 if op.opcode == "mul" else 0.0 if op.opcode == "add" and is_integer else None
    for kept, other in (op.operands, op.operands[::-1]) if len(op.operands) == 2 else ():
        if neutral is not None and _constant(other) == neutral and kept.type == op.result.type:
            return kept
    return None


def _constant(value: Value) -> float | None:
    is_constant = value.producer is not None and value.producer.opcode == "constant"
    found = value.producer.attributes["value"] if value.producer is not None and is_constant else None
    return found if isinstance(found, float) else None


def _merge(op: Op, rewriter: Rewriter) -> Value | None:
    if op.opcode not in ("reshape", "transpose") or (inner := made_by(op.operands[0], op.opcode)) is None:
        return None
    if op.opcode == "reshape":
        return rewriter.op("reshape", inner.operands[0], **op.attributes)
    first, second = inner.attributes["permutation"], op.attributes["permutation"]
    assert isinstance(first, tuple) and isinstance(second, tuple)
    order = tuple(first[i] for i in second if isinstance(i, int))
    return rewriter.op("transpose", inner.operands[0], permutation=order)


def _sink_reshape(op: Op, rewriter: Rewriter) -> Value | None:
    inner = made_by(op.operands[0], "reshape") if op.opcode in UNARY else None
    if inner is None:
        return None
    return rewriter.op("reshape", rewriter.op(op.opcode, inner.operands[0], **op.attributes), **inner.attributes)


def _full_rank(op: Op, rewriter: Rewriter) -> Value | None:
    if op.opcode not in BROADCASTING:
        return None
    rank = op.result.tensor.rank
    operands = [_padded(v, rank, rewriter) for v in op.operands]
    return None if operands == list(op.operands) else rewriter.op(op.opcode, *operands, **op.attributes)


def _padded(value: Value, rank: int, rewriter: Rewriter) -> Value:
    held = value
    while (cast := made_by(held, "cast")) is not None:
        held = cast.operands[0]
    is_parameter = isinstance(held, Weight) and (held.producer is not None or isinstance(held.source, FileSource))
    if value.tensor.rank in (0, rank) or is_parameter:
        return value
    ones: Sequence[DimLike] = (1,) * (rank - value.tensor.rank)
    return rewriter.op("reshape", value, shape=(*ones, *value.tensor.shape))


def _outer(op: Op, rewriter: Rewriter) -> Value | None:
    product = made_by(op.operands[0], "matmul") if op.opcode == "transpose" else None
    if product is None or op.attributes["permutation"] != (1, 0) or product.operands[0].tensor.shape[1] != 1:
        return None
    column, row = product.operands
    turned = [rewriter.op("reshape", v, shape=v.tensor.shape[::-1]) for v in (row, column)]
    return rewriter.op("mul", *turned)


def _at_most(op: Op, rewriter: Rewriter) -> Value | None:
    less = made_by(op.operands[0], "less") if op.opcode == "select" else None
    if less is None or less.operands[0].tensor.dtype.is_float:
        return None
    condition = rewriter.op("less_equal", *less.operands[::-1])
    return rewriter.op("select", condition, *op.operands[:0:-1])


def _added_mask(op: Op, rewriter: Rewriter) -> Value | None:
    """Hidden scores as a sum: the same for every finite x, since the lowest values swallow it."""
    if op.opcode != "select":
        return None
    condition, *sides = op.operands
    for side, (x, hidden) in enumerate((sides, sides[::-1])):
        lowest = _constant(hidden)
        if lowest is None or lowest > _HIDING or _constant(x) is not None or x.type != op.result.type:
            continue
        zero = rewriter.op("constant", value=0.0, dtype=x.tensor.dtype)
        shown, other = (hidden, zero) if side else (zero, hidden)
        return rewriter.op("add", x, rewriter.op("select", condition, shown, other))
    return None


def _front_axis(op: Op, rewriter: Rewriter) -> Value | None:
    axis = op.attributes.get("axis")
    if op.opcode not in ROW_WISE or not isinstance(axis, int) or axis >= 0:
        return None
    return rewriter.op(op.opcode, *op.operands, **{**op.attributes, "axis": front_axis(op, op.operands[0].tensor.rank)})


def _never(op: Op, rewriter: Rewriter) -> Value | None:
    return None


_RULES: dict[str, Local] = {
    "no_op": _no_op,
    "merged": _merge,
    "reshape_sunk": _sink_reshape,
    "squeezed": squeeze,
    "padded": _full_rank,
    "outer": _outer,
    "at_most": _at_most,
    "mask_added": _added_mask,
    "axis": _front_axis,
    "ordered": _never,
}
"""What is counted, and the rule at one op; operands are ordered between sweeps."""
