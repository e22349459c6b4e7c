"""The machine that a model is planned for: what is known of its memory, its bandwidth and its arithmetic."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from llamac.errors import LlamacError, did_you_mean
from llamac.host import cpu_features, machine_architecture
from llamac.target import GPUS, ONNX_TARGETS, TARGETS, TVM_TARGETS, best_target

from .formats import ONNX, PANEL16, ROWS16
from .work import Work


@dataclass(frozen=True)
class Machine:
    """One device. None and missing peaks mean unknown; rates are bytes and operations a second.

    code_bytes: about what compiled code takes, with the context of the driver on a GPU. cache: the type of keys and
    values where it is not the request's to choose. uncounted: what another system takes besides, which is not counted.
    """

    name: str
    kind: str
    summary: str
    memory_bytes: int | None
    bandwidth: float | None
    peaks: Mapping[str, float] = field(default_factory=dict)
    link_bandwidth: float | None = None
    code_bytes: int = 0
    layout: str = PANEL16
    cache: str = ""
    uncounted: str = ""

    @property
    def is_gpu(self) -> bool:
        """Whether the rules of GPUs hold: tensor cores, several devices."""
        return self.kind != "cpu"


CPU_CODE_BYTES = 128 << 10
"""Shared libraries of the CPU backend are 45 to 82 KB, whatever the model: equal layers are one function."""

GPU_CODE_BYTES = 512 << 20
"""About what a CUDA or HIP context takes before anything is loaded."""


def find_machine(name: str) -> Machine:
    """The machine of a target's name; `cpu` is this one, with its memory (LLC0603 for an unknown name)."""
    if name in GPUS:
        g = GPUS[name]
        rates = (g.memory_bytes, g.bandwidth, g.peaks, g.link_bandwidth)
        return Machine(name, g.kind, f"{g.summary}, {g.architecture}", *rates, GPU_CODE_BYTES, ROWS16)
    if name == "cpu":
        architecture = machine_architecture()
        row = best_target(architecture, cpu_features(architecture))
        return Machine(name, "cpu", f"this machine, {row.name}", own_memory(), None, code_bytes=CPU_CODE_BYTES)
    if name in TARGETS:
        return Machine(name, "cpu", TARGETS[name].summary, None, None, code_bytes=CPU_CODE_BYTES)
    if name in TVM_TARGETS or name in ONNX_TARGETS:
        return _other_system(name)
    names = ["cpu", *TARGETS, *GPUS]
    raise LlamacError("LLC0603", name, f"unknown target{did_you_mean(name, names)}", f"choose from {', '.join(names)}")


def _other_system(name: str) -> Machine:
    """The machine at hand, as another system runs a model on it (LLC0603 for a target whose code nobody runs here)."""
    target = (TVM_TARGETS | ONNX_TARGETS)[name]
    if target.kind == "tvm-source":
        reason = "the file keeps the source of its kernels alone, which nobody runs here"
        raise LlamacError("LLC0603", name, reason, "count a target that runs: --target cpu, or a GPU by its name")
    system = "ONNX Runtime" if name in ONNX_TARGETS else "TVM"
    uncounted = f"what {system} itself takes for a step is not counted, nor weights that it packs anew as it loads them"
    layout, cache = (ONNX, "f32") if name in ONNX_TARGETS else (PANEL16, "")
    return Machine(
        name,
        "cpu",
        f"this machine, {target.summary}",
        own_memory(),
        None,
        layout=layout,
        cache=cache,
        uncounted=uncounted,
    )


def own_memory() -> int | None:
    """Physical memory of this machine, or None where it cannot be asked."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


@dataclass(frozen=True)
class Floor:
    """The least time a piece of work can take, by what bounds it; None where the machine's rate is unknown."""

    seconds: float | None
    bound: str
    by_bound: Mapping[str, float | None]


def floor_of(work: Work, machine: Machine) -> Floor:
    """The roofline (Williams et al. 2009): every rate at its peak, everything at once, so the slowest part decides."""
    found: dict[str, float | None] = {
        "memory": work.memory_bytes / machine.bandwidth if machine.bandwidth else None,
        "compute": _compute_seconds(work, machine),
    }
    if work.exchanged_bytes:
        found["link"] = work.exchanged_bytes / machine.link_bandwidth if machine.link_bandwidth else None
    known = {name: seconds for name, seconds in found.items() if seconds is not None}
    if not known:
        return Floor(None, "unknown", found)
    bound = max(known, key=lambda name: known[name])
    return Floor(known[bound], bound, found)


def _compute_seconds(work: Work, machine: Machine) -> float | None:
    total = 0.0
    for dtype, operations in work.operations.items():
        # Without fp8 arithmetic such weights are widened first.
        peak = machine.peaks.get(dtype) or (machine.peaks.get("bf16") if dtype == "fp8" else None)
        if peak is None:
            return None
        total += operations / peak
    return total
