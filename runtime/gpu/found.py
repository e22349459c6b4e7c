"""The GPUs of this machine, and why there are none."""

from __future__ import annotations

from llamac.errors import LlamacError

from .driver import Driver, GpuInfo, Kind

KINDS: tuple[Kind, ...] = ("cuda", "hip")
_NAMES = {"cuda": "NVIDIA", "hip": "AMD"}


def load_driver(kind: Kind) -> Driver:
    """The driver of a kind of GPU: LLC0860 when its library is missing, LLC0861 when cuda-bindings is."""
    if kind == "cuda":
        from .cuda_driver import CudaDriver

        return CudaDriver()
    from .hip_driver import HipDriver

    return HipDriver()


def find_gpu(kind: Kind, index: int = 0) -> tuple[Driver, GpuInfo]:
    """A GPU by its number and its driver, not yet opened; LLC0862 when there is none of that number."""
    driver = load_driver(kind)
    gpus = driver.gpus()
    if index >= len(gpus):
        has = f"only {len(gpus)}" if gpus else "none"
        reason = f"there is no {_NAMES[kind]} GPU number {index} here, the driver finds {has}"
        raise LlamacError("LLC0862", f"{kind}:{index}", reason, "`llamac targets` lists them; --device cpu needs none")
    return driver, gpus[index]


def gpus_here() -> tuple[list[GpuInfo], list[LlamacError]]:
    """All GPUs of this machine, and for each kind without any the reason."""
    gpus: list[GpuInfo] = []
    reasons: list[LlamacError] = []
    for kind in KINDS:
        try:
            found = load_driver(kind).gpus()
            if not found:
                reasons.append(LlamacError("LLC0862", kind, f"the driver finds no {_NAMES[kind]} GPU"))
            gpus += found
        except LlamacError as error:
            reasons.append(error)
    return gpus, reasons
