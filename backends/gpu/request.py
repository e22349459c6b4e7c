"""One kernel to compile, as data: which function, which parameter types and constants, how many warps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Constant = int | float | str | bool | None
"""What a constant parameter can be; None says that a pointer is not there."""


@dataclass(frozen=True)
class CompileOptions:
    """warps: per block. stages: how deep loops prefetch. dependent_launch: compiled for programmatic dependent launch.

    max_registers: the most a thread may have, 0 for the compiler's choice; CUDA only. waves: the least waves of a unit
    that should run at once, 0 for the compiler's choice; HIP only.
    """

    warps: int = 4
    stages: int = 2
    dependent_launch: bool = False
    max_registers: int = 0
    waves: int = 0


@dataclass(frozen=True)
class KernelRequest:
    """One kernel to compile: `kernels/<family>.py`'s `kernel` with these parameter types, constants and options."""

    family: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Constant]
    options: CompileOptions = field(default_factory=CompileOptions)

    @property
    def label(self) -> str:
        """A short name for people: the kernel and its shape."""
        shown = [f"{key}{self.constants[key]}" for key in ("WEIGHT", "N", "HEADS", "K", "M") if key in self.constants]
        return "-".join([self.kernel, *shown])
