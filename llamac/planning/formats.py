"""Which packed format a weight gets under a quantization, and its bytes: what the passes decide, as arithmetic.

`tests/planning/test_weights.py` holds this against the compiler, format by format.
"""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.dtypes import E4M3FN
from llamac.ir.gguf_blocks import BLOCKS
from llamac.ir.layouts import IN_PAIRS, WeightFormat, format_of, grouped_name
from llamac.ir.row_layouts import RowLayout
from llamac.passes.pipelines import Quantization

PANEL16 = "cpu-panel16"
ROWS16 = "gpu-rows16"
ONNX, ONNX_PAGE = "onnx", 4096
"""Layouts: those of the CPU and of the GPU targets, and of ONNX Runtime's graph, to the byte."""

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
    if layout == PANEL16:
        return format_of(IN_PAIRS.get(name, name)).packed_bytes(rows, columns)
    return (
        _onnx_bytes(format_of(name), rows, columns)
        if layout == ONNX
        else RowLayout(format_of(name), rows, columns).bytes
    )


def _onnx_bytes(form: WeightFormat, rows: int, columns: int) -> int:
    """Values as they are; of integers whole groups; scales and minima in f32: each a tensor at its own page."""
    groups = -(-columns // form.group) if form.group else 1
    if form.is_dense:
        sizes = [rows * columns * form.quants.storage.itemsize, 4 * rows if form.quants is E4M3FN else 0]
    elif form.minimum is not None and columns % form.group:
        sizes = [4 * rows * columns]  # held dequantized: ONNX has no form for it
    else:
        parts = 2 if form.minimum else 1
        sizes = [rows * groups * form.group * form.quants.bits // 8, *[4 * rows * groups] * parts]
    return sum(-(-size // ONNX_PAGE) * ONNX_PAGE for size in sizes)


def math_of(name: str, on_gpu: bool) -> str:
    """The type in which a weight of this format is multiplied.

    CPU code quantizes activations to int8 for integer weights, rounds them to bf16 for bf16 and fp8 weights and keeps
    them in f32 for all others. On a GPU 4-bit weights are widened to bf16 before the tensor cores see them.
    """
    form = format_of(name)
    if not on_gpu:
        return "int8" if not form.is_dense else "bf16" if name in IN_PAIRS else "f32"
    if form.is_dense:
        return "fp8" if name == "e4m3fn" else name
    return "int8" if form.quants.bits == 8 else "bf16"
