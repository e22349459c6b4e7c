"""Which code of an artifact runs on a GPU, and its kernels as functions of the driver."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llamac.artifact.launch_plan import LaunchPlan
from llamac.artifact.launch_plan_file import read_plan
from llamac.errors import LlamacError, did_you_mean

from ..run_plan import CodeTarget
from .driver import Driver, GpuInfo

Read = Callable[[str], bytes]
"""The bytes of an artifact's member."""


def pick_code(
    targets: Sequence[CodeTarget], gpu: GpuInfo, read: Read, name: str | None = None
) -> tuple[CodeTarget, LaunchPlan]:
    """The target to run on `gpu` and its launch plan: code made for its architecture, else PTX.

    LLC0801 when the artifact has no target called `name`, LLC0863 when none of its code fits, with what it has, LLC0865
    when the driver is older than the code needs.
    """
    fitting = [t for t in targets if t.kind == gpu.kind and name in (None, t.name)]
    if name is not None and not fitting:
        known = [t.name for t in targets if t.kind == gpu.kind]
        reason = f"the artifact has no {gpu.kind} target {name!r}{did_you_mean(name, known)}"
        raise LlamacError("LLC0801", "targets", reason, f"it has {', '.join(known) or 'none'}")
    exact = [(t, t.code) for t in fitting if gpu.architecture in t.requires]
    portable = [(t, t.fallback) for t in fitting if t.fallback is not None]
    too_old: LlamacError | None = None
    for target, member in (*exact, *portable):
        plan = read_plan(read(member), member)
        if not _fits(plan, gpu):
            continue
        old = _too_old(plan, gpu)
        if old is None:
            return target, plan
        too_old = too_old or old
    raise too_old or _no_code(targets, gpu)


def _fits(plan: LaunchPlan, gpu: GpuInfo) -> bool:
    if plan.kind != gpu.kind:
        return False
    shared = max((kernel.shared_bytes for kernel in plan.kernels), default=0)
    if gpu.shared_bytes and shared > gpu.shared_bytes:
        return False
    if plan.code == "ptx":
        return _capability(plan.architecture) <= _capability(gpu.architecture)
    return plan.architecture == gpu.architecture


def _capability(architecture: str) -> int:
    found = re.search(r"\d+", architecture)
    return int(found[0]) if found else 0


def _too_old(plan: LaunchPlan, gpu: GpuInfo) -> LlamacError | None:
    """Machine code runs on every driver of its toolkit's major release, PTX only on one as new as the toolkit."""
    if not plan.toolkit:
        return None
    major, minor = (int(part) for part in (*plan.toolkit.split("."), "0")[:2])
    needed = (major, minor) if plan.code == "ptx" else (major, 0)
    if gpu.driver >= needed:
        return None
    reason = (
        f"{gpu.label} supports CUDA {gpu.driver[0]}.{gpu.driver[1]}, and the artifact's {plan.code} for "
        f"{plan.architecture} needs {needed[0]}.{needed[1]}"
    )
    return LlamacError("LLC0865", "driver", reason, "install a newer driver of the GPU, or run on the CPU")


def _no_code(targets: Sequence[CodeTarget], gpu: GpuInfo) -> LlamacError:
    has = "; ".join(f"{t.name} ({', '.join(t.requires) if t.kind != 'cpu' else t.triple})" for t in targets)
    reason = f"{gpu.label} runs none of the artifact's code: it has {has}"
    return LlamacError(
        "LLC0863", gpu.architecture, reason, f"compile the model for {gpu.architecture}, or run on the CPU"
    )


class GpuCode:
    """The kernels of a plan in the driver: `functions[i]` is kernel i. Unload them with `close`."""

    def __init__(self, driver: Driver, plan: LaunchPlan, read: Read) -> None:
        self._driver = driver
        self._modules: dict[str, int] = {}
        self.functions: list[int] = []
        try:
            for kernel in plan.kernels:
                if kernel.global_scratch_bytes or kernel.profile_scratch_bytes:
                    reason = f"the kernel {kernel.name} needs scratch memory, which this llamac does not give"
                    raise LlamacError("LLC0802", plan.target, reason, "use the llamac that made the file")
                self.functions.append(self._load(kernel.member, kernel.name, kernel.shared_bytes, plan, read))
        except BaseException:
            self.close()
            raise

    def _load(self, member: str, name: str, shared_bytes: int, plan: LaunchPlan, read: Read) -> int:
        if member not in self._modules:
            image = read(member)
            # The driver reads PTX up to its zero byte.
            self._modules[member] = self._driver.load_module(image + b"\0" if plan.code == "ptx" else image)
        function = self._driver.function(self._modules[member], name)
        self._driver.allow_shared(function, shared_bytes)
        return function

    def close(self) -> None:
        """Unload everything."""
        while self._modules:
            self._driver.unload_module(self._modules.popitem()[1])
