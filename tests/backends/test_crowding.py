"""How many threads run a step while other programs want the processors: the policy, and the pool that follows it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from llamac.backends.cpu.toolchain import compile_shared_library

MILLISECOND = 1_000_000

SOURCE = """
#include "pool.h"
#define EXPORT __attribute__((visibility("default")))
EXPORT void *crowd_create(uint32_t threads) {
    llamac_crowd *crowd = calloc(1, sizeof *crowd);
    *crowd = (llamac_crowd){.active = threads, .adapts = 1, .retry_after = LLAMAC_FIRST_RETRY_NANOSECONDS};
    return crowd;
}
EXPORT uint32_t crowd_begin(llamac_crowd *crowd, uint32_t threads, uint64_t now) {
    llamac_crowd_begin(crowd, threads, now);
    return crowd->active;
}
EXPORT int crowd_sampling(const llamac_crowd *crowd) { return crowd->sampling; }
EXPORT void crowd_end(llamac_crowd *crowd, uint32_t threads, uint32_t late, uint64_t now, int samples) {
    crowd->busy += now - crowd->started;
    if (samples) llamac_crowd_judge(crowd, threads, late, now);
}
EXPORT void crowd_free(void *crowd) { free(crowd); }
EXPORT uint64_t own_delay(void) {
    const int file = llamac_open_delay();
    const uint64_t delay = llamac_read_delay(file);
    if (file >= 0) close(file);
    return file < 0 ? UINT64_MAX : delay;
}
EXPORT void *pool_create(uint32_t threads) { return llamac_pool_create(threads); }
EXPORT void pool_destroy(void *pool) { llamac_pool_destroy(pool); }
EXPORT int pool_pin(void *pool, const uint32_t *numbers) { return llamac_pool_pin(pool, numbers); }
typedef struct { uint32_t counts[64]; int processors[64]; } seen;
static void look(const llamac_thread *th, void *argument) {
    seen *all = argument;
    for (int turn = 0; turn < 20; turn++) {
        __atomic_fetch_add(&all->counts[th->id], 1, __ATOMIC_RELAXED);
        llamac_barrier(th);
        for (uint32_t id = 0; id < th->count; id++)
            if (__atomic_load_n(&all->counts[id], __ATOMIC_RELAXED) != (uint32_t)turn + 1) abort();
        llamac_barrier(th);
    }
    all->processors[th->id] = sched_getcpu();
}
/* Runs with `active` of the threads, as the policy would choose. */
EXPORT void pool_look(llamac_pool *pool, uint32_t active, seen *all) {
    memset(all, 0, sizeof *all);
    pool->crowd.active = active;
    llamac_pool_run(pool, look, all);
}
"""


class Seen(ctypes.Structure):
    _fields_ = (("counts", ctypes.c_uint32 * 64), ("processors", ctypes.c_int * 64))


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out: Path = tmp_path_factory.mktemp("crowding") / "crowding.so"
    compile_shared_library({"crowding.c": SOURCE}, triple="x86_64-linux-gnu.2.28", cpu="x86_64_v3", out=out)
    library = ctypes.CDLL(str(out))
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    library.crowd_create.restype, library.crowd_create.argtypes = pointer, [u32]
    library.crowd_begin.restype, library.crowd_begin.argtypes = u32, [pointer, u32, u64]
    library.crowd_sampling.argtypes = [pointer]
    library.crowd_end.argtypes = [pointer, u32, u32, u64, ctypes.c_int]
    library.crowd_free.argtypes = [pointer]
    library.own_delay.restype = u64
    library.pool_create.restype, library.pool_create.argtypes = pointer, [u32]
    library.pool_destroy.argtypes = [pointer]
    library.pool_pin.argtypes = [pointer, ctypes.POINTER(u32)]
    library.pool_look.argtypes = [pointer, u32, ctypes.POINTER(Seen)]
    return library


class Crowd:
    """The policy over simulated time: steps of 3 ms alone, of 30 ms while more threads run than processors are free."""

    def __init__(self, code: ctypes.CDLL, threads: int) -> None:
        self.code, self.threads, self.now = code, threads, 0
        self.state = code.crowd_create(threads)

    def run(self, milliseconds: int, free: int) -> list[int]:
        """Steps for that long while `free` processors are left; the threads of each step."""
        stop, chosen = self.now + milliseconds * MILLISECOND, []
        while self.now < stop:
            active = self.code.crowd_begin(self.state, self.threads, self.now)
            took = (3 if active <= free else 30) * MILLISECOND
            samples = self.code.crowd_sampling(self.state) or took >= 10 * MILLISECOND
            self.now += took
            self.code.crowd_end(self.state, self.threads, max(active - free, 0), self.now, samples)
            chosen.append(active)
        return chosen


MakeCrowd = Callable[[int], Crowd]


@pytest.fixture
def crowds(code: ctypes.CDLL) -> Iterator[Callable[[int], Crowd]]:
    made: list[Crowd] = []

    def make(threads: int) -> Crowd:
        made.append(Crowd(code, threads))
        return made[-1]

    yield make
    for crowd in made:
        code.crowd_free(crowd.state)


def _share(chosen: Sequence[int], threads: int) -> float:
    return sum(n == threads for n in chosen) / len(chosen)


def test_now_and_then_a_busy_moment_costs_little(crowds: MakeCrowd) -> None:
    """Other programs that run for 60 ms of every second take a fifth of the next one, after the first as after many."""
    crowd = crowds(2)
    for _ in range(30):
        crowd.run(60, free=1)
        after = crowd.run(940, free=2)
        assert sum(3 for threads in after if threads == 1) < 200, after


@pytest.mark.parametrize(("threads", "free"), [(2, 1), (4, 3), (16, 9), (64, 60)])
def test_as_many_threads_run_as_find_a_processor(crowds: MakeCrowd, threads: int, free: int) -> None:
    crowd = crowds(threads)
    assert set(crowd.run(500, threads)) == {threads}, "nobody else: all threads, always"
    crowd.run(10_000, free)
    later = crowd.run(5_000, free)
    assert _share(later, free) > 0.9, "a few trials apart, the right number"
    assert max(later) > free, "more are tried now and then"
    assert crowd.run(5_000, threads)[-1] == threads, "all of them again when the others have gone"


def test_with_no_processor_to_itself_one_thread_goes_on(crowds: MakeCrowd) -> None:
    crowd = crowds(2)
    crowd.run(1000, 0)
    assert _share(crowd.run(2000, 0), 1) > 0.85


def test_short_steps_are_judged_by_ten_milliseconds_together(crowds: MakeCrowd) -> None:
    """One late wake-up of a thread is not a crowd."""
    crowd = crowds(2)
    for _ in range(3):
        assert crowd.code.crowd_begin(crowd.state, 2, crowd.now) == 2
        assert not crowd.code.crowd_sampling(crowd.state)
        crowd.now += 3 * MILLISECOND
        crowd.code.crowd_end(crowd.state, 2, 1, crowd.now, 0)
    assert crowd.code.crowd_begin(crowd.state, 2, crowd.now) == 2


def test_the_system_says_how_long_a_thread_waited(code: ctypes.CDLL) -> None:
    first = code.own_delay()
    assert first < 2**63, "this kernel has no /proc/thread-self/schedstat"
    assert code.own_delay() >= first


@pytest.mark.parametrize("threads", [2, 3, 9, 12])
def test_threads_leave_and_join_without_losing_a_barrier(code: ctypes.CDLL, threads: int) -> None:
    pool, seen = code.pool_create(threads), Seen()
    try:
        for active in [threads, 1, threads, 2, 1, 1, threads, 2, threads, threads]:
            code.pool_look(pool, active, ctypes.byref(seen))
            assert list(seen.counts[: threads + 1]) == [20] * active + [0] * (threads + 1 - active)
    finally:
        code.pool_destroy(pool)


def test_pinned_threads_stay_and_the_caller_gets_its_processors_back(code: ctypes.CDLL) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    pool, seen = code.pool_create(2), Seen()
    numbers = (ctypes.c_uint32 * 2)(allowed[-1], allowed[0])
    try:
        assert code.pool_pin(pool, numbers) == 0
        for _ in range(5):
            code.pool_look(pool, 2, ctypes.byref(seen))
            assert list(seen.processors[:2]) == [allowed[-1], allowed[0]]
            assert sorted(os.sched_getaffinity(0)) == allowed
        assert code.pool_pin(pool, (ctypes.c_uint32 * 2)(allowed[0], 1 << 20)) != 0
        assert sorted(os.sched_getaffinity(0)) == allowed
    finally:
        code.pool_destroy(pool)
