"""C literals of formats and numbers."""

from __future__ import annotations

from llamac.ir.layouts import WeightFormat

C_TYPES = {
    "f32": "LLAMAC_F32",
    "f16": "LLAMAC_F16",
    "bf16": "LLAMAC_BF16",
    "e4m3fn": "LLAMAC_E4M3FN",
    "i8": "LLAMAC_KV_I8",
}
"""Element type -> the kernel library's name of it; i8 is that of a cache with scales."""


def c_format(fmt: WeightFormat) -> str:
    """The format as the kernel library's literal."""
    if fmt.is_dense:
        return C_TYPES[fmt.quants.name] + ("_PAIRS" if fmt.in_pairs else "")
    assert fmt.scale is not None
    signed = int(fmt.quants.name.startswith("i"))
    minimum = fmt.minimum.bits if fmt.minimum else 0
    return f"(llamac_grouped){{{fmt.quants.bits}, {signed}, {fmt.group}, {fmt.scale.bits}, {minimum}}}"


def c_text(text: str) -> str:
    """A C string of harmless characters: names of weights come from checkpoints."""
    return '"' + "".join(c if c.isascii() and (c.isalnum() or c in " .,:_-+") else "_" for c in text) + '"'


def c_float(value: float) -> str:
    """An f32 literal with every bit, by way of the nearest double."""
    return f"(float){float(value).hex()}"
