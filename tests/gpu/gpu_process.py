"""A process that holds the GPU and launches single kernels: python tests/gpu/gpu_process.py cuda FOLDER.

A wild access ends a CUDA context for good, and a kernel that never ends holds it for ever. Both end this process alone:
the launch that did it fails by name, and the next one gets a new process. Requests come pickled on stdin: (kernel,
grid, arguments by name); answers go to stdout: the arrays after the launch, or the text of an error and whether the GPU
can be used afterwards.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
"""A launch of a test takes a hundredth of one; the first one starts the process and the GPU."""


class GpuProcess:
    """The client, with the `launch` of `Interpreter`; the process is started by the first launch."""

    def __init__(self, kind: str, folder: Path, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._command = [sys.executable, str(Path(__file__).resolve()), kind, str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> GpuProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def launch(self, kernel: str, grid: tuple[int, ...], /, **arguments: Any) -> None:
        """Run `family.name` over the grid; arrays among the arguments are changed in place, as memory would be."""
        answer = self._answer(kernel, (kernel, grid, arguments))
        if isinstance(answer, dict):
            for name, array in answer.items():
                arguments[name][...] = array
            return
        text, is_alive = answer
        if not is_alive:
            self._end()
        raise AssertionError(f"{kernel} failed on the GPU:\n{text}")

    def _answer(self, kernel: str, request: Any) -> Any:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ
            )
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None and answers is not None
        try:
            pickle.dump(request, to)
            to.flush()
            if not select.select([answers], [], [], self.seconds)[0]:
                self._end()
                raise AssertionError(f"{kernel} gave no answer in {self.seconds:.0f} seconds")
            return pickle.load(answers)
        except (EOFError, OSError, pickle.UnpicklingError):
            status = self._end()
            raise AssertionError(f"{kernel}: the process that launched it ended (exit status {status})") from None

    def _end(self) -> int | None:
        """End the process, whatever the GPU still does for it; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        status = process.poll()
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # the driver may hold on to it until the kernel ends
            process.wait(timeout=10)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        return status


def answered(runner: Any, kernel: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> Any:
    """The answer to one request: see above."""
    from llamac.errors import LlamacError

    try:
        runner.launch(kernel, grid, **arguments)
        return {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    except LlamacError:
        return traceback.format_exc(), False
    except Exception:
        return traceback.format_exc(), True


def main() -> None:
    """Serve requests until stdin ends."""
    from kernel_runner import open_runner

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get among the answers
    runner: Any = None
    while True:
        try:
            kernel, grid, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            runner = runner or open_runner(sys.argv[1], Path(sys.argv[2]))
            answer = answered(runner, kernel, grid, arguments)
        except Exception:
            answer = traceback.format_exc(), False
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
