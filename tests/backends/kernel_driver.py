"""A C program around the kernels for the tests: numbered cases with literal shapes, in a library or under qemu."""

from __future__ import annotations

import ctypes
import functools
import shutil
import struct
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llamac.backends.cpu.toolchain import (
    KERNEL_HEADERS,
    compile_shared_library,
    compiler_environment,
    kernel_folder,
    zig_command,
)

Array = np.ndarray[Any, np.dtype[Any]]

PREAMBLE = (
    "".join(f'#include "{name}"\n' for name in KERNEL_HEADERS)
    + """
typedef struct { const int64_t *scalars; uint8_t **buffers; } llamac_case;
#define S(i) (((const llamac_case *)argument)->scalars[i])
#define B(type, i) ((type *)((const llamac_case *)argument)->buffers[i])
#define QUANTIZED(i) ((llamac_quantized){B(int8_t, i), B(float, i + 1), B(int32_t, i + 2)})
"""
)

MAIN = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((visibility("default")))
int llamac_run_case(uint32_t index, uint32_t threads, const int64_t *scalars, uint8_t **buffers) {
    llamac_case argument = {scalars, buffers};
    llamac_pool *pool = llamac_pool_create(threads);
    if (!pool) return 1;
    llamac_pool_run(pool, cases[index], &argument);
    llamac_pool_destroy(pool);
    return 0;
}
__attribute__((visibility("default"))) void *llamac_test_pool(uint32_t threads) { return llamac_pool_create(threads); }
__attribute__((visibility("default"))) void llamac_test_close(void *pool) { llamac_pool_destroy(pool); }
static void count_barriers(const llamac_thread *th, void *argument) {
    for (int i = 0; i < 100; i++) {
        __atomic_fetch_add((uint32_t *)argument, 1, __ATOMIC_RELAXED);
        llamac_barrier(th);
        if (__atomic_load_n((uint32_t *)argument, __ATOMIC_RELAXED) < th->count * (i + 1)) abort();
        llamac_barrier(th);
    }
}
__attribute__((visibility("default"))) void llamac_test_barriers(void *pool, uint32_t *count) {
    llamac_pool_run(pool, count_barriers, count);
}
#ifdef LLAMAC_TEST_MAIN
int main(void) {
    int64_t head[2 + 16 + 1 + 16];
    uint8_t *buffers[16];
    if (fread(head, sizeof head, 1, stdin) != 1) return 2;
    for (int i = 0; i < head[18]; i++) {
        buffers[i] = aligned_alloc(64, ((size_t)head[19 + i] + 127) / 64 * 64);
        if (head[19 + i] && fread(buffers[i], (size_t)head[19 + i], 1, stdin) != 1) return 3;
    }
    if (llamac_run_case((uint32_t)head[0], (uint32_t)head[1], head + 2, buffers)) return 4;
    for (int i = 0; i < head[18]; i++) fwrite(buffers[i], 1, (size_t)head[19 + i], stdout);
    return 0;
}
#endif
"""


@dataclass(frozen=True)
class Case:
    """One kernel call with literal shapes; `body` reads scalars by S(i) and buffers by B(type, i)."""

    name: str
    body: str


class Runner(Protocol):
    """Something that runs a case: `arrays` are the buffers, changed in place."""

    def run(self, case: str, threads: int, scalars: Sequence[int], arrays: Sequence[Array]) -> None: ...


def driver_sources(cases: Sequence[Case], parts: int = 4) -> dict[str, str]:
    """The C files: the cases dealt out to `parts` files, and the table that names them all."""
    sources: dict[str, str] = {}
    for part in range(parts):
        functions = [
            f"void case_{i}(const llamac_thread *th, void *argument) {{\n    {case.body}\n}}\n"
            for i, case in enumerate(cases)
            if i % parts == part
        ]
        sources[f"cases_{part}.c"] = PREAMBLE + "".join(functions)
    declared = "".join(f"void case_{i}(const llamac_thread *, void *);\n" for i in range(len(cases)))
    table = ", ".join(f"case_{i}" for i in range(len(cases)))
    table = f"static void (*const cases[])(const llamac_thread *, void *) = {{{table}}};\n"
    sources["driver.c"] = PREAMBLE + declared + table + MAIN
    return sources


def aligned(array: Array) -> Array:
    """A copy of the array that starts at a multiple of 64."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Library:
    """The driver as a shared library for this host; `before` is C text that comes before the kernels."""

    def __init__(self, cases: Sequence[Case], cpu: str, folder: Path, before: str = "") -> None:
        self.path = folder / f"{cpu}{'-changed' if before else ''}.so"
        self.index = {case.name: i for i, case in enumerate(cases)}
        sources = {name: before + text for name, text in driver_sources(cases).items()}
        compile_shared_library(sources, triple="x86_64-linux-gnu.2.28", cpu=cpu, out=self.path)
        self.code = ctypes.CDLL(str(self.path))
        self.code.llamac_test_pool.restype = ctypes.c_void_p
        self.code.llamac_test_close.argtypes = [ctypes.c_void_p]
        self.code.llamac_test_barriers.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def run(self, case: str, threads: int, scalars: Sequence[int], arrays: Sequence[Array]) -> None:
        numbers = (ctypes.c_int64 * 16)(*scalars)
        copies = [aligned(array) for array in arrays]
        pointers = (ctypes.c_void_p * 16)(*[copy.ctypes.data for copy in copies])
        assert self.code.llamac_run_case(self.index[case], threads, numbers, pointers) == 0
        for array, copy in zip(arrays, copies, strict=True):
            array[...] = copy


class Emulated:
    """The driver as an aarch64 program under qemu's user mode; `missing` says why it cannot run here."""

    SYSROOT = Path("/usr/aarch64-linux-gnu")

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("qemu-aarch64-static") is None:
            return "qemu-aarch64-static is not on PATH (Debian: apt-get install qemu-user-static)"
        if not (cls.SYSROOT / "lib/ld-linux-aarch64.so.1").exists():
            return f"no aarch64 C library in {cls.SYSROOT} (Debian: apt-get install libc6-arm64-cross)"
        return None

    def __init__(self, cases: Sequence[Case], cpu: str, folder: Path) -> None:
        self.index = {case.name: i for i, case in enumerate(cases)}
        self.program = folder / f"aarch64-{cpu}"
        sources, build = driver_sources(cases, parts=1), folder / f"build-{cpu}"
        build.mkdir()
        flags = [
            "-target",
            "aarch64-linux-gnu.2.28",
            "-O2",
            "-ffp-contract=off",
            "-fno-sanitize=all",
            "-DLLAMAC_TEST_MAIN",
        ]
        for name, text in sources.items():
            (build / name).write_text(text, encoding="utf-8")
            self._zig(
                [*flags, f"-mcpu={cpu}", "-fno-math-errno", f"-I{kernel_folder()}", "-c", name, "-o", f"{name}.o"],
                build,
            )
        self._zig([*flags[:2], *(f"{name}.o" for name in sources), "-o", str(self.program)], build)

    @staticmethod
    def _zig(arguments: Sequence[str], folder: Path) -> None:
        environment: Mapping[str, str] = compiler_environment()
        subprocess.run(
            [*zig_command(), "cc", *arguments], cwd=folder, env=environment, check=True, stdin=subprocess.DEVNULL
        )

    def run(self, case: str, threads: int, scalars: Sequence[int], arrays: Sequence[Array]) -> None:
        numbers = [*scalars, *[0] * (16 - len(scalars))]
        sizes = [array.nbytes for array in arrays] + [0] * (16 - len(arrays))
        head = struct.pack("<35q", self.index[case], threads, *numbers, len(arrays), *sizes)
        data = head + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        command = ["qemu-aarch64-static", "-L", str(self.SYSROOT), str(self.program)]
        output = subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout
        at = 0
        for array in arrays:
            array[...] = np.frombuffer(output, array.dtype, array.size, at).reshape(array.shape)
            at += array.nbytes


def host_cpus() -> list[str]:
    """The x86-64 targets that this host can run, the oldest first."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split())
    needs = {
        "x86_64_v3": {"avx2", "fma", "f16c", "bmi2"},
        "x86_64_v4": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
        "znver4": {"avx512_vnni", "avx512_bf16", "avx512vbmi", "gfni", "vaes"},
    }
    return [cpu for cpu, needed in needs.items() if needed <= flags]


def build_runners(cases: Sequence[Case], folder: Path, left_out: Collection[str] = ()) -> dict[str, Runner]:
    """The cases compiled for every instruction set that runs here but some, the oldest first, aarch64 last."""
    builds: dict[str, Callable[[], Runner]] = {
        cpu: functools.partial(Library, cases, cpu, folder) for cpu in host_cpus()
    }
    if Emulated.missing() is None:
        builds |= {cpu: functools.partial(Emulated, cases, cpu, folder) for cpu in ("generic", "neoverse_n1")}
    builds = {cpu: build for cpu, build in builds.items() if cpu not in left_out}
    with ThreadPoolExecutor(2) as workers:
        waiting = {cpu: workers.submit(build) for cpu, build in builds.items()}
    return {cpu: future.result() for cpu, future in waiting.items()}
