"""Quantizes weight matrices to 4-bit integers, group by group along the input.

Before: `linear %x, @w`
After:  `@w.i4 = dequantize @w.i4.quants, @w.i4.scales {group}`, `linear %x, @w.i4`

Symmetric: scale * q, the element of largest magnitude becoming exactly -8. Asymmetric: scale * q + minimum, q unsigned.
Norms and routers of experts stay as they are. Must not fire twice on one weight; requantizing a quantized checkpoint
goes to the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.ir.dtypes import I4, U4
from llamac.ir.graph import Module
from llamac.ir.levels import MODEL
from llamac.transform.base import Pass, PassContext, PassResult
from llamac.transform.integers import quantize_matrices


@dataclass(frozen=True)
class QuantizeInt4(Pass):
    """Matrices of `weights` (all, blocks or tables) -> 4-bit integers in groups of `group`."""

    name = "quantize-int4"
    requires = (MODEL,)
    weights: str = "all"
    group: int = 32
    asymmetric: bool = False

    def run(self, module: Module, context: PassContext) -> PassResult:
        dtype = U4 if self.asymmetric else I4
        return PassResult(
            {"matrix": quantize_matrices(module, context, self.weights, dtype, self.group, self.asymmetric)}
        )
