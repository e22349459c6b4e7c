"""What this machine's CPU can do, and which code of an artifact fits it best.

Features carry the names of `/proc/cpuinfo` (`avx2`, `avx512_vnni`, `asimddp`): they are what a manifest's `requires`
lists. The kernel drops a flag from that file when it does not save the registers, so no XCR0 check is needed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamac.errors import LlamacError, did_you_mean
from llamac.host import cpu_features, machine_architecture

from .run_plan import CodeTarget

_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}


@dataclass(frozen=True)
class HostCpu:
    """A machine as targets see it: `x86_64` or `aarch64`, the operating system, and the CPU's feature flags."""

    architecture: str
    system: str
    features: frozenset[str]

    def missing(self, target: CodeTarget) -> tuple[str, ...]:
        """What `target` needs and this machine lacks, most basic first; empty when its code runs here."""
        if target.architecture != self.architecture:
            return (f"a {target.architecture} machine",)
        if self.system not in target.triple:
            return (f"the operating system of {target.triple}",)
        return tuple(name for name in target.requires if name not in self.features)


def detect_host() -> HostCpu:
    """The machine this process runs on."""
    architecture = machine_architecture()
    system = _SYSTEMS.get(sys.platform, sys.platform)
    return HostCpu(architecture, system, cpu_features(architecture))


def pick_target(targets: Sequence[CodeTarget], host: HostCpu, name: str | None = None) -> CodeTarget:
    """The target to run on `host`: the one called `name`, else the fitting one that asks for the most features.

    Raises LLC0801 when `name` is not in the artifact and LLC0800, with what is missing for each, when nothing fits.
    """
    runnable = [target for target in targets if target.kind == "cpu"]
    if name is not None:
        runnable = [target for target in runnable if target.name == name]
        if not runnable:
            known = [target.name for target in targets]
            reason = f"the artifact has no target {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}"
            raise LlamacError("LLC0801", "targets", reason, "name one of them, or none to take the best that fits")
    fitting = [target for target in runnable if not host.missing(target)]
    if not fitting:
        raise _nothing_fits(runnable, host)
    return max(fitting, key=lambda target: len(target.requires))


def check_runs(target: CodeTarget, host: HostCpu) -> None:
    """Refuse code that this machine cannot run (LLC0800, with what is missing)."""
    if host.missing(target):
        raise _nothing_fits([target], host)


def _nothing_fits(targets: Sequence[CodeTarget], host: HostCpu) -> LlamacError:
    needs = "; ".join(f"{target.name} needs {', '.join(host.missing(target))}" for target in targets)
    reason = (
        f"this {host.architecture} {host.system} machine runs none of the artifact's code: {needs or 'it has none'}"
    )
    return LlamacError("LLC0800", "targets", reason, "compile the model again with --target cpu on this machine")


def usable_threads() -> int:
    """How many threads do useful work here: allowed CPUs, one per physical core, within the cgroup's quota."""
    cores = len(one_cpu_a_core())
    quota = min(map(_cgroup_quota, _quota_files()), default=math.inf)
    return max(1, cores if quota == math.inf else min(cores, math.ceil(quota)))


def one_cpu_a_core() -> list[int]:
    """The first processor that this process may use of each physical core."""
    first: dict[str, int] = {}
    for cpu in allowed_cpus():
        first.setdefault(_core_of(cpu), cpu)
    return list(first.values())


def allowed_cpus() -> list[int]:
    """The numbers of the processors that this process may use."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _core_of(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _quota_files(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """The files that may limit this process's time: those of its control group and of all above it."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        lines = []
    found = [mounted / "cpu.max", mounted / "cpu" / "cpu.cfs_quota_us"]
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        folder, name = (mounted / "cpu", "cpu.cfs_quota_us") if kinds else (mounted, "cpu.max")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [folder.joinpath(*parts[:depth], name) for depth in range(1, len(parts) + 1)]
    return found


def _cgroup_quota(path: Path) -> float:
    """CPUs' worth of time that a file of a control group, of version 2 or 1, allows; infinite without limit."""
    try:
        words = path.read_text(encoding="ascii").split()
        if path.name == "cpu.cfs_quota_us":
            words.append(path.with_name("cpu.cfs_period_us").read_text(encoding="ascii"))
        return math.inf if words[0] in ("max", "-1") else int(words[0]) / int(words[1])
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return math.inf
