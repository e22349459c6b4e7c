"""The head that ranks: lists, ties, sums and odd logits, for any number of threads and rows, against numpy."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from panel16 import Array, pack_dense

from llamac.backends.cpu.toolchain import compile_shared_library
from llamac.driver import resolve_targets

N, K = 1301, 40
"""Three strips, the last in part, its last panel too."""

SOURCE = f"""
#include "head.h"
typedef struct {{
  float *logits;
  llamac_best best;
  llamac_head_memory memory;
  const float *x;
  uint32_t rows, n;
  const uint8_t *w;
}} arguments;
static void head(const llamac_thread *th, void *argument)
{{
  const arguments *a = argument;
  const llamac_head_input x = {{.rows = a->x, .ld = {K}}};
  llamac_head(th, a->logits, a->best, a->memory, x, a->rows, a->w, {N}, {K}, 1, LLAMAC_F32, (llamac_grouped){{0}});
}}
__attribute__((visibility("default"))) int run(uint32_t threads, float *logits, uint32_t count, int32_t *ids,
    float *values, const float *inverse, float *sums, const float *x, uint32_t rows, const uint8_t *w)
{{
  arguments a = {{logits, {{count, ids, values, inverse, sums}}, {{0}}, x, rows, {N}, w}};
  llamac_pool *pool = llamac_pool_create(threads);
  if (!pool || !llamac_head_create(&a.memory, threads, {N})) return 1;
  llamac_pool_run(pool, head, &a);
  llamac_pool_destroy(pool);
  free(a.memory.rankings);
  return 0;
}}
"""


@pytest.fixture(scope="module", params=["cpu", "x86-64-v3"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    (target,) = resolve_targets([request.param])
    out: Path = tmp_path_factory.mktemp("head") / "head.so"
    compile_shared_library({"head.c": SOURCE}, triple=target.triple, cpu=target.cpu, out=out)
    return ctypes.CDLL(str(out))


def address(array: Array | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def run(
    library: ctypes.CDLL, wanted: Array, count: int, threads: int, inverse: Array | None = None, whole: bool = True
) -> tuple[Array | None, Array, Array, Array | None]:
    """The head with weights and inputs that give the logits `wanted`, [rows, N]: each row has an input of its own."""
    rows = len(wanted)
    matrix, x = np.zeros((N, K), np.float32), np.zeros((rows, K), np.float32)
    matrix[:, :rows] = wanted.T
    x[np.arange(rows), np.arange(rows)] = 1
    packed = np.zeros(pack_dense(matrix).size + 64, np.uint8)  # at a multiple of 64 bytes
    start = -packed.ctypes.data % 64
    packed[start:][: packed.size - 64] = pack_dense(matrix).reshape(-1)
    logits = np.full((rows, N), 7777, np.float32) if whole else None
    ids, values = np.full((rows, count), -5, np.int32), np.empty((rows, count), np.float32)
    sums = None if inverse is None else np.empty(rows, np.float32)
    arrays = [address(a) for a in (ids, values, inverse, sums, x)]
    weights = ctypes.c_void_p(packed.ctypes.data + start)
    status = library.run(threads, address(logits), count, *arrays[:4], arrays[4], rows, weights)
    assert status == 0
    return logits, ids, values, sums


def logits_of(rows: int, seed: int, distinct: int | None = None) -> Array:
    random = np.random.default_rng(seed)
    found = random.standard_normal((rows, N)) if distinct is None else random.integers(0, distinct, (rows, N))
    return found.astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize("distinct", [None, 5, 1])
def test_the_best_of_each_row(library: ctypes.CDLL, threads: int, count: int, distinct: int | None) -> None:
    wanted = logits_of(40, threads, distinct)  # more rows than are ranked at a time
    for whole in (True, False):
        logits, ids, values, _ = run(library, wanted, count, threads, whole=whole)
        order = np.argsort(-wanted, axis=1, kind="stable")[:, :count]
        assert (ids == order).all() and (values == np.take_along_axis(wanted, order, axis=1)).all()
        assert (ids[:, 0] == wanted.argmax(axis=1)).all()
        assert logits is None or (logits == wanted).all()


def test_sums_are_the_same_bits_for_any_threads(library: ctypes.CDLL) -> None:
    wanted, inverse = logits_of(33, 1) * 9, np.linspace(0.1, 4, 33).astype(np.float32)
    first = run(library, wanted, 3, 1, inverse)[3]
    assert first is not None
    exact = np.exp((wanted - wanted.max(axis=1, keepdims=True)).astype(np.float64) * inverse[:, None]).sum(axis=1)
    assert np.abs(first / exact - 1).max() < 2e-6
    for threads in (2, 3, 5):
        sums = run(library, wanted, 3, threads, inverse, whole=threads == 2)[3]
        assert sums is not None and (sums.view(np.uint32) == first.view(np.uint32)).all()


def alone(values: dict[int, float], rest: float = 0.0) -> Array:
    row = np.full((1, N), rest, np.float32)
    for place, value in values.items():
        row[0, place] = value
    return row


@pytest.mark.parametrize("place", [0, 511, 512, 1295, 1300])
def test_a_nan_anywhere_is_seen(library: ctypes.CDLL, place: int) -> None:
    for threads in (1, 3):
        _, _, values, _ = run(library, alone({place: np.nan}), 2, threads)
        assert np.isnan(values[0, 0])


def test_infinities(library: ctypes.CDLL) -> None:
    _, ids, values, _ = run(library, alone({700: np.inf}), 2, 2)
    assert ids[0].tolist() == [700, 0] and values[0].tolist() == [np.inf, 0]
    few = alone({3: 1.0, 1300: 2.0}, -np.inf)
    one = np.ones(1, np.float32)
    _, ids, values, sums = run(library, few, 4, 2, one)
    assert ids[0].tolist() == [1300, 3, -1, -1] and values[0].tolist() == [2, 1, -np.inf, -np.inf]
    assert sums is not None and np.isclose(sums[0], 1 + np.exp(-1), rtol=1e-6)
    _, ids, values, sums = run(library, alone({}, -np.inf), 2, 2, one)
    assert ids[0].tolist() == [-1, -1] and sums is not None and sums[0] == 0


def test_both_zeros_are_one_value(library: ctypes.CDLL) -> None:
    _, ids, _, _ = run(library, alone({5: -0.0, 900: 0.0}, -1.0), 2, 2)
    assert ids[0].tolist() == [5, 900]
