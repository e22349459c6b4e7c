"""Runs Triton kernels in Triton's interpreter, in a process of its own: python interpreter_process.py.

Whether a kernel is interpreted is decided when its module is imported, so the process that compiles cannot also
interpret. Requests come pickled on stdin: (family, kernel, grid, arguments by name); answers go to stdout: the arrays
after the launch, or the text of an exception.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import traceback
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import ml_dtypes
import numpy as np
import torch

VIEWS = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
}
"""Types that numpy only borrows -> what their bits are held as, and the torch type."""


def as_tensor(value: Any) -> Any:
    """A torch tensor over the memory of an array; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype in VIEWS:
        bits, kind = VIEWS[value.dtype]
        return torch.from_numpy(value.view(bits)).view(kind)
    return torch.from_numpy(value)


def launch(family: str, name: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run one kernel; the arrays it was given, changed in place."""
    kernel = getattr(importlib.import_module(f"llamac.backends.gpu.kernels.{family}"), name)
    arrays = {key: np.array(value) for key, value in arguments.items() if isinstance(value, np.ndarray)}
    kernel[grid](**arguments | {key: as_tensor(value) for key, value in arrays.items()})
    return arrays


def main() -> None:
    """Serve requests until stdin ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get among the answers
    torch.set_num_threads(1)
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: Any = launch(*request)
        except Exception:
            answer = traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
