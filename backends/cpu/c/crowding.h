/* How many threads to run while other programs want the processors too.
 *
 * A step is as fast as its slowest thread. When another program has one of the processors, some thread waits for a time
 * slice at almost every barrier, and all others wait with it: fewer threads, each with a processor of its own, are many
 * times faster. The system counts how long a thread was ready to run but had no processor; when that is a good part of
 * the time of the steps, fewer threads take part in those that follow, and after a while all of them are tried again.
 * What a step computes does not depend on the number of threads. */
#ifndef LLAMAC_CROWDING_H
#define LLAMAC_CROWDING_H

#include "types.h"

#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define LLAMAC_SAMPLE_NANOSECONDS UINT64_C(10000000)       /* of runs between two looks at the delays */
#define LLAMAC_FIRST_RETRY_NANOSECONDS UINT64_C(100000000) /* how long fewer threads run before all are tried again */
#define LLAMAC_LAST_RETRY_NANOSECONDS UINT64_C(3200000000) /* the same after many trials in vain */
#define LLAMAC_CROWDED_PART 7                              /* crowded: without a processor for 1/7 of the time */

typedef struct {
    uint32_t active;      /* threads that take part in a run */
    int adapts, sampling; /* whether `active` ever changes; whether it is time to look at the delays */
    int suspected;        /* all threads ran, and the last look found some late */
    uint64_t started;     /* when this run began */
    uint64_t busy;        /* nanoseconds of runs since the delays were looked at last */
    uint64_t retry, retry_after; /* when to try more threads, and how long after the next failure */
} llamac_crowd;

static inline uint64_t llamac_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The calling thread's own counters of the scheduler; -1 where the system has none. */
static inline int llamac_open_delay(void) { return open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC); }

/* Nanoseconds that the thread which opened `file` has been ready to run without a processor: the second number. */
static inline uint64_t llamac_read_delay(int file) {
    char text[96] = {0};
    if (file < 0 || pread(file, text, sizeof text - 1, 0) <= 0) return 0;
    char *rest = text;
    strtoull(rest, &rest, 10);
    return strtoull(rest, NULL, 10);
}

/* A run begins. */
static inline void llamac_crowd_begin(llamac_crowd *crowd, uint32_t threads, uint64_t now) {
    if (!crowd->adapts) return;
    if (crowd->active < threads && now >= crowd->retry) {
        crowd->active += (threads - crowd->active + 1) / 2;
        crowd->busy = 0;
    }
    crowd->started = now;
    crowd->sampling = crowd->busy >= LLAMAC_SAMPLE_NANOSECONDS;
}

/* Whether the delays are looked at when this run ends: it is time, or it took long itself. */
static inline int llamac_crowd_samples(const llamac_crowd *crowd) {
    if (!crowd->adapts || crowd->sampling) return crowd->sampling;
    return llamac_nanoseconds() - crowd->started >= LLAMAC_SAMPLE_NANOSECONDS;
}

/* The delays have been looked at: `late` of the active threads lacked a processor for a good part of the time. */
static inline void llamac_crowd_judge(llamac_crowd *crowd, uint32_t threads, uint32_t late, uint64_t now) {
    /* One look is not enough: a thread that has slept is often woken on a processor where another one of them runs, and
     * waits there for some milliseconds although a processor is free. */
    if (late && crowd->active == threads && !crowd->suspected) {
        crowd->suspected = 1;
        crowd->busy = 0;
        return;
    }
    crowd->suspected = 0;
    if (late) {
        const int was_trial = crowd->active == threads && crowd->retry_after < LLAMAC_LAST_RETRY_NANOSECONDS;
        crowd->active -= crowd->active > 1 ? (late + 1) / 2 : 0;
        crowd->retry = now + crowd->retry_after;
        crowd->retry_after *= was_trial ? 2 : 1;
    } else if (crowd->active == threads && now > crowd->retry && now - crowd->retry > crowd->retry_after &&
               crowd->retry_after > LLAMAC_FIRST_RETRY_NANOSECONDS) {
        crowd->retry_after /= 2; /* it has been quiet for as long as it would have been kept small */
        crowd->retry = now;
    }
    crowd->busy = 0;
}

#endif
