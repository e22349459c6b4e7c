"""Which device runs an artifact: a GPU that it has code for, or the CPU; never silently another than was asked for."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamac.errors import LlamacError

from .run_plan import CodeTarget

if TYPE_CHECKING:
    from llamac.artifact.launch_plan import LaunchPlan

    from .gpu.driver import Driver, GpuInfo, Kind

Say = Callable[[str], None]

_DEVICE = re.compile(r"(auto|cpu|cuda|hip|tvm|onnxruntime)(?::(\d{1,3}))?")
OTHER_SYSTEMS: dict[str, tuple[str, ...]] = {"tvm": ("tvm", "tvm-source"), "onnxruntime": ("onnxruntime",)}
"""Device -> the kinds of targets whose code another system runs on this machine's CPU, the best first."""

EXAMPLES = {"tvm": "tvm:llvm"}
"""Device -> a target that it runs, where they are not called the same."""

_NO_USABLE_GPU = frozenset({"LLC0860", "LLC0861", "LLC0862", "LLC0863", "LLC0865"})
"""What lets `auto` go on to the next device; a GPU with too little memory, for one, is an error."""


@dataclass(frozen=True)
class ChosenGpu:
    """A GPU, open, with the target to run there and its launch plan."""

    driver: Driver
    gpu: GpuInfo
    target: CodeTarget
    launch_plan: LaunchPlan


def say_on_stderr(line: str) -> None:
    """How the choice of `auto` is told unless the caller wants it otherwise."""
    print(f"llamac: {line}", file=sys.stderr)


def choose_gpu(
    targets: Sequence[CodeTarget], read: Callable[[str], bytes], device: str, target: str | None, say: Say
) -> ChosenGpu | None:
    """The GPU to run on; None for the CPU.

    device: `cpu`, `cuda`, `hip`, one with a number (`cuda:1`), or `auto`: the first GPU here that the artifact has code
    for, else the CPU, which `say` is told. target: the name of the code to use. Errors: LLC0811 for an unknown device;
    where a GPU must be, those of `gpu.found.find_gpu` and `gpu.code.pick_code`.
    """
    wanted, index = _parse(device)
    named = [t for t in targets if target in (None, t.name)]
    kinds = list(dict.fromkeys(t.kind for t in named if t.kind in ("cuda", "hip")))
    if wanted in ("cuda", "hip"):
        return _open(wanted, index, targets, read, target)
    if wanted in ("cpu", *OTHER_SYSTEMS) or not kinds:
        return None
    reasons = []
    for kind in kinds:
        try:
            chosen = _open(kind, index, targets, read, target)
        except LlamacError as error:
            if error.code not in _NO_USABLE_GPU or all(t.kind != "cpu" for t in named):
                raise
            reasons.append(f"{error.where}: {error.reason}")
            continue
        say(f"running on {chosen.gpu.label}")
        return chosen
    say(f"running on the CPU; {'; '.join(reasons)}")
    return None


def choose_other_system(targets: Sequence[CodeTarget], device: str, target: str | None) -> CodeTarget | None:
    """The target whose code another system runs; None for llamac's own code.

    That is the one that `device` or `target` names, or the best one of a file without code for CPUs. LLC0801 where
    `device` names a system that the file has no code for.
    """
    named = [t for t in targets if target in (None, t.name)]
    wanted, _ = _parse(device)
    if wanted in OTHER_SYSTEMS:
        kinds = OTHER_SYSTEMS[wanted]
        found = [t for kind in kinds for t in named if t.kind == kind]
        if not found:
            names = ", ".join(t.name for t in targets)
            reason = f"the artifact has no code that {wanted} runs; it has {names}"
            hint = f"compile it with --target {EXAMPLES.get(wanted, wanted)}"
            raise LlamacError("LLC0801", "targets", reason, hint)
        return found[0]
    if wanted not in ("auto", "cpu") or any(t.kind == "cpu" for t in named):
        return None
    others = [t for kinds in OTHER_SYSTEMS.values() for kind in kinds for t in named if t.kind == kind]
    return others[0] if others else None


def _parse(device: str) -> tuple[str, int]:
    found = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    if found is None or (found[2] and found[1] not in ("cuda", "hip")):
        hint = "give auto, cpu, cuda, hip, tvm, onnxruntime, or a GPU by its number, such as cuda:1"
        raise LlamacError("LLC0811", "device", f"{device!r} is no device", hint)
    return found[1], int(found[2] or 0)


def _open(
    kind: str, index: int, targets: Sequence[CodeTarget], read: Callable[[str], bytes], target: str | None
) -> ChosenGpu:
    from .gpu.code import pick_code
    from .gpu.found import find_gpu

    known: Kind = "cuda" if kind == "cuda" else "hip"
    driver, gpu = find_gpu(known, index)
    found, launch_plan = pick_code(targets, gpu, read, target)
    driver.open(index)
    return ChosenGpu(driver, gpu, found, launch_plan)
