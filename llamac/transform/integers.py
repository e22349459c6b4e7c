"""Group-wise integer quantization of weights, shared by the int8 and int4 passes."""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.builder import define_weight
from llamac.ir.dtypes import DType
from llamac.ir.graph import Module, Weight

from .base import LedgerEntry, PassContext
from .matrices import matrices, replace_weights, stored_as, without_routers

GROUPS = (32, 64, 128)


def quantize_matrices(
    module: Module, context: PassContext, role: str, dtype: DType, group: int, asymmetric: bool
) -> int:
    """Replace each matrix of `role` by `dequantize` of group-wise integers; returns how many were replaced."""
    if group not in GROUPS:
        raise LlamacError("LLC0502", "group", f"must be one of {', '.join(map(str, GROUPS))}, not {group}")
    replacements: dict[Weight, Weight] = {}
    for weight in without_routers(matrices(module, role), context):
        producer = weight.producer
        if producer is not None and producer.opcode == "dequantize":
            if producer.operands[0].producer is not None and producer.operands[0].producer.opcode == "group_quants":
                continue
            context.ledger.append(
                LedgerEntry(
                    "requantized",
                    weight.name,
                    f"{stored_as(weight)} values quantized again as {dtype} g{group}",
                    "the checkpoint is already quantized; --quantize keep would use its own blocks",
                )
            )
        replacements[weight] = _quantized(module, weight, dtype, group, asymmetric)
    replace_weights(module, replacements)
    return len(replacements)


def _quantized(module: Module, weight: Weight, dtype: DType, group: int, asymmetric: bool) -> Weight:
    base = f"{weight.name}.{dtype}"
    scale = define_weight(module, f"{base}.scales", "group_scale", weight, group=group, dtype=dtype)
    parts = [scale]
    if asymmetric:
        parts.append(define_weight(module, f"{base}.mins", "group_min", weight, group=group))
    quants = define_weight(module, f"{base}.quants", "group_quants", weight, *parts, group=group, dtype=dtype)
    return define_weight(module, base, "dequantize", quants, *parts, group=group)
