"""tanh in plain arithmetic, and the gated addition of rows that see something."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from llamac.backends.cpu.toolchain import compile_shared_library
from llamac.driver import resolve_targets

SOURCE = """
#include "gated_add.h"
#define EXPORT __attribute__((visibility("default")))
EXPORT void tanh_of(float *y, const float *x, size_t count)
{
  for (size_t i = 0; i < count; i++) y[i] = llamac_tanh(x[i]);
}
static const llamac_thread one = {0, 1, NULL};
EXPORT void gated(float *y, const float *x, uint32_t rows, const float *gate, const int32_t *start, const int32_t *stop)
{
  llamac_gated_add(&one, y, 21, x, 21, y, 21, rows, 21, gate, 1, start, stop);
}
EXPORT void plain(float *y, const float *x, uint32_t rows, const float *gate)
{
  llamac_gated_add(&one, y, 21, x, 21, y, 21, rows, 21, gate, 0, NULL, NULL);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out: Path = tmp_path_factory.mktemp("gated") / "gated.so"
    (target,) = resolve_targets(["cpu"])
    compile_shared_library({"gated.c": SOURCE}, triple=target.triple, cpu=target.cpu, out=out)
    return ctypes.CDLL(str(out))


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def test_tanh_is_right_to_the_last_bits(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(-80, 5, 20000))
    x = np.concatenate([sizes, -sizes, [0.0, -0.0, 15.9, 16.1, np.inf, -np.inf]]).astype(np.float32)
    y = np.empty_like(x)
    library.tanh_of(pointer(y), pointer(x), ctypes.c_size_t(len(x)))
    expected = np.tanh(x.astype(np.float64))
    assert (np.abs(y - expected) <= np.spacing(np.abs(expected).astype(np.float32)) * 0.51).all()
    library.tanh_of(pointer(y), pointer(np.array([np.nan], np.float32)), ctypes.c_size_t(1))
    assert np.isnan(y[0])


def test_rows_that_see_nothing_stay_as_they_are(library: ctypes.CDLL) -> None:
    random = np.random.default_rng(1)
    x, residual = random.standard_normal((2, 4, 21)).astype(np.float32)
    gate, y = np.array([0.7], np.float32), residual.copy()
    start, stop = np.array([0, 3, 5, 1], np.int32), np.array([2, 3, 4, 9], np.int32)
    library.gated(pointer(y), pointer(x), 4, pointer(gate), pointer(start), pointer(stop))
    total = residual + np.float32(np.tanh(np.float32(0.7))) * x
    assert (y[[1, 2]] == residual[[1, 2]]).all() and np.allclose(y[[0, 3]], total[[0, 3]], rtol=1e-6)
    y = residual.copy()
    library.gated(pointer(y), pointer(x), 4, pointer(gate), pointer(None), pointer(None))
    assert (y == residual).all(), "no ranges at all: nobody sees anything"
    library.plain(pointer(y), pointer(x), 4, pointer(gate))
    assert np.allclose(y, total, rtol=1e-6)
