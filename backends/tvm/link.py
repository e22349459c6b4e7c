"""Links what TVM compiled into a shared library, with the linker of the pinned compiler: the same bytes anywhere."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from ..cpu.toolchain import LINK_FLAGS, compiler_environment, zig_command
from .build import build_executable, cpu_target, refusal, write_object
from .lowering import Lowered

LIBRARY_VERSION = "2.28"
"""The oldest C library that the code loads with."""


def shared_library(lowered: Lowered, triple: str, cpu: str) -> bytes:
    """The code of a function for a CPU, by LLVM's names (LLC0944 when TVM or the linker refuses)."""
    executable = build_executable(lowered, cpu_target(triple, cpu))
    with tempfile.TemporaryDirectory(prefix="llamac-tvm-") as name:
        folder = Path(name)
        objects = [path.name for path in write_object(executable, folder)]
        linked = ["-target", f"{triple}.{LIBRARY_VERSION}", *objects, *LINK_FLAGS, "-o", "linked.so"]
        done = subprocess.run(
            [*zig_command(), "cc", *linked], cwd=folder, env=compiler_environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise refusal("the linker", RuntimeError(done.stderr))
        return (folder / "linked.so").read_bytes()
