"""The thread pool of the CPU code: barriers, more threads than processors, and no CPU time while idle."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import pytest
from kernel_driver import Case, Library, host_cpus


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder: Path = tmp_path_factory.mktemp("pool")
    return Library([Case("nothing", "(void)th;")], host_cpus()[0], folder)


@pytest.mark.parametrize("threads", [1, 2, 3, 9, 16, 64])
def test_no_thread_passes_a_barrier_early(library: Library, threads: int) -> None:
    pool = library.code.llamac_test_pool(threads)
    assert pool
    try:
        for _ in range(3):
            count = ctypes.c_uint32(0)
            library.code.llamac_test_barriers(pool, ctypes.byref(count))
            assert count.value == 100 * threads
    finally:
        library.code.llamac_test_close(pool)


def test_an_idle_pool_uses_no_cpu_time(library: Library) -> None:
    pool = library.code.llamac_test_pool(2)
    try:
        count = ctypes.c_uint32(0)
        library.code.llamac_test_barriers(pool, ctypes.byref(count))
        time.sleep(0.2)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.005
        library.code.llamac_test_barriers(pool, ctypes.byref(ctypes.c_uint32(0)))  # and it wakes again
    finally:
        library.code.llamac_test_close(pool)


@pytest.mark.parametrize("threads", [0, 257])
def test_an_impossible_number_of_threads_gives_no_pool(library: Library, threads: int) -> None:
    assert library.code.llamac_test_pool(threads) is None
