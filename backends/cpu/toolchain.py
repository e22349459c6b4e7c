"""Compiles C into a shared library with the clang of the pinned `ziglang` wheel: the same bytes on any machine."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamac.errors import LlamacError

from ..compiler_cache import compiler_cache

ZIG_VERSION = "0.17.1"
"""The `ziglang` release whose clang is used; another one may emit other bytes."""

BASE_FLAGS: tuple[str, ...] = (
    # zig maps -O3 to clang's -O2; only the second form gives the real one.
    "-O3", "-Xclang", "-O3", "-std=gnu11", "-g0", "-fomit-frame-pointer", "-fno-math-errno", "-fno-sanitize=all",
    # The kernels write their fused multiply-adds out; the compiler must add none, or bits would differ by target.
    "-ffp-contract=off", "-fvisibility=hidden", "-fPIC", "-Werror=implicit-function-declaration",
)  # fmt: skip
LINK_FLAGS: tuple[str, ...] = ("-shared", "-s", "-Wl,--build-id=none", "-lpthread", "-lm")
CPU_FLAGS: dict[str, tuple[str, ...]] = {
    "x86_64_v4": ("-mprefer-vector-width=512",),
    "znver4": ("-mprefer-vector-width=512", "-mno-sse4a"),
    "znver5": ("-mprefer-vector-width=512", "-mno-sse4a"),
}
"""What a CPU, less the features added by `+`, needs beside `-mcpu=`: clang splits 64-byte vectors of auto-vectorized
loops in two unless told not to.
SSE4A is left out because only AMD has it: the code runs wherever the features that its target requires are."""

KERNEL_HEADERS: tuple[str, ...] = (
    "types.h", "crowding.h", "pool.h", "profile.h", "panels.h", "row_tiles.h", "dense_units.h", "dense_tile_amx.h",
    "peaks.h", "linear_dense.h", "grouped_dots.h", "linear_grouped.h", "grouped_inputs.h", "grouped_tile.h",
    "grouped_tile_amx.h", "grouped_tile_i8mm.h", "grouped_tile_ymm.h", "grouped_gemm.h", "quantize_rows.h", "gated.h",
    "rms_norm.h", "embedding.h", "rope.h", "kv_pages.h", "attention_view.h", "attention_int8.h", "attention_page.h",
    "attention_rows.h", "attention_split.h", "attention.h", "elementwise.h", "heads.h", "qkv.h", "routing.h",
    "encoder.h", "tokens.h", "gated_add.h", "tiles.h", "head.h",
)  # fmt: skip
"""The kernel library in include order."""

_INSTALL = 'pip install "llamac[compile]"'
_LOCAL_INCLUDE = re.compile(r'^#include "[^"]*"\n', re.MULTILINE)


def cpu_flags(cpu: str) -> tuple[str, ...]:
    """The compiler's flags for code of `cpu`, zig's name of it with the features added; none for an empty name."""
    return (f"-mcpu={cpu}", *CPU_FLAGS.get(cpu.split("+")[0], ())) if cpu else ()


def kernel_folder() -> Path:
    """The folder of the kernel headers."""
    return Path(__file__).parent / "c"


def kernel_source() -> str:
    """All kernel headers as one text, in include order and without their includes of one another."""
    parts = [(kernel_folder() / name).read_text(encoding="utf-8") for name in KERNEL_HEADERS]
    return "\n".join(_LOCAL_INCLUDE.sub("", part).strip() + "\n" for part in parts)


@functools.cache
def zig_command() -> list[str]:
    """The zig executable of the `ziglang` wheel; LLC0600 when it is missing, LLC0601 when its version is another."""
    spec = importlib.util.find_spec("ziglang")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    names = ["zig.exe" if sys.platform == "win32" else "zig"]
    found = [Path(folder) / name for folder in folders for name in names if (Path(folder) / name).is_file()]
    if not found:
        raise LlamacError("LLC0600", "ziglang", "the C compiler for CPU targets is not installed", _INSTALL)
    version = importlib.metadata.version("ziglang")
    if version.split(".post")[0] != ZIG_VERSION:
        reason = f"version {version} is installed, but code is built with {ZIG_VERSION} so that bytes do not vary"
        raise LlamacError("LLC0601", "ziglang", reason, _INSTALL)
    return [str(found[0])]


def compile_shared_library(
    sources: Mapping[str, str], *, triple: str, cpu: str, out: Path, extra_flags: Sequence[str] = ()
) -> None:
    """Compiles `sources` (file name -> C text) and links them into the shared library `out`.

    `triple` is in zig's form (`x86_64-linux-gnu.2.28`), `cpu` zig's name, empty for the triple's baseline.

    The same sources give the same bytes whatever the folder, the machine, or the state of the caches. Sources may
    include the kernel headers. They are compiled side by side. Errors: LLC0600, LLC0601 (compiler), LLC0602 (the code
    does not compile or link; the sources are kept and the message says where).
    """
    zig = zig_command()
    folder, keep = Path(tempfile.mkdtemp(prefix="llamac-build-")), False
    flags = ["-target", triple, *BASE_FLAGS, *cpu_flags(cpu), *extra_flags]
    # Everything is named relative to the build folder, so that no absolute path can reach the output.
    flags += ["-Ikernels", f"-ffile-prefix-map={folder}=."]
    names = sorted(sources)
    compile_each = [[*zig, "cc", *flags, "-c", name, "-o", f"{name}.o"] for name in names]
    # Linked without -mcpu: zig would build its start-up objects anew for every cpu.
    link = [*zig, "cc", "-target", triple, *(f"{name}.o" for name in names), *LINK_FLAGS, "-o", "linked.so"]
    try:
        shutil.copytree(kernel_folder(), folder / "kernels")
        for name, text in sources.items():
            (folder / name).write_text(text, encoding="utf-8")
        _run_all(folder, compile_each, f"{triple} {cpu}".strip())
        _run_all(folder, [link], f"{triple} {cpu}".strip())
        shutil.copyfile(folder / "linked.so", out)
    except LlamacError:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _run_all(folder: Path, commands: Sequence[Sequence[str]], where: str) -> None:
    """Runs the commands side by side, no more at a time than there are processors; LLC0602 at the first failure."""
    environment = compiler_environment()
    waiting, running = list(commands), list[subprocess.Popen[str]]()
    failure: str | None = None
    while running or (waiting and failure is None):
        while waiting and failure is None and len(running) < (os.cpu_count() or 1):
            running.append(
                subprocess.Popen(
                    waiting.pop(0), cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        process = running.pop(0)
        _, messages = process.communicate()
        if process.returncode != 0 and failure is None:
            failure = messages
    if failure is not None:
        reason = f"the C compiler refused the code: {_first_errors(failure)}"
        raise LlamacError("LLC0602", where, reason, f"look at the source kept in {folder}")


def _first_errors(messages: str, most: int = 3) -> str:
    """The first error lines of the compiler's output, or its first lines when none says error."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line]
    return " | ".join((errors or lines or ["no message"])[:most])


def compiler_environment() -> dict[str, str]:
    """The caller's environment with the compiler's caches in a writable place and its messages in English."""
    folder = compiler_cache("zig")
    return {
        "ZIG_GLOBAL_CACHE_DIR": str(folder / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(folder / "local"),
        **os.environ,
        "LC_ALL": "C",
    }
