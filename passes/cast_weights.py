"""Stores weight matrices in one float dtype.

Before: `linear %x, @w`, @w in bf16 or dequantized
After:  `@w.f32 = cast @w {dtype = f32}`, `linear %x, @w.f32`

Must not fire on matrices that are stored in that dtype already.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError, did_you_mean
from llamac.ir.builder import define_weight
from llamac.ir.dtypes import DTYPES
from llamac.ir.graph import Module, Weight
from llamac.ir.levels import MODEL
from llamac.transform.base import LedgerEntry, Pass, PassContext, PassResult
from llamac.transform.matrices import matrices, replace_weights, stored_as

STORED = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class CastWeights(Pass):
    """Matrices -> `dtype`."""

    name = "cast-weights"
    requires = (MODEL,)
    dtype: str = "f32"

    def run(self, module: Module, context: PassContext) -> PassResult:
        if self.dtype not in STORED:
            raise LlamacError("LLC0502", "dtype", f"must be {', '.join(STORED)}{did_you_mean(self.dtype, STORED)}")
        replacements: dict[Weight, Weight] = {}
        for weight in matrices(module, "all"):
            if stored_as(weight) == self.dtype:
                continue
            if weight.producer is not None and weight.producer.opcode == "dequantize" and self.dtype != "f32":
                entry = LedgerEntry(
                    "rounded", weight.name, f"{stored_as(weight)} rounded to {self.dtype}", "--quantize asked for it"
                )
                context.ledger.append(entry)
            name = f"{weight.name}.{self.dtype}"
            replacements[weight] = define_weight(module, name, "cast", weight, dtype=DTYPES[self.dtype])
        replace_weights(module, replacements)
        return PassResult({"matrix": len(replacements)})
