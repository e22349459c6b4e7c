"""The levels of lowering: which ops may appear when.

*captured* is what a checkpoint's config or torch.export gives: textbook arithmetic. *model* has one op per idea of the
paper (linear, rms_norm, rope, attention, swiglu). *kernel* has one op per generated function. `raising` and `lowering`
are the ways between: both sides are legal there.
"""

from __future__ import annotations

CAPTURED = "captured"
RAISING = "raising"
MODEL = "model"
LOWERING = "lowering"
KERNEL = "kernel"

LEVELS: tuple[str, ...] = (CAPTURED, RAISING, MODEL, LOWERING, KERNEL)

_VISIBLE: dict[str, frozenset[str]] = {
    CAPTURED: frozenset({CAPTURED}),
    RAISING: frozenset({CAPTURED, MODEL}),
    MODEL: frozenset({MODEL}),
    LOWERING: frozenset({MODEL, KERNEL}),
    KERNEL: frozenset({KERNEL}),
}


def is_legal(op_levels: frozenset[str], module_level: str) -> bool:
    """Whether an op defined for `op_levels` may appear in a module at `module_level`."""
    return bool(op_levels & _VISIBLE[module_level])
