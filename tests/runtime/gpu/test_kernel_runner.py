"""The programs of `make gpu-test` without a GPU: code is found again, arrays come back, guards are looked at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_stub_library import Stub
from toy_gpu import int32s

sys.path.insert(0, str(Path(__file__).parents[2] / "gpu"))
from kernel_code import KernelFolder, NotCompiled
from kernel_runner import KernelRunner

COLUMNS = 40
ARGUMENTS: dict[str, Any] = {"scale_ptr": None, "K": COLUMNS, "EPS": 0.0, "LARGEST": 0.0, "BLOCK": 64, "PDL": False}


def arrays(rows: int) -> dict[str, Any]:
    x = np.random.default_rng(rows).standard_normal((rows, COLUMNS)).astype(np.float32)
    return {"x_ptr": x, "norm_ptr": np.ones(COLUMNS, np.float32), "y_ptr": np.full((rows, COLUMNS), np.nan, np.float32)}


def floats(address: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return int32s(address, count).view(np.float32)


def normed(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x / np.sqrt((x * x).mean(-1, keepdims=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Code of one kernel, as `make gpu-code` makes it."""
    path = tmp_path_factory.mktemp("kernels")
    KernelFolder(path, "sm_90", compile_missing=True).find("linear.norm_rows", ARGUMENTS | arrays(1))
    return path


def _answer(beyond: int) -> Any:
    """In the GPU's place: norms, and `beyond` values behind the end."""

    def run(name: bytes, module: int, x: int, y: int, z: int, values: Any, count: int) -> None:
        assert count == 5 and values[3] == values[4] == 0
        rows = floats(values[0], x * COLUMNS).reshape(x, COLUMNS)
        floats(values[2], x * COLUMNS)[:] = normed(rows).reshape(-1)
        floats(values[2] + 4 * x * COLUMNS, beyond)[:] = 0

    return run


def test_a_kernel_goes_there_and_back(cuda: Stub, folder: Path) -> None:
    cuda.be("sm_90")
    with KernelRunner("cuda", KernelFolder(folder, "sm_90")) as runner:
        cuda.on_launch(_answer(0))
        for rows in (1, 3):
            given = arrays(rows)
            runner.launch("linear.norm_rows", (rows,), **given, **ARGUMENTS)
            np.testing.assert_allclose(given["y_ptr"], normed(given["x_ptr"]), rtol=1e-6)
        assert runner.launches == 2 and len(cuda.log("load")) == 1


def test_writing_behind_an_array_is_seen(cuda: Stub, folder: Path) -> None:
    cuda.be("sm_90")
    with KernelRunner("cuda", KernelFolder(folder, "sm_90")) as runner:
        cuda.on_launch(_answer(1))
        with pytest.raises(AssertionError, match="norm_rows wrote behind y_ptr"):
            runner.launch("linear.norm_rows", (2,), **arrays(2), **ARGUMENTS)


def test_code_that_was_not_made_is_asked_for(cuda: Stub, folder: Path) -> None:
    cuda.be("sm_90")
    found = KernelFolder(folder, "sm_90")
    with pytest.raises(NotCompiled, match="make gpu-code"):
        found.find("linear.norm_rows", ARGUMENTS | arrays(1) | {"BLOCK": 128})
    assert len(found) == 1
