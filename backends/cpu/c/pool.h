/* A persistent thread pool: every thread runs the same function and meets the others at barriers.
 *
 * Workers spin for a moment after a run and then sleep, so an idle model costs no CPU time. Each thread counts its
 * barrier arrivals on its own 128-byte line. At a barrier too a thread spins first and then sleeps, at once when threads
 * outnumber processors. */
#ifndef LLAMAC_POOL_H
#define LLAMAC_POOL_H

#include "types.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define LLAMAC_IDLE_SPIN_NANOSECONDS 100000 /* how long a worker waits awake for the next run */
#define LLAMAC_BARRIER_SPINS 2000           /* pauses before a waiting thread sleeps */
#define LLAMAC_CROWDED_SPINS 50             /* the same when threads outnumber processors */
#define LLAMAC_ALL_TO_ALL_THREADS 8         /* up to this many threads each reads every other's line */
#define LLAMAC_STACK_BYTES (8u << 20)

typedef struct llamac_pool llamac_pool;

/* What a kernel knows of its thread: number `id` of `count`. */
typedef struct {
    uint32_t id, count;
    llamac_pool *pool;
} llamac_thread;

typedef struct {
    _Alignas(128) _Atomic uint32_t arrived; /* barriers this thread has reached */
} llamac_arrival;

struct llamac_pool {
    uint32_t count, spins, started; /* `started` counts the workers to join */
    int crowded;
    void (*function)(const llamac_thread *, void *);
    void *argument;
    pthread_mutex_t mutex;
    pthread_cond_t wake, arrival; /* a new run; somebody has come to a barrier */
    pthread_t *workers;
    llamac_thread *threads;
    llamac_arrival *arrivals;
    _Alignas(128) _Atomic uint32_t generation; /* one more for every run; the last one stops the workers */
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

static inline uint64_t llamac_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Waits for a generation other than `seen`: awake for a moment, then asleep. */
static inline void llamac_await_run(llamac_pool *pool, uint32_t seen) {
    uint64_t until = pool->crowded ? 0 : llamac_nanoseconds() + LLAMAC_IDLE_SPIN_NANOSECONDS;
    do {
        for (int turn = 0; turn < 64; turn++) {
            if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) return;
            llamac_pause();
        }
    } while (llamac_nanoseconds() < until);
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void *llamac_worker(void *argument) {
    const llamac_thread *th = argument;
    llamac_pool *pool = th->pool;
    for (uint32_t seen = 0;; seen++) {
        llamac_await_run(pool, seen);
        if (atomic_load(&pool->stop)) return NULL;
        pool->function(th, pool->argument);
        llamac_barrier(th);
    }
}

/* Starts generation + 1. Sleepers are counted before they look at the generation for the last time, and woken after it
 * has changed, so none is missed. */
static inline void llamac_open_generation(llamac_pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

/* Runs function(thread, argument) on every thread, the caller being thread 0; returns when all have finished. */
static inline void llamac_pool_run(llamac_pool *pool, void (*function)(const llamac_thread *, void *), void *argument) {
    pool->function = function;
    pool->argument = argument;
    if (pool->count > 1) llamac_open_generation(pool);
    function(&pool->threads[0], argument);
    llamac_barrier(&pool->threads[0]);
}

static void llamac_pool_destroy(llamac_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    llamac_open_generation(pool);
    for (uint32_t worker = 1; worker <= pool->started; worker++) pthread_join(pool->workers[worker], NULL);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->arrival);
    free(pool->workers);
    free(pool->threads);
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
    pool->count = threads;
    pool->spins = pool->crowded ? LLAMAC_CROWDED_SPINS : LLAMAC_BARRIER_SPINS;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->arrival, NULL);
    pool->workers = calloc(threads, sizeof *pool->workers);
    pool->threads = calloc(threads, sizeof *pool->threads);
    pool->arrivals = aligned_alloc(128, threads * sizeof *pool->arrivals);
    if (pool->workers && pool->threads && pool->arrivals) {
        memset(pool->arrivals, 0, threads * sizeof *pool->arrivals);
        for (uint32_t id = 0; id < threads; id++) pool->threads[id] = (llamac_thread){id, threads, pool};
        if (llamac_start_workers(pool)) return pool;
    }
    llamac_pool_destroy(pool);
    return NULL;
}

#endif
