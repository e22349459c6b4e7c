"""What takes the place of the interpreter in the tests of tests/backends/gpu: LLAMAC_GPU_KERNELS says it."""

from __future__ import annotations

from pathlib import Path

from kernel_code import KernelFolder
from kernel_runner import KernelRunner
from recording_interpreter import RecordingInterpreter


def runner_of(words: str) -> KernelRunner | RecordingInterpreter:
    """`record sm_90,gfx942 FOLDER` compiles every kernel that the interpreter runs; `run cuda FOLDER` runs them."""
    what, which, folder = words.split(" ", 2)
    if what == "record":
        folders = [KernelFolder(Path(folder), name, compile_missing=True) for name in which.split(",")]
        return RecordingInterpreter(folders)
    if what != "run":
        raise ValueError(f"LLAMAC_GPU_KERNELS={words!r} says neither record nor run")
    return open_runner(which, Path(folder))


def open_runner(kind: str, folder: Path) -> KernelRunner:
    """A GPU of this machine and the code for its architecture."""
    from llamac.runtime.gpu.found import find_gpu

    _, gpu = find_gpu("cuda" if kind == "cuda" else "hip")
    return KernelRunner(kind, KernelFolder(folder, gpu.architecture))
