"""Replaces each linear and embedding by its kernel over a packed weight, with activations quantized where needed.

Before: `%y = linear %x, @w {format = "i4g32s16"}`
After:  `@w.packed = pack @w.quants, @w.scales {format}`, `%q, %s, %t = quantize_rows %x`,
        `%y = linear_grouped %q, %s, %t, @w.packed {format, rows, columns}`

Weights of norms, gates, and rows of weights that are added become f32, the dtype that they are computed in. A gate and
up that are separate products (their weights are stored differently, or are stacks of experts) become the columns of one
`concat`, written in place: `swiglu` reads both from one row. Must not fire before select-kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.builder import define_weight
from llamac.ir.dtypes import F32
from llamac.ir.graph import Attribute, Module, Op, Value, Weight
from llamac.ir.layouts import PANEL, WeightFormat, format_of
from llamac.ir.levels import LOWERING
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.rewriter import Rewriter

_SMALL: dict[str, tuple[int, ...]] = {
    "rms_norm": (1,),
    "norm_heads": (1,),
    "layer_norm": (1, 2),
    "gated_add": (2,),
    "add_places": (2,),
    "add_class_token": (1,),
    "add": (1,),
}
"""Opcode -> the operands that may be weights of a norm, gates, or rows of weights that are added: held in f32."""
_PRODUCTS = ("linear_dense", "linear_grouped", "expert_linear_dense", "expert_linear_grouped")


@dataclass(frozen=True)
class PackWeights(Pass):
    """linear and embedding -> kernels over packed weights."""

    name = "pack-weights"
    requires = (LOWERING,)

    def run(self, module: Module, context: PassContext) -> PassResult:
        counts = {"linear": 0, "expert_linear": 0, "embedding": 0, "norm": 0, "row": 0, "cast": 0, "swiglu": 0}
        for graph in module.graphs.values():
            rewriter = Rewriter(module, graph)
            for op in list(graph.ops):
                kind = _pack(rewriter, op)
                if kind is not None:
                    counts[kind] += 1
            rewriter.finish()
        return PassResult(counts)


def _pack(rewriter: Rewriter, op: Op) -> str | None:
    rewriter.at(op)
    if op.opcode == "linear":
        rewriter.replace(op.result, _linear(rewriter, op))
        return "linear"
    if op.opcode == "expert_linear":
        rewriter.replace(op.result, _expert_linear(rewriter, op))
        return "expert_linear"
    if op.opcode == "embedding":
        _embedding(rewriter, op)
        return "embedding"
    if op.opcode == "cast" and op.operands[0].type == op.result.type:
        rewriter.replace(op.result, op.operands[0])
        return "cast"
    if op.opcode in _SMALL and _widen(rewriter, op):
        return "row" if op.opcode.startswith("add") else "norm"
    if op.opcode == "swiglu" and len(op.operands) == 2:
        rewriter.replace(op.result, rewriter.op("swiglu", _side_by_side(rewriter, op)))
        return "swiglu"
    return None


def _widen(rewriter: Rewriter, op: Op) -> bool:
    """Hold the small weights of `op` in f32; whether any was not."""
    narrow = [i for i in _SMALL[op.opcode] if i < len(op.operands) and isinstance(op.operands[i], Weight)]
    narrow = [i for i in narrow if op.operands[i].tensor.dtype is not F32]
    for index in narrow:
        weight = op.operands[index]
        op.set_operand(index, rewriter.weight(f"{weight.name}.f32", "cast", weight, dtype=F32))
    return bool(narrow)


def _side_by_side(rewriter: Rewriter, swiglu: Op) -> Value:
    """Gate and up as columns of one value; each must be a product that nothing else uses."""
    for value in swiglu.operands:
        is_product = value.producer is not None and value.producer.opcode in _PRODUCTS
        if not is_product or sum(value.users.values()) != 1:
            reason = "gate and up are not two products that only the activation uses"
            raise LlamacError("LLC0505", swiglu.location, reason)
    return rewriter.op("concat", *swiglu.operands, axis=-1)


def _format(op: Op) -> WeightFormat:
    if "format" not in op.attributes:
        raise LlamacError("LLC0505", op.location, f"{op.opcode} has no weight format", "run select-kernels first")
    return format_of(str(op.attributes["format"]))


def _shape(weight: Value) -> tuple[int, int]:
    rows, columns = weight.tensor.shape
    assert isinstance(rows, int) and isinstance(columns, int)
    return rows, columns


def _packed(module: Module, weight: Value, fmt: WeightFormat) -> Weight:
    assert isinstance(weight, Weight)
    producer = weight.producer
    parts = producer.operands if producer is not None and producer.opcode == "dequantize" else (weight,)
    return define_weight(module, f"{weight.name}.packed", "pack", *parts, format=fmt.name)


def _linear(rewriter: Rewriter, op: Op) -> Value:
    x, weight = op.operands
    fmt, (rows, columns) = _format(op), _shape(weight)
    packed = _packed(rewriter.module, weight, fmt)
    if fmt.is_dense:
        return rewriter.op("linear_dense", x, packed, format=fmt.name, rows=rows, columns=columns)
    quantized = rewriter.multi("quantize_rows", x, block=fmt.block, padded=fmt.padded_columns(columns))
    return rewriter.op("linear_grouped", *quantized.results, packed, format=fmt.name, rows=rows, columns=columns)


def _expert_linear(rewriter: Rewriter, op: Op) -> Value:
    x, weight, offsets = op.operands
    fmt, (rows, columns) = _format(op), _shape(weight)
    groups = offsets.tensor.shape[0]
    assert isinstance(groups, int)
    each = rows // (groups - 1)
    if each % PANEL:
        reason = f"its experts have {each} rows, which do not fill whole panels of {PANEL}"
        raise LlamacError("LLC0506", weight.name, reason, "expert sizes must be multiples of 16 on this backend")
    packed = _packed(rewriter.module, weight, fmt)
    attributes: dict[str, Attribute] = {"format": fmt.name, "rows": each, "columns": columns, "experts": groups - 1}
    if fmt.is_dense:
        return rewriter.op("expert_linear_dense", x, packed, offsets, **attributes)
    quantized = rewriter.multi("quantize_rows", x, block=fmt.block, padded=fmt.padded_columns(columns))
    return rewriter.op("expert_linear_grouped", *quantized.results, packed, offsets, **attributes)


def _embedding(rewriter: Rewriter, op: Op) -> None:
    table, ids = op.operands
    fmt, (rows, columns) = _format(op), _shape(table)
    packed = _packed(rewriter.module, table, fmt)
    found = rewriter.op("embed_rows", ids, packed, format=fmt.name, rows=rows, columns=columns)
    # The lookup gives f32 whatever the table holds, so the cast that followed it is gone.
    for user in list(op.result.users):
        if user.opcode == "cast" and user.result.type == found.type:
            rewriter.replace(user.result, found)
    rewriter.replace(op.result, found)
