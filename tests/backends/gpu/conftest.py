"""The interpreter of the GPU kernels, shared by the tests of this folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[test]'")

from triton_interpreted import Interpreter

GPU_PROGRAMS = str(Path(__file__).parents[2] / "gpu")


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Runs kernels without a GPU; `make gpu-code` and `make gpu-test` put others in its place (tests/gpu)."""
    elsewhere = os.environ.get("LLAMAC_GPU_KERNELS")
    with elsewhere_runner(elsewhere) if elsewhere else Interpreter() as running:
        yield running


def elsewhere_runner(words: str) -> Interpreter:
    """`record ARCHITECTURES FOLDER`: compile what is interpreted. `run KIND FOLDER`: a real GPU."""
    sys.path.insert(0, GPU_PROGRAMS)
    from runners import runner_of

    return cast(Interpreter, runner_of(words))


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """The random examples of a test are recorded with the code that is compiled for them, and done again on a GPU."""
    words = os.environ.get("LLAMAC_GPU_KERNELS")
    if not words or not hasattr(pyfuncitem.obj, "hypothesis"):
        return None
    sys.path.insert(0, GPU_PROGRAMS)
    from recorded_examples import run_test

    run_test(pyfuncitem, words)
    return True
