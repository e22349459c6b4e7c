"""Finds the pinned Triton, imports it only when a kernel is wanted, and keeps its cache where llamac keeps its own."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from llamac.errors import LlamacError

TRITON_VERSION = "3.9.0"
"""The Triton release whose code generator is used; another one may emit other bytes."""

CUDA_TOOLKIT, HOPPER_TOOLKIT = "12.9", "13.4"
"""The CUDA releases of its two assemblers, the second one from compute capability 9.0 on. Cubins run with drivers of
the same major release, or of a newer one."""

PORTABLE_TOOLKIT = "12.0"
"""The CUDA release whose drivers know the version of the PTX that is kept for later GPUs."""

KERNELS = "llamac.backends.gpu.kernels"
_INSTALL = 'pip install "llamac[gpu]"'


def require_triton() -> None:
    """Check that the pinned Triton is there (LLC0607 when it is missing, LLC0608 when its version is another)."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        reason = "the compiler of GPU kernels is not installed"
        raise LlamacError("LLC0607", "triton", reason, _INSTALL) from None
    if version != TRITON_VERSION:
        reason = (
            f"version {version} is installed, but kernels are built with {TRITON_VERSION} so that bytes do not vary"
        )
        raise LlamacError("LLC0608", "triton", reason, _INSTALL)


def load_kernel(family: str, name: str) -> Any:
    """The kernel `name` of `kernels/<family>.py`; LLC0609 when there is none. Imports Triton."""
    require_triton()
    module = importlib.import_module(f"{KERNELS}.{family}")
    kernel = getattr(module, name, None)
    if kernel is None:
        raise LlamacError("LLC0609", f"{family}.{name}", "there is no such kernel (a bug in llamac)")
    return kernel
