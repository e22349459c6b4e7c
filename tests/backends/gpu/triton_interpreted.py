"""The client of the interpreter process: launches kernels on numpy arrays, as a GPU would on its memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Interpreter:
    """A process in which Triton interprets; started by the first launch."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=30)

    def launch(self, kernel: str, grid: tuple[int, ...], /, **arguments: Any) -> None:
        """Run `family.name` over the grid; arrays among the arguments are changed in place, as memory would be."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        family, name = kernel.split(".")
        pickle.dump((family, name, grid, arguments), process.stdin)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
        if isinstance(answer, str):
            raise AssertionError(f"{kernel} failed in the interpreter:\n{answer}")
        for key, array in answer.items():
            arguments[key][...] = array

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            program = Path(__file__).with_name("interpreter_process.py")
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
        return self._process
