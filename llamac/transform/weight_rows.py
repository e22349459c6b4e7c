"""Ops over the rows of weights that see through `dequantize`, so that quantized weights stay quantized."""

from __future__ import annotations

from collections.abc import Sequence

from llamac.ir.builder import define_weight
from llamac.ir.graph import Attribute, Module, Value, Weight


def scheme_of(weight: Value) -> object:
    """What two weights must share to be joined: dtype, and for a dequantized one the dtypes of its parts and group."""
    producer = weight.producer
    if producer is None or producer.opcode != "dequantize":
        return weight.tensor.dtype
    return (producer.attributes["group"], *(v.tensor.dtype for v in producer.operands))


def over_rows(module: Module, name: str, opcode: str, weights: Sequence[Value], **attributes: Attribute) -> Weight:
    """`opcode` over the rows of `weights`, which share one scheme: applied to integers, scales and mins apart."""
    producers = [w.producer for w in weights]
    first = producers[0]
    if first is None or first.opcode != "dequantize":
        return define_weight(module, name, opcode, *weights, **attributes)
    parts = []
    for index, role in zip(range(len(first.operands)), ("quants", "scales", "mins"), strict=False):
        operands = [p.operands[index] for p in producers if p is not None]
        parts.append(define_weight(module, f"{name}.{role}", opcode, *operands, **attributes))
    return define_weight(module, name, "dequantize", *parts, group=first.attributes["group"])
