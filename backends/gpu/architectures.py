"""GPU instruction sets as data: what each can multiply, hold and do, as far as kernels depend on it."""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError, did_you_mean


@dataclass(frozen=True)
class Architecture:
    """One instruction set.

    capability: CUDA's number, 0 for AMD. warp: threads that run in step. shared_bytes: most shared memory of a block.
    registers: most 32-bit registers of a thread (vector registers on AMD, accumulation registers included).
    e4m3: the name of the 8-bit float that its matrix units multiply, "" when they multiply none. "e4m3fnuz" has the
    bits of e4m3fn and half its values. converts_e4m3: whether it converts e4m3fn in hardware.
    dependent_launch: whether a kernel can start before the one it depends on has ended. matrix_instruction: what the
    assembly of a large matrix product must contain.
    """

    name: str
    kind: str
    capability: int
    warp: int
    shared_bytes: int
    registers: int
    e4m3: str
    converts_e4m3: bool
    dependent_launch: bool
    matrix_instruction: str


_ROWS = (
    Architecture("sm_80", "cuda", 80, 32, 163 << 10, 255, "", False, False, "mma.sync"),
    Architecture("sm_86", "cuda", 86, 32, 99 << 10, 255, "", False, False, "mma.sync"),
    Architecture("sm_89", "cuda", 89, 32, 99 << 10, 255, "e4m3fn", True, False, "mma.sync"),
    Architecture("sm_90", "cuda", 90, 32, 227 << 10, 255, "e4m3fn", True, True, "wgmma.mma_async"),
    Architecture("sm_100", "cuda", 100, 32, 227 << 10, 255, "e4m3fn", True, True, "tcgen05.mma"),
    Architecture("sm_120", "cuda", 120, 32, 99 << 10, 255, "e4m3fn", True, True, "mma.sync"),
    Architecture("gfx90a", "hip", 0, 64, 64 << 10, 512, "", False, False, "v_mfma"),
    Architecture("gfx942", "hip", 0, 64, 64 << 10, 512, "e4m3fnuz", False, False, "v_mfma"),
    Architecture("gfx950", "hip", 0, 64, 160 << 10, 512, "e4m3fn", True, False, "v_mfma"),
    Architecture("gfx1100", "hip", 0, 32, 64 << 10, 256, "", False, False, "v_wmma"),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}
"""Name -> row."""


def architecture(name: str) -> Architecture:
    """The row called `name`; `sm_90a` and its like are the row without the letter (LLC0609 when there is none)."""
    plain = name.removesuffix("a") if name.startswith("sm_") else name
    if plain not in ARCHITECTURES:
        reason = f"no kernels are made for this instruction set{did_you_mean(plain, ARCHITECTURES)}"
        raise LlamacError("LLC0609", name, reason, f"choose {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[plain]
