"""Builds Relax functions: code for a CPU, linked into one shared library, or the source of a device's kernels."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax import vm_build

from llamac.errors import LlamacError

from .lowering import Lowered


def build_executable(lowered: Lowered, target: Any) -> Any:
    """The executable of TVM's virtual machine for `target` (LLC0944 when TVM refuses).

    As `relax.build`, but for one thing: the functions that compute shapes are a library of their own. In one with the
    kernels they cost these half of their speed (measured with the pinned release).
    """
    try:
        module = vm_build._vmcodegen(builder := relax.ExecBuilder(), _steps()(lowered.module))
        names = {name.name_hint: function for name, function in module.functions.items()}
        kernels = {name: function for name, function in names.items() if not name.startswith(_SHAPES)}
        shapes = {name: function for name, function in names.items() if name.startswith(_SHAPES)}
        libraries = [tvm.tirx.build(tvm.IRModule(kernels), target=target)]
        return vm_build._vmlink(builder, target, tvm.IRModule(shapes), ext_libs=libraries)
    except Exception as error:  # TVM raises whatever its C++ side threw
        raise refusal(str(target.kind.name), error) from None


_SHAPES = "shape_func"
"""How the names of TVM's functions that compute shapes begin."""


def _steps() -> Any:
    """TVM's own way from Relax to its virtual machine, without what looks for patterns in functions."""
    passes = relax.transform
    return tvm.transform.Sequential(
        [
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.ComputePrimValue(),
            passes.VMShapeLower(),
            tvm.transform.module_pass(_with_ordered_shapes, opt_level=0, name="OrderShapes"),
            passes.AttachGlobalSymbol(),
        ]
    )


def _with_ordered_shapes(module: Any, context: Any) -> Any:
    """Functions that compute shapes store them in the order of their places.

    VMShapeLower takes them out of a table that is sorted by address: the same code has other bytes in every process.
    """
    for name, function in sorted(module.functions.items(), key=lambda pair: str(pair[0].name_hint)):
        if isinstance(function, tirx.PrimFunc) and name.name_hint.startswith(_SHAPES):
            body = function.body
            stores = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
            if all(isinstance(store, tirx.BufferStore) for store in stores):
                stores.sort(key=lambda store: int(store.indices[0]))
                module[name] = function.with_body(tirx.SeqStmt(stores) if len(stores) > 1 else stores[0])
    return module


def refusal(where: str, error: Exception) -> LlamacError:
    """What TVM threw as LLC0944, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return LlamacError("LLC0944", where, f"TVM refused the code: {lines[-1][:300] if lines else type(error).__name__}")


def cpu_target(triple: str, cpu: str) -> Any:
    """The LLVM target of a machine, by names of LLVM."""
    return tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})


def this_machine() -> Any:
    """The LLVM target of code that is run in this process and kept nowhere."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return cpu_target("x86_64-linux-gnu", "x86-64-v3")
    return tvm.target.Target({"kind": "llvm"})


def write_object(executable: Any, folder: Path) -> list[Path]:
    """The object files of an executable, for a linker."""
    found: list[Path] = []

    def collect(out: str, files: list[str], **_: Any) -> None:
        found.extend(Path(name) for name in files)

    executable.export_library(str(folder / "linked.so"), fcompile=collect, workspace_dir=str(folder))
    return found
