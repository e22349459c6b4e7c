"""What takes the place of the interpreter in the tests of tests/backends/gpu: LLAMAC_GPU_KERNELS says it."""

from __future__ import annotations

from pathlib import Path

from gpu_process import GpuProcess
from kernel_code import KernelFolder
from recording_interpreter import RecordingInterpreter


def runner_of(words: str) -> GpuProcess | RecordingInterpreter:
    """`record sm_90,gfx942 FOLDER` compiles every kernel that the interpreter runs; `run cuda FOLDER` runs them."""
    what, which, folder = words.split(" ", 2)
    if what == "record":
        folders = [KernelFolder(Path(folder), name, compile_missing=True) for name in which.split(",")]
        return RecordingInterpreter(folders)
    if what != "run":
        raise ValueError(f"LLAMAC_GPU_KERNELS={words!r} says neither record nor run")
    return GpuProcess(which, Path(folder))
