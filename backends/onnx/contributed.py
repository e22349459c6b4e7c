"""ONNX models with ONNX Runtime's own operators: fewer passes over memory, and integer weights as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llamac.ir.graph import Module, Op, Value, Weight

from . import attention_rules, shape_rules
from .emit import STANDARD, Emitted, finished
from .emitter import MASK, Emitter, Rule, Settings
from .graph_writer import MICROSOFT
from .grouped_attention import GroupedPlan, emit_attention, plan_attention
from .interfaces import declare_text
from .product_rules import embedding as standard_embedding
from .product_rules import float_matrix, is_last_alone, lifted_minima, of_minima, per_group
from .routing_rules import expert_linear
from .weight_parts import Grouped, grouped, matrix_shape
from .weights import Note, Rows


def emit_contributed(module: Module, settings: Settings, note: Note, properties: Mapping[str, str]) -> Emitted:
    """`module` with ONNX Runtime's operators. LLC0931, LLC0932."""
    graph = module.step
    found = {op: plan_attention(graph, op) for op in graph.ops if op.opcode == "attention"}
    plans = {op: plan for op, plan in found.items() if plan is not None}
    # A state that a plan gives is not made by the concat that the IR has for it.
    makers = {state: op for op, plan in plans.items() for state in plan.states}
    ends = {plan.result: op for op, plan in plans.items() if plan.result is not None}

    def reads(op: Op) -> Sequence[Value]:
        if op in plans:
            return plans[op].reads(op)
        replaced = [makers.get(result) or ends.get(result) for result in op.results]
        return [made.result for made in replaced if made is not None] or op.operands

    emitter = Emitter(graph, {**STANDARD, **_rules(plans)}, settings, note)
    declare_text(emitter)
    emitter.run(reads=reads)
    emitter.writer.drop_unused_inputs()
    return finished(emitter, module.name, properties)


def _rules(plans: Mapping[Op, GroupedPlan]) -> dict[str, Rule]:
    # An attention comes after the concats whose results it gives.
    given = {state for plan in plans.values() for state in plan.states}

    def attention(e: Emitter, op: Op) -> None:
        if op in plans:
            emit_attention(e, op, plans[op])
        else:
            attention_rules.attention(e, op)

    def concat(e: Emitter, op: Op) -> None:
        if op.result not in given:
            shape_rules.concat(e, op)

    return {
        "concat": concat,
        "attention": attention,
        "add_rms_norm": add_rms_norm,
        "embedding": embedding,
        "linear": linear,
        "expert_linear": lambda e, op: expert_linear(e, op, product),
    }


def add_rms_norm(e: Emitter, op: Op) -> None:
    """The sum and its norm in one pass over memory."""
    x, residual, weight = op.operands
    inputs = (e.name(x), e.name(residual), e.weights.vector(weight))
    kind, epsilon = "SkipSimplifiedLayerNormalization", op.attributes["eps"]
    names = e.writer.ops(kind, inputs, ("", None, None, ""), MICROSOFT, epsilon=epsilon)
    e.bind(op.results[0], names[3])
    e.bind(op.results[1], names[0])


def blocked(weight: Value) -> Grouped | None:
    """The parts of a matrix that MatMulNBits can hold: integers in groups of a power of two, 16 at least."""
    parts = grouped(weight)
    if parts is None or parts.group < 16 or parts.group & (parts.group - 1):
        return None
    plain = not parts.middle and parts.minima is None
    return parts if plain or matrix_shape(weight)[1] % parts.group == 0 else None


def linear(e: Emitter, op: Op) -> None:
    """MatMulNBits for integers; floats as in standard ONNX."""
    x, weight = op.operands
    assert isinstance(weight, Weight)
    rows = last_of_each(e, e.name(x)) if is_last_alone(e, op) else e.name(x)
    e.bind(op.result, product(e, rows, weight, result=e.wanted(op.result)))


def last_of_each(e: Emitter, x: str) -> str:
    """The last row of each sequence, [batch, 1, d], as onnxruntime-genai pads a batch: behind the text."""
    w = e.writer
    past = w.op("Sub", attention_rules.length(e, MASK), attention_rules.length(e, e.rows))
    behind = w.op("Sub", w.op("ReduceSum", MASK, w.constant([1]), keepdims=0), past)
    last = w.op("Max", w.op("Sub", behind, w.constant([1])), w.constant([0]))
    rows = w.op("GatherND", x, w.op("Unsqueeze", last, w.constant([1])), batch_dims=1)
    return w.op("Unsqueeze", rows, w.constant([1]))


def product(e: Emitter, x: str, weight: Weight, rows: Rows | None = None, result: str = "") -> str:
    """x times the transpose of (some rows of) a matrix."""
    w, parts = e.writer, blocked(weight)
    if parts is None:
        return w.op("MatMul", x, float_matrix(e, weight, rows), result=result)
    stored = e.weights.blocks(weight, parts, rows)
    count = stored.rows[1] - stored.rows[0]
    sizes: dict[str, Any] = {"K": matrix_shape(weight)[1], "N": count, "bits": parts.bits, "block_size": parts.group}
    inputs = (x, stored.values, stored.scales)
    sizes["accuracy_level"] = e.settings.accuracy
    lifted = lifted_minima(e, stored)
    if not lifted:
        return w.op("MatMulNBits", *inputs, result=result, domain=MICROSOFT, **sizes)
    return w.op(
        "Add", w.op("MatMulNBits", *inputs, domain=MICROSOFT, **sizes), of_minima(e, x, stored, lifted), result=result
    )


def embedding(e: Emitter, op: Op) -> None:
    """A lookup in the matrix as the product of a tied head has it; other tables as in standard ONNX."""
    w, (weight, ids) = e.writer, op.operands
    assert isinstance(weight, Weight)
    parts, columns = blocked(weight), matrix_shape(weight)[1]
    if parts is None or columns % parts.group:
        standard_embedding(e, op)
        return
    stored, rows = e.weights.blocks(weight, parts), e.name(ids)
    minima = lifted_minima(e, stored)
    if not minima:
        packed = w.constant([0, -1])
        table = w.once(("flat", stored.values), lambda: w.op("Reshape", stored.values, packed))
        sizes = {"bits": parts.bits, "block_size": parts.group, "quantize_axis": 1, "gather_axis": 0}
        e.node("GatherBlockQuantized", table, rows, stored.scales, of=op.result, domain=MICROSOFT, **sizes)
        return
    middle = w.number(float(1 << (parts.bits - 1)))
    quants = w.op("Sub", w.op("Cast", unpacked(e, w.op("Gather", stored.values, rows), parts), to=1), middle)
    groups = w.op("Mul", quants, per_group(e, w.op("Gather", stored.scales, rows)))
    groups = w.op("Add", groups, per_group(e, w.op("Gather", minima, rows)))
    e.node("Reshape", groups, w.constant([0, 0, columns]), of=op.result)


def unpacked(e: Emitter, packed: str, parts: Grouped) -> str:
    """One quant a byte, [batch, tokens, groups, group]; of two in a byte the low half is the first."""
    w = e.writer
    if parts.bits == 8:
        return packed
    low = w.op("BitwiseAnd", packed, w.constant(15, np.uint8))
    high = w.op("BitShift", packed, w.constant(4, np.uint8), direction="RIGHT")
    pairs = w.op("Concat", *(w.op("Unsqueeze", half, w.constant([-1])) for half in (low, high)), axis=-1)
    return w.op("Reshape", pairs, w.constant([0, 0, 0, parts.group]))
