"""The table of all rules: what TVM code can be made of."""

from __future__ import annotations

from collections.abc import Callable

from llamac.errors import LlamacError

from ..kernel import FlatOp, Kernel
from . import attention, encoder, products, quants, routing, rows

RULES: dict[str, Callable[[Kernel], None]] = {
    **rows.RULES,
    **attention.RULES,
    **products.RULES,
    **quants.RULES,
    **routing.RULES,
    **encoder.RULES,
}
"""Opcode -> rule."""


def written(op: FlatOp, on_gpu: bool) -> Kernel:
    """The function of an op, written (LLC0942 for one that has no rule)."""
    rule = RULES.get(op.opcode)
    if rule is None:
        reason = f"op '{op.opcode}' has no rule for TVM"
        raise LlamacError("LLC0942", op.location or "step", reason, "compile it for a CPU target instead")
    kernel = Kernel(op, on_gpu)
    rule(kernel)
    return kernel
