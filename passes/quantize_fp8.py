"""Quantizes weight matrices to e4m3fn with one f32 scale a row, as Meta's FP8 releases store them.

Before: `linear %x, @w`
After:  `@w.e4m3fn = dequantize @w.e4m3fn.quants, @w.e4m3fn.scales {group = columns}`, `linear %x, @w.e4m3fn`

By default the embedding and the head stay as they are, and routers of experts always, which the ledger says. Must not
fire twice on one weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.builder import define_weight
from llamac.ir.dtypes import E4M3FN
from llamac.ir.graph import Module, Weight
from llamac.ir.levels import MODEL
from llamac.transform.base import LedgerEntry, Pass, PassContext, PassResult
from llamac.transform.matrices import matrices, replace_weights, stored_as, without_routers


@dataclass(frozen=True)
class QuantizeFp8(Pass):
    """Matrices of `weights` (all, blocks or tables) -> e4m3fn with row scales."""

    name = "quantize-fp8"
    requires = (MODEL,)
    weights: str = "blocks"

    def run(self, module: Module, context: PassContext) -> PassResult:
        wanted = [w for w in without_routers(matrices(module, self.weights), context) if not _is_fp8(w)]
        replace_weights(module, {weight: _quantized(module, weight) for weight in wanted})
        if wanted and self.weights == "blocks":
            for weight in matrices(module, "tables"):
                reason = "FP8 releases keep the embedding and the head unquantized"
                context.ledger.append(LedgerEntry("unquantized", weight.name, f"stays {stored_as(weight)}", reason))
        return PassResult({"matrix": len(wanted)})


def _is_fp8(weight: Weight) -> bool:
    producer = weight.producer
    if producer is None or producer.opcode != "dequantize":
        return False
    quants, scale = (v.tensor for v in producer.operands[:2])
    return quants.dtype is E4M3FN and scale.shape[1] == 1  # Meta's FP8 files have a scale for the inputs of each rank


def _quantized(module: Module, weight: Weight) -> Weight:
    base = f"{weight.name}.e4m3fn"
    columns = weight.tensor.shape[1]
    assert isinstance(columns, int)
    scale = define_weight(module, f"{base}.scales", "row_scale", weight)
    quants = define_weight(module, f"{base}.quants", "row_quants", weight, scale)
    return define_weight(module, base, "dequantize", quants, scale, group=columns)
