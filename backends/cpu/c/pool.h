/* A persistent thread pool: every thread runs the same function and meets the others at barriers.
 *
 * Workers spin for a moment after a run and then sleep, so an idle model costs no CPU time. Each thread counts its
 * barrier arrivals on its own 128-byte line. At a barrier too a thread spins first and then sleeps, at once when threads
 * outnumber processors. Fewer threads than there are take part in a run while the processors are crowded. */
#ifndef LLAMAC_POOL_H
#define LLAMAC_POOL_H

#include "crowding.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#define LLAMAC_IDLE_SPIN_NANOSECONDS 500000 /* how long a worker waits awake for the next run */
#define LLAMAC_BARRIER_SPINS 2000           /* pauses before a waiting thread sleeps */
#define LLAMAC_CROWDED_SPINS 50             /* the same when threads outnumber processors */
#define LLAMAC_ALL_TO_ALL_THREADS 8         /* up to this many threads each reads every other's line */
#define LLAMAC_STACK_BYTES (8u << 20)
#define LLAMAC_SCRATCH_BYTES (2u << 20) /* working memory of a thread within one kernel */

typedef struct llamac_pool llamac_pool;

/* What a kernel knows of its thread: number `id` of `count`. */
typedef struct {
    uint32_t id, count;
    llamac_pool *pool;
    uint8_t *scratch; /* LLAMAC_SCRATCH_BYTES, 64-byte aligned */
} llamac_thread;

typedef struct {
    _Alignas(128) _Atomic uint32_t arrived; /* barriers this thread has reached */
    uint64_t delay, delay_before;           /* how long it lacked a processor: now, and when it was looked at last */
} llamac_arrival;

struct llamac_pool {
    uint32_t count, spins, started; /* `started` counts the workers to join */
    int crowded;
    void (*function)(const llamac_thread *, void *);
    void *argument;
    pthread_mutex_t mutex;
    pthread_cond_t wake, arrival; /* a new run; somebody has come to a barrier */
    pthread_cond_t joining;       /* a new run with more threads than the one before */
    llamac_crowd crowd;
    pthread_t caller; /* who ran last, and its counters of the scheduler */
    int caller_delay;
    cpu_set_t *cpus; /* the processor of each thread, NULL: any */
    pthread_t *workers;
    llamac_thread *threads;
    uint8_t *scratch;
    llamac_arrival *arrivals;
    _Alignas(128) _Atomic uint64_t run; /* number of the run << 16 | threads that take part; the last stops the workers */
    _Alignas(128) _Atomic uint32_t released;   /* barriers thread 0 has opened (many threads only) */
    _Alignas(128) _Atomic uint32_t sleepers; /* waiting for a run */
    _Alignas(128) _Atomic uint32_t waiting;  /* asleep at a barrier */
    _Atomic int stop;
};

LLAMAC_KERNEL void llamac_pause(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static inline int llamac_reached(_Atomic uint32_t *counter, uint32_t target) {
    return (int32_t)(atomic_load(counter) - target) >= 0;
}

/* Waits until `counter` has reached `target`: awake for a moment, then asleep. Whoever is late may be waiting for a
 * processor behind another program; sleeping gives it this one, which yielding does not. */
static inline void llamac_wait_for(llamac_pool *pool, _Atomic uint32_t *counter, uint32_t target) {
    for (uint32_t turn = 0; turn < pool->spins; turn++) {
        if ((int32_t)(atomic_load_explicit(counter, memory_order_acquire) - target) >= 0) return;
        llamac_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->waiting, 1);
    while (!llamac_reached(counter, target)) pthread_cond_wait(&pool->arrival, &pool->mutex);
    atomic_fetch_sub(&pool->waiting, 1);
    pthread_mutex_unlock(&pool->mutex);
}

/* Sets `counter` and wakes who sleeps at a barrier. A sleeper counts itself before it looks for the last time, and is
 * woken after the counter has changed, so none is missed: both sides are sequentially consistent. */
static inline void llamac_announce(llamac_pool *pool, _Atomic uint32_t *counter, uint32_t value) {
    atomic_store(counter, value);
    if (atomic_load(&pool->waiting) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->arrival);
    pthread_mutex_unlock(&pool->mutex);
}

/* No thread passes before all have come; what they wrote before is visible after. */
static inline void llamac_barrier(const llamac_thread *th) {
    if (th->count == 1) return;
    llamac_pool *pool = th->pool;
    llamac_arrival *mine = &pool->arrivals[th->id];
    uint32_t target = atomic_load_explicit(&mine->arrived, memory_order_relaxed) + 1;
    llamac_announce(pool, &mine->arrived, target);
    if (th->count <= LLAMAC_ALL_TO_ALL_THREADS || th->id == 0)
        for (uint32_t other = 0; other < th->count; other++)
            llamac_wait_for(pool, &pool->arrivals[other].arrived, target);
    if (th->count > LLAMAC_ALL_TO_ALL_THREADS) {
        if (th->id == 0) llamac_announce(pool, &pool->released, target);
        llamac_wait_for(pool, &pool->released, target);
    }
}

/* This thread's contiguous share [*low, *high) of `total` equal units. */
LLAMAC_KERNEL void llamac_share(const llamac_thread *th, size_t total, size_t *low, size_t *high) {
    *low = total * th->id / th->count;
    *high = total * (th->id + 1) / th->count;
}

LLAMAC_KERNEL uint32_t llamac_taking_part(uint64_t run) { return (uint32_t)(run & 0xffff); }

/* Waits, awake for a moment and then asleep, for a run other than `seen` that thread `id` takes part in. */
static inline uint64_t llamac_await_run(llamac_pool *pool, uint64_t seen, uint32_t id) {
    const uint64_t until = pool->crowded ? 0 : llamac_nanoseconds() + LLAMAC_IDLE_SPIN_NANOSECONDS;
    uint64_t run = seen;
    do {
        for (int turn = 0; turn < 64 && run == seen; turn++) {
            llamac_pause();
            run = atomic_load_explicit(&pool->run, memory_order_acquire);
        }
    } while (run == seen && llamac_nanoseconds() < until);
    if (run != seen && llamac_taking_part(run) > id) return run;
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while ((run = atomic_load(&pool->run)) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    while (llamac_taking_part(run) <= id) {
        pthread_cond_wait(&pool->joining, &pool->mutex);
        run = atomic_load(&pool->run);
    }
    pthread_mutex_unlock(&pool->mutex);
    return run;
}

static void *llamac_worker(void *argument) {
    llamac_thread *th = argument;
    llamac_pool *pool = th->pool;
    const int delay = llamac_open_delay();
    pool->arrivals[th->id].delay_before = llamac_read_delay(delay);
    for (uint64_t seen = pool->count;;) {
        seen = llamac_await_run(pool, seen, th->id);
        if (atomic_load(&pool->stop)) break;
        th->count = llamac_taking_part(seen);
        pool->function(th, pool->argument);
        if (llamac_crowd_samples(&pool->crowd)) pool->arrivals[th->id].delay = llamac_read_delay(delay);
        llamac_barrier(th);
    }
    if (delay >= 0) close(delay);
    return NULL;
}

/* Starts the next run, of `active` threads. Sleepers are counted before they look at the run for the last time, and
 * woken after it has changed, so none is missed. Threads that join again were left behind by the barriers since. */
static inline void llamac_open_run(llamac_pool *pool, uint32_t active) {
    const uint64_t last = atomic_load(&pool->run);
    const uint32_t reached = atomic_load(&pool->arrivals[0].arrived);
    for (uint32_t id = llamac_taking_part(last); id < active; id++) atomic_store(&pool->arrivals[id].arrived, reached);
    atomic_store(&pool->run, ((last >> 16) + 1) << 16 | active);
    const int joins = active > llamac_taking_part(last);
    if (atomic_load(&pool->sleepers) == 0 && !joins) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    if (joins) pthread_cond_broadcast(&pool->joining);
    pthread_mutex_unlock(&pool->mutex);
}

/* Looks how long the threads of the last run lacked a processor. */
static inline void llamac_look_at_delays(llamac_pool *pool, uint64_t now) {
    uint32_t late = 0;
    for (uint32_t id = 0; id < pool->crowd.active; id++) {
        llamac_arrival *of = &pool->arrivals[id];
        late += (of->delay - of->delay_before) * LLAMAC_CROWDED_PART > pool->crowd.busy;
        of->delay_before = of->delay;
    }
    llamac_crowd_judge(&pool->crowd, pool->count, late, now);
}

/* The caller's delay so far; another caller than the last one starts anew. */
static inline void llamac_look_at_caller(llamac_pool *pool) {
    llamac_arrival *mine = &pool->arrivals[0];
    const int is_other = pool->caller_delay < 0 || !pthread_equal(pool->caller, pthread_self());
    if (is_other) {
        if (pool->caller_delay >= 0) close(pool->caller_delay);
        pool->caller_delay = llamac_open_delay();
        pool->caller = pthread_self();
    }
    mine->delay = llamac_read_delay(pool->caller_delay);
    if (is_other) mine->delay_before = mine->delay;
}

/* Runs function(thread, argument) on every thread, the caller being thread 0; returns when all have finished. */
static inline void llamac_pool_run(llamac_pool *pool, void (*function)(const llamac_thread *, void *), void *argument) {
    llamac_thread *self = &pool->threads[0];
    llamac_crowd *crowd = &pool->crowd;
    const uint64_t started = crowd->adapts ? llamac_nanoseconds() : 0;
    llamac_crowd_begin(crowd, pool->count, started);
    pool->function = function;
    pool->argument = argument;
    self->count = crowd->active;
    cpu_set_t own;
    const int moved = pool->cpus && !sched_getaffinity(0, sizeof own, &own);
    if (moved) sched_setaffinity(0, sizeof own, &pool->cpus[0]);
    if (crowd->active > 1) llamac_open_run(pool, crowd->active);
    function(self, argument);
    const int samples = llamac_crowd_samples(crowd);
    if (samples) llamac_look_at_caller(pool);
    llamac_barrier(self);
    if (moved) sched_setaffinity(0, sizeof own, &own);
    if (!crowd->adapts) return;
    const uint64_t ended = llamac_nanoseconds();
    crowd->busy += ended - started;
    if (samples) llamac_look_at_delays(pool, ended);
}

/* From now on, as many threads take part as find a processor. */
static inline void llamac_pool_adapt(llamac_pool *pool) { pool->crowd.adapts = pool->count > 1; }

/* Each thread on one processor from now on: thread i on processor numbers[i]. The caller goes to its processor for a
 * run and back to its own ones afterwards. Not 0: one of them cannot be had, and nothing has changed for the caller. */
static inline int llamac_pool_pin(llamac_pool *pool, const uint32_t *numbers) {
    cpu_set_t *cpus = calloc(pool->count, sizeof *cpus), own;
    if (!cpus || sched_getaffinity(0, sizeof own, &own)) return 1;
    int failed = 0;
    for (uint32_t id = 0; id < pool->count && !failed; id++) {
        failed = numbers[id] >= CPU_SETSIZE;
        if (failed) break;
        CPU_SET(numbers[id], &cpus[id]);
        failed = id ? pthread_setaffinity_np(pool->workers[id], sizeof *cpus, &cpus[id])
                    : sched_setaffinity(0, sizeof *cpus, &cpus[id]);
    }
    sched_setaffinity(0, sizeof own, &own);
    if (failed) {
        free(cpus);
        return 1;
    }
    free(pool->cpus);
    pool->cpus = cpus;
    return 0;
}

static void llamac_pool_destroy(llamac_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    if (pool->started) llamac_open_run(pool, pool->count);
    for (uint32_t worker = 1; worker <= pool->started; worker++) pthread_join(pool->workers[worker], NULL);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->arrival);
    pthread_cond_destroy(&pool->joining);
    if (pool->caller_delay >= 0) close(pool->caller_delay);
    free(pool->cpus);
    free(pool->workers);
    free(pool->threads);
    free(pool->scratch);
    free(pool->arrivals);
    free(pool);
}

/* Starts the workers with every signal blocked, so that signals keep going to the threads of the host program. */
static inline int llamac_start_workers(llamac_pool *pool) {
    pthread_attr_t attributes;
    sigset_t every, before;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setstacksize(&attributes, LLAMAC_STACK_BYTES);
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    while (pool->started + 1 < pool->count) {
        uint32_t next = pool->started + 1;
        if (pthread_create(&pool->workers[next], &attributes, llamac_worker, &pool->threads[next])) break;
        pool->started = next;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return pool->started + 1 == pool->count;
}

/* A pool of `threads` (1..256) threads, the caller's among them; NULL when they cannot be had. */
static llamac_pool *llamac_pool_create(uint32_t threads) {
    if (threads < 1 || threads > 256) return NULL;
    llamac_pool *pool = aligned_alloc(128, llamac_round_up(sizeof *pool, 128));
    if (!pool) return NULL;
    memset(pool, 0, sizeof *pool);
    cpu_set_t allowed;
    pool->crowded = !sched_getaffinity(0, sizeof allowed, &allowed) && threads > (uint32_t)CPU_COUNT(&allowed);
    pool->count = pool->crowd.active = threads;
    pool->crowd.retry_after = LLAMAC_FIRST_RETRY_NANOSECONDS;
    pool->caller_delay = -1;
    atomic_store(&pool->run, threads);
    pool->spins = pool->crowded ? LLAMAC_CROWDED_SPINS : LLAMAC_BARRIER_SPINS;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->arrival, NULL);
    pthread_cond_init(&pool->joining, NULL);
    pool->workers = calloc(threads, sizeof *pool->workers);
    pool->threads = calloc(threads, sizeof *pool->threads);
    pool->scratch = aligned_alloc(4096, (size_t)threads * LLAMAC_SCRATCH_BYTES);
    pool->arrivals = aligned_alloc(128, threads * sizeof *pool->arrivals);
    if (pool->workers && pool->threads && pool->arrivals && pool->scratch) {
        memset(pool->arrivals, 0, threads * sizeof *pool->arrivals);
        for (uint32_t id = 0; id < threads; id++) 
            pool->threads[id] = (llamac_thread){id, threads, pool, pool->scratch + (size_t)id * LLAMAC_SCRATCH_BYTES};
        if (llamac_start_workers(pool)) return pool;
    }
    llamac_pool_destroy(pool);
    return NULL;
}

#endif
