"""Rules for lookups and products with weights, in standard operators."""

from __future__ import annotations

from llamac.ir.graph import Op, Value, Weight

from .emitter import Emitter, Rule
from .weight_parts import Grouped, grouped, matrix_shape
from .weights import Rows, Stored


def whole_groups(weight: Value) -> Grouped | None:
    """The parts of a matrix of integers whose rows are whole groups; None for every other."""
    parts = grouped(weight)
    return parts if parts is not None and matrix_shape(weight)[1] % parts.group == 0 else None


def is_table(weight: Weight) -> bool:
    """Whether rows of it are looked up, so that it is stored with rows as rows."""
    return any(op.opcode == "embedding" for op in weight.users)


def embedding(e: Emitter, op: Op) -> None:
    """Rows of the table, made numbers after the lookup."""
    w, (weight, ids) = e.writer, op.operands
    assert isinstance(weight, Weight)
    parts, rows = whole_groups(weight), e.name(ids)
    if parts is None:
        e.node("Gather", e.weights.floats(weight, False), rows, of=op.result)
        return
    tied = any(user.opcode == "linear" for user in weight.users)
    stored, columns = e.weights.quants(weight, parts, tied, is_table=True), matrix_shape(weight)[1]
    values = w.op("Cast", looked_up(e, stored.values, rows, tied), to=1)
    groups = w.op("Reshape", values, w.constant([0, 0, columns // parts.group, parts.group]))
    groups = w.op("Mul", groups, per_group(e, looked_up(e, stored.scales, rows, tied)))
    minima = lifted_minima(e, stored)
    if minima:
        groups = w.op("Add", groups, per_group(e, looked_up(e, minima, rows, tied)))
    e.node("Reshape", groups, w.constant([0, 0, columns]), of=op.result)


def looked_up(e: Emitter, table: str, rows: str, is_transposed: bool) -> str:
    """Rows of a table, [batch, tokens, n]; a tied head has them as columns, for the product that it is too."""
    w = e.writer
    if not is_transposed:
        return w.op("Gather", table, rows)
    return w.op("Transpose", w.op("Gather", table, rows, axis=1), perm=[1, 2, 0])


def per_group(e: Emitter, values: str) -> str:
    """One number for each group, [batch, tokens, groups, 1]."""
    return e.writer.op("Unsqueeze", values, e.writer.constant([-1]))


def linear(e: Emitter, op: Op) -> None:
    """x times a weight."""
    x, weight = op.operands
    assert isinstance(weight, Weight)
    rows = last_row(e, e.name(x)) if is_last_alone(e, op) else e.name(x)
    e.bind(op.result, product(e, rows, weight, result=e.wanted(op.result)))


def is_last_alone(e: Emitter, op: Op) -> bool:
    """Whether a product gives the logits, of which those of the last token are wanted alone."""
    return e.settings.logits == "last" and op.result is e.graph.outputs[0]


def last_row(e: Emitter, x: str) -> str:
    """The last row, [batch, 1, d]: transformers pads a batch before the text."""
    w = e.writer
    return w.op("Unsqueeze", w.op("Gather", x, w.constant(-1), axis=1), w.constant([1]))


def product(e: Emitter, x: str, weight: Weight, rows: Rows | None = None, result: str = "") -> str:
    """x times the transpose of (some rows of) a matrix."""
    w, parts = e.writer, whole_groups(weight)
    if parts is None:
        return w.op("MatMul", x, float_matrix(e, weight, rows), result=result)
    stored = e.weights.quants(weight, parts, True, rows, is_table(weight))
    values, scales = stored.values, stored.scales
    if is_table(weight):
        # ONNX Runtime makes a product with integers only of tensors that nothing else reads.
        values, scales = w.alias(values), w.alias(scales)
    matrix = w.op("DequantizeLinear", values, scales, axis=0, block_size=parts.group)
    minima = lifted_minima(e, stored)
    if not minima:
        return w.op("MatMul", x, matrix, result=result)
    return w.op("Add", w.op("MatMul", x, matrix), of_minima(e, x, stored, minima), result=result)


def lifted_minima(e: Emitter, stored: Stored) -> str:
    """What is added to scale * (quant - middle): minimum + middle * scale; "" where that is nothing.

    A runtime that rounds activations to integers errs in proportion to the quants: centred ones are half as large.
    """
    w = e.writer
    if not stored.middle:
        return stored.minima

    def make() -> str:
        lifted = w.op("Mul", stored.scales, w.number(float(stored.middle)))
        return w.op("Add", lifted, stored.minima) if stored.minima else lifted

    return w.once(("lifted", stored.values), make)


def of_minima(e: Emitter, x: str, stored: Stored, minima: str) -> str:
    """The part of a product that minima make: the sums of x over the groups, times the minima."""
    w = e.writer
    turned = minima if stored.transposed else w.op("Transpose", minima, perm=[1, 0])
    return w.op("MatMul", group_sums(e, x, matrix_shape(stored.weight)[1], stored.group), turned)


def group_sums(e: Emitter, x: str, columns: int, group: int) -> str:
    """The sum of each `group` columns of x [..., columns]: [..., groups]."""
    w = e.writer

    def make() -> str:
        # No -1 for the groups: an expert may have no rows.
        shape = w.op("Concat", w.op("Shape", x, end=-1), w.constant([columns // group, group]), axis=0)
        return w.op("ReduceSum", w.op("Reshape", x, shape), w.constant([-1]), keepdims=0)

    return w.once(("sums", x, group), make)


def float_matrix(e: Emitter, weight: Weight, rows: Rows | None = None) -> str:
    """A matrix of floats as a product wants it, [in, out]."""
    if not is_table(weight):
        return e.weights.floats(weight, True, rows)
    table = e.weights.floats(weight, False)
    return e.writer.once(("turned", table), lambda: e.writer.op("Transpose", table, perm=[1, 0]))


PRODUCT_RULES: dict[str, Rule] = {"embedding": embedding, "linear": linear}
