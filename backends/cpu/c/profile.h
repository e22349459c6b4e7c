/* Where the time of a step goes. Thread 0 reads the clock after every op, and again after every barrier between ops: the
 * first part is the op's own, the second is what thread 0 waited for the others, and counts as the waiting of the op
 * before the barrier. So the rows of a step add up to its whole time. Off, an op costs one branch that is never taken. */
#ifndef LLAMAC_PROFILE_H
#define LLAMAC_PROFILE_H

#include "pool.h"

/* What one op took since the rows were last read. */
typedef struct {
    uint64_t calls, nanoseconds, waited;
} llamac_profile_row;

typedef struct {
    uint64_t then;  /* when the clock was read last */
    uint32_t last;  /* the op that was done last */
    llamac_profile_row *rows;
} llamac_profile_state;

static __attribute__((noinline, cold)) void llamac_profile_op(llamac_profile_state *profile, uint32_t op) {
    const uint64_t now = llamac_nanoseconds();
    profile->rows[op].calls++;
    profile->rows[op].nanoseconds += now - profile->then;
    profile->then = now;
    profile->last = op;
}

static __attribute__((noinline, cold)) void llamac_profile_wait(llamac_profile_state *profile) {
    const uint64_t now = llamac_nanoseconds();
    profile->rows[profile->last].waited += now - profile->then;
    profile->then = now;
}

/* This thread has done its part of an op. */
LLAMAC_KERNEL void llamac_op_done(const llamac_thread *th, llamac_profile_state *profile, uint32_t op) {
    if (__builtin_expect(profile != NULL, 0) && th->id == 0) llamac_profile_op(profile, op);
}

/* A barrier between ops. */
LLAMAC_KERNEL void llamac_op_barrier(const llamac_thread *th, llamac_profile_state *profile) {
    llamac_barrier(th);
    if (__builtin_expect(profile != NULL, 0) && th->id == 0) llamac_profile_wait(profile);
}

/* Runs a step on all threads; `profile` is NULL, or gets its times. */
static inline void llamac_profiled_run(llamac_pool *pool, llamac_profile_state *profile,
                                       void (*function)(const llamac_thread *, void *), void *argument) {
    if (profile) profile->then = llamac_nanoseconds();
    llamac_pool_run(pool, function, argument);
    if (profile) llamac_profile_wait(profile);
}

#endif
