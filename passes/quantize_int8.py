"""Quantizes weight matrices to 8-bit integers, group by group along the input.

Before: `linear %x, @w`
After:  `@w.i8 = dequantize @w.i8.quants, @w.i8.scales {group}`, `linear %x, @w.i8`

Symmetric: scale * q with q in [-127, 127]. Asymmetric: scale * q + minimum with q unsigned.
Norms and routers of experts stay as they are. Must not fire twice on one weight; requantizing a quantized checkpoint
goes to the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dtypes import I8, U8
from llamac.ir.graph import Module
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.integers import quantize_matrices


@dataclass(frozen=True)
class QuantizeInt8(Pass):
    """Matrices of `weights` (all, blocks or tables) -> 8-bit integers in groups of `group`."""

    name = "quantize-int8"
    requires = (MODEL,)
    weights: str = "all"
    group: int = 32
    asymmetric: bool = False

    def run(self, module: Module, context: PassContext) -> PassResult:
        dtype = U8 if self.asymmetric else I8
        return PassResult(
            {"matrix": quantize_matrices(module, context, self.weights, dtype, self.group, self.asymmetric)}
        )
