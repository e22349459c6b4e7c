"""Which packed format a weight gets under a quantization, and its bytes: what the passes decide, as arithmetic.

`tests/planning/test_weights.py` holds this against the compiler, format by format.
"""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.gguf_blocks import BLOCKS
from llamac.ir.layouts import WeightFormat, format_of, grouped_name
from llamac.passes.pipelines import Quantization

PANEL16 = "cpu-panel16"
PLAIN = "plain"
"""Layouts: that of the CPU targets, to the byte; and plain rows with their scales, for targets whose layout is open."""

DENSE = ("f32", "f16", "bf16", "e4m3fn")


def stored_format(encoding: str) -> str:
    """The format that holds a weight as the checkpoint stores it."""
    if encoding in BLOCKS:
        block = BLOCKS[encoding]
        return grouped_name(block.quants, block.group, block.scale, block.minimum)
    if encoding in DENSE:
        return encoding
    reason = f"weights stored as {encoding} have no packed format to count with"
    raise LlamacError("LLC0506", "weights", reason, "choose another --quantize")


def packed_format(encoding: str, quantization: Quantization, is_table: bool = False, is_router: bool = False) -> str:
    """The format of a matrix; tables are the embedding and the head, routers are cast but not quantized."""
    scheme = quantization.scheme
    if scheme in ("f32", "f16", "bf16"):
        return scheme
    if is_router:
        return stored_format(encoding)
    if scheme == "fp8" and not is_table:
        return "e4m3fn"
    if scheme == "int4" and is_table:
        return "i8g32s16"
    if scheme in ("int8", "int4"):
        sign, minimum = ("u", "m16") if quantization.asymmetric else ("i", "")
        return f"{sign}{scheme[-1]}g{quantization.group}s16{minimum}"
    return stored_format(encoding)


def matrix_bytes(name: str, rows: int, columns: int, layout: str) -> int:
    """Bytes of a rows x columns matrix in a format, in a layout."""
    form = format_of(name)
    return form.packed_bytes(rows, columns) if layout == PANEL16 else _plain_bytes(form, rows, columns)


def _plain_bytes(form: WeightFormat, rows: int, columns: int) -> int:
    bits = columns * form.quants.bits
    if form.is_dense:
        bits += 32 if form.name == "e4m3fn" else 0
    else:
        assert form.scale is not None
        groups = -(-columns // form.group)
        bits += groups * (form.scale.bits + (form.minimum.bits if form.minimum else 0))
    return rows * (-(-bits // 8))


def math_of(name: str, on_gpu: bool) -> str:
    """The type in which a weight of this format is multiplied.

    CPU code quantizes activations to int8 for integer weights and keeps them in f32 for all others. On a GPU 4-bit
    weights are widened to bf16 before the tensor cores see them.
    """
    form = format_of(name)
    if not on_gpu:
        return "f32" if form.is_dense else "int8"
    if form.is_dense:
        return "fp8" if name == "e4m3fn" else name
    return "int8" if form.quants.bits == 8 else "bf16"
