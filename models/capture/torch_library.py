"""torch itself, imported on first use: capture is the one part of llamac that needs it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llamac.errors import LlamacError
from llamac.ir.dtypes import BF16, F16, F32, I1, I32, DType


def require_torch() -> Any:
    """The torch module (LLC0311 when it is not installed)."""
    try:
        return import_module("torch")
    except ImportError:
        hint = 'pip install "llamac[torch]"'
        raise LlamacError("LLC0311", "torch", "capturing a torch module needs torch", hint) from None


_DTYPES: dict[str, DType] = {
    "float32": F32,
    "float16": F16,
    "bfloat16": BF16,
    "int64": I32,
    "int32": I32,
    "bool": I1,
}
"""torch's names. Token ids, positions and sizes are i32 here: torch's 64 bits have nothing to hold."""


HINT = f"supported: {', '.join(_DTYPES)}"


def ir_dtype(dtype: object, where: str, what: str = "") -> DType:
    """The element type for a torch dtype (LLC0315 for one that no Llama needs)."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise LlamacError("LLC0315", where, f"{what}the dtype {name} is not supported", HINT)
    return _DTYPES[name]
