"""Has products with weights in 8-bit floats take activations in 8-bit floats too, in large steps.

Before: `%y = linear_rows16 %x, @w {format = "e4m3fn"}`
After:  `%y = linear_rows16 %x, @w {e4m3_above = 64, format = "e4m3fn"}`

Each row, after its norm, is divided by max |row| / 448 and rounded to e4m3fn, so that matrix units multiply 8 bits
with 8. That pays where a step multiplies a lot: steps of up to `above` tokens wait for weights, and keep their
activations as they are. Must not fire on weights of another type, nor on rows that a list chooses: those are few.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError
from llamac.ir.graph import Module, Op
from llamac.ir.levels import KERNEL, LOWERING
from llamac.ir.ops.row_kernels import E4M3_ABOVE
from llamac.transform.base import LedgerEntry, Pass, PassContext, PassResult

ABOVE = 64
"""Tokens of the largest decoding step of a GPU."""

_PRODUCTS = ("linear_rows16", "gate_up_rows16", "qkv_rows16", "expert_gate_up_rows16", "expert_down_rows16")


@dataclass(frozen=True)
class RoundActivations(Pass):
    """Products over packed rows of e4m3fn -> with activations in e4m3fn, in steps of more than `above` tokens."""

    name = "round-activations"
    requires = (LOWERING, KERNEL)
    above: int = ABOVE

    def run(self, module: Module, context: PassContext) -> PassResult:
        if self.above < 1:
            raise LlamacError("LLC0502", "above", f"a number of tokens is positive, not {self.above}")
        found = [op for _, op in module.ops() if _takes(op)]
        for op in found:
            op.attributes[E4M3_ABOVE] = self.above
        if found:
            what = f"activations are 8-bit floats in steps of more than {self.above} tokens"
            reason = "their matrix products are made twice as fast; smaller steps wait for weights"
            context.ledger.append(LedgerEntry("note", "activations", what, reason))
        return PassResult({"product": len(found)})


def _takes(op: Op) -> bool:
    if op.opcode not in _PRODUCTS or E4M3_ABOVE in op.attributes or op.attributes["format"] != "e4m3fn":
        return False
    return "rows" not in str(op.attributes["operands"]).split()
