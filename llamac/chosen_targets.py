"""The targets that a compilation is for: their rows, among how many processes they divide a model, their compilers."""

from __future__ import annotations

from collections.abc import Sequence

from llamac.artifact.tvm_plan import require_tvm
from llamac.backends.cpu.toolchain import zig_command
from llamac.backends.gpu.toolchain import require_triton
from llamac.backends.onnx.library import library
from llamac.errors import LlamacError
from llamac.host import cpu_features, machine_architecture
from llamac.target import SIDE_OF_KIND, Target, best_target, find_target


def resolve_targets(names: Sequence[str]) -> list[Target]:
    """The target rows for names; `cpu` is the best row for this machine."""
    host = None
    if any(name.partition(":")[0] == "cpu" for name in names):
        architecture = machine_architecture()
        host = best_target(architecture, cpu_features(architecture))
    found = {t.name: t for t in (find_target(name, host) for name in names)}
    if not found:
        raise LlamacError("LLC0603", "--target", "no target is named", "--target cpu compiles for this machine")
    return list(found.values())


def ranks_of(targets: Sequence[Target]) -> int:
    """Among how many processes all of `targets` divide the model (LLC0617 where they do not agree)."""
    counts = {target.ranks: target.name for target in targets}
    if len(counts) > 1:
        reason = f"{' and '.join(counts.values())} divide the model differently, and a file holds one division"
        raise LlamacError("LLC0617", "--target", reason, "compile a file for each")
    return next(iter(counts))


def on_sides(targets: Sequence[Target]) -> dict[str, list[Target]]:
    """Side of the compiler, "cpu", "gpu", "tvm" and "onnx" -> the targets that are on it."""
    return {side: [t for t in targets if SIDE_OF_KIND[t.kind] == side] for side in ("cpu", "gpu", "tvm", "onnx")}


def check_compilers(targets: Sequence[Target]) -> None:
    """A missing compiler is known before any work."""
    sides = on_sides(targets)
    if sides["cpu"] or sides["tvm"]:
        zig_command()
    if sides["tvm"]:
        require_tvm()
    if sides["gpu"]:
        require_triton()
    if sides["onnx"]:
        library("onnx")
