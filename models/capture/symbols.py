"""torch's symbolic sizes as dimensions: `s81 + s23` becomes `P + T`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamac.errors import LlamacError
from llamac.ir.dims import DimLike, symbol


def is_symbolic(value: object) -> bool:
    """Whether `value` is one of torch's symbolic integers."""
    return type(value).__name__ == "SymInt"


def dimension(size: Any, names: Mapping[str, str], where: str) -> DimLike:
    """The dimension for an int or a SymInt; `names` maps torch's symbols to ours (LLC0317 when it is no polynomial)."""
    return _polynomial(size.node.expr, names, where) if is_symbolic(size) else int(size)


def _polynomial(expression: Any, names: Mapping[str, str], where: str) -> DimLike:
    """A sympy expression of sums and products over the named symbols."""
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol and str(expression) in names:
        return symbol(names[str(expression)])
    parts = (
        [_polynomial(part, names, where) for part in expression.args] if expression.is_Add or expression.is_Mul else []
    )
    if not parts:
        known = ", ".join(f"{theirs} = {ours}" for theirs, ours in names.items())
        reason = f"the size {expression} is no sum of products of the tokens and the past ({known})"
        raise LlamacError("LLC0317", where, reason, "export with two dynamic dimensions only: tokens and past")
    total, *others = parts
    for part in others:
        total = total + part if expression.is_Add else total * part
    return total
