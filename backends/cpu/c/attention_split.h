/* Attention of single rows over long contexts: threads share the pages of a row and KV head, not only the heads.
 *
 * All query heads of a KV head (a group, or an equal part of it) go through its pages together. Pages in the order
 * (row, group, page) are dealt out to threads in contiguous shares of equal cost. Who has a group's first page goes on
 * as far as its share reaches; pages after a cut leave their partial results in their thread's scratch memory, and once
 * all threads are there the owner merges those in page order. So the bits are those of one thread. A step with more
 * pages than the scratch memory has room for takes several rounds. */
#ifndef LLAMAC_ATTENTION_SPLIT_H
#define LLAMAC_ATTENTION_SPLIT_H

#include "attention_page.h"
#include "attention_rows.h"
#include "pool.h"
#include "types.h"

#define LLAMAC_MOST_GROUP 16 /* query heads of a group */
#define LLAMAC_PAGE_COST 32  /* cost of a page beside that of its keys, in keys */

/* How many query heads of a KV head's `ratio` are worked on together: its largest divisor up to LLAMAC_MOST_GROUP. */
LLAMAC_KERNEL int llamac_group_heads(size_t ratio) {
    return ratio % 16 == 0   ? 16
           : ratio % 15 == 0 ? 15
           : ratio % 14 == 0 ? 14
           : ratio % 13 == 0 ? 13
           : ratio % 12 == 0 ? 12
           : ratio % 11 == 0 ? 11
           : ratio % 10 == 0 ? 10
           : ratio % 9 == 0  ? 9
           : ratio % 8 == 0  ? 8
           : ratio % 7 == 0  ? 7
           : ratio % 6 == 0  ? 6
           : ratio % 5 == 0  ? 5
           : ratio % 4 == 0  ? 4
           : ratio % 3 == 0  ? 3
           : ratio % 2 == 0  ? 2
                             : 1;
}

/* Floats of one part, the partial result of a page or the state carried over to the next round: values [group][width],
 * then maxima and sums. */
LLAMAC_KERNEL size_t llamac_part_floats(int group, size_t head_dim) {
    return (size_t)group * llamac_round_up(head_dim, 16) + 2 * LLAMAC_MOST_GROUP;
}

/* A group of one row: its query vectors, and its pages first..first + count - 1, of which `from`..`to` - 1 (counted
 * from the first) are this round's. */
typedef struct {
    size_t row, group, first, count, from, to;
    int32_t last;
} llamac_split_group;

/* The `number`th group of the call; `before` pages come before it, and the round has pages start..stop - 1. */
LLAMAC_KERNEL llamac_split_group llamac_split_group_at(const llamac_attention_call *call, size_t number, size_t groups,
                                                       size_t before, size_t start, size_t stop) {
    llamac_split_group g = {number / groups, number % groups, 0, 0, 0, 0, 0};
    if (!llamac_sees_nothing(call->seen, g.row)) {
        g.last = llamac_seen_last(call->seen, g.row);
        g.first = llamac_seen_first(call->seen, g.row) / LLAMAC_PAGE;
        g.count = (size_t)g.last / LLAMAC_PAGE + 1 - g.first;
    }
    g.from = before >= start ? 0 : start - before < g.count ? start - before : g.count;
    g.to = before >= stop ? 0 : stop - before < g.count ? stop - before : g.count;
    return g;
}

/* Cost of the pages from..to - 1 of a group: whole ones, but for its last. */
LLAMAC_KERNEL uint64_t llamac_split_cost(const llamac_split_group *g) {
    if (g->from >= g->to) return 0;
    const uint64_t pages = g->to - g->from, last = (uint64_t)g->last % LLAMAC_PAGE + 1;
    return pages * (LLAMAC_PAGE + LLAMAC_PAGE_COST) - (g->to == g->count ? LLAMAC_PAGE - last : 0);
}

/* The first of the pages from..to that starts at cost `bound` or later, when the page `from` starts at `at`. */
LLAMAC_KERNEL size_t llamac_split_page(const llamac_split_group *g, uint64_t at, uint64_t bound) {
    const uint64_t page = LLAMAC_PAGE + LLAMAC_PAGE_COST, left = bound > at ? (bound - at + page - 1) / page : 0;
    return left < g->to - g->from ? g->from + left : g->to;
}

/* Running state of a group over its pages. */
typedef struct {
    _Alignas(64) float running[LLAMAC_MOST_GROUP * LLAMAC_MOST_HEAD_DIM];
    float maximum[LLAMAC_MOST_GROUP], sum[LLAMAC_MOST_GROUP];
} llamac_split_state;

/* Page `number` for `count` (a literal) queries of a group from `place` on, into a part. */
LLAMAC_KERNEL void llamac_split_queries(const int count, const int place, const llamac_attention_call *call,
                                        const llamac_split_group *g, const llamac_page *page, size_t number,
                                        float *part, const int group) {
    llamac_page_state state;
    const float *queries[LLAMAC_MOST_QUERIES];
    int32_t position[LLAMAC_MOST_QUERIES];
    float *const maximum = part + (size_t)group * page->width, *const sum = maximum + LLAMAC_MOST_GROUP;
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        const size_t head = g->group * (size_t)group + (size_t)(place + i);
        queries[i] = call->q + g->row * call->ldq + head * call->head_dim;
        position[i] = g->last;
    }
    llamac_attend_page(count, &state, part + (size_t)place * page->width, queries, position, page, number,
                       llamac_seen_first(call->seen, g->row), call->hides);
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        maximum[place + i] = state.maximum[i];
        sum[place + i] = state.sum[i];
    }
}

/* The group's page `index` (counted from its first) into a part; `stop` is the first one that is not read next. */
LLAMAC_KERNEL void llamac_split_part(const int group, const llamac_attention_call *call, const llamac_split_group *g,
                                     size_t index, size_t stop, float *part) {
    const size_t ratio = call->heads / call->kv_heads, kv_head = g->group * (size_t)group / ratio;
    const size_t number = g->first + index, after = index + 1 < stop ? number + 1 : number;
    const uint8_t *head = llamac_call_page(call, g->row, kv_head, number);
    const uint8_t *next = llamac_call_page(call, g->row, kv_head, after);
    const llamac_page page = llamac_page_at(head, next, call->head_dim, call->type, call->scale);
    const int rest = group % LLAMAC_MOST_QUERIES;
    for (int place = 0; place + LLAMAC_MOST_QUERIES <= group; place += LLAMAC_MOST_QUERIES)
        llamac_split_queries(LLAMAC_MOST_QUERIES, place, call, g, &page, number, part, group);
    if (rest) llamac_split_queries(rest, group - rest, call, g, &page, number, part, group);
}

LLAMAC_KERNEL void llamac_split_merge(const int group, llamac_split_state *state, const float *part, size_t width) {
    const float *const maximum = part + (size_t)group * width, *const sum = maximum + LLAMAC_MOST_GROUP;
    for (size_t i = 0; i < (size_t)group; i += 8) {
        const size_t count = (size_t)group - i < 8 ? (size_t)group - i : 8;
        llamac_merge_page(count, state->maximum + i, state->sum + i, state->running + i * width, maximum + i, sum + i,
                          part + i * width, width);
    }
}

/* A fresh state, or the one that the round before left in `carried`. */
LLAMAC_KERNEL void llamac_split_begin(const int group, llamac_split_state *state, const float *carried, size_t width) {
    const size_t floats = (size_t)group * width;
    for (int i = 0; i < group; i++) {
        state->maximum[i] = carried ? carried[floats + (size_t)i] : -__builtin_inff();
        state->sum[i] = carried ? carried[floats + LLAMAC_MOST_GROUP + (size_t)i] : 0.0f;
    }
    if (carried) memcpy(state->running, carried, floats * sizeof(float));
    else memset(state->running, 0, floats * sizeof(float));
}

/* The outputs of a group whose pages are all done. */
LLAMAC_KERNEL void llamac_split_end(const int group, const llamac_attention_call *call, const llamac_split_group *g,
                                    const llamac_split_state *state, size_t width) {
    float *out = call->out + g->row * call->ld_out + g->group * (size_t)group * call->head_dim;
    for (int i = 0; i < group; i++)
        llamac_attention_output(out + (size_t)i * call->head_dim, state->running + (size_t)i * width, state->sum[i],
                                call->head_dim);
}

/* The state of a group that goes on in the next round. */
LLAMAC_KERNEL void llamac_split_carry(const int group, const llamac_split_state *state, float *carry, size_t width) {
    memcpy(carry, state->running, (size_t)group * width * sizeof(float));
    memcpy(carry + (size_t)group * width, state->maximum, (size_t)group * sizeof(float));
    memcpy(carry + (size_t)group * width + LLAMAC_MOST_GROUP, state->sum, (size_t)group * sizeof(float));
}

/* What the threads of a round have in common: pages start..stop - 1 of the call, and their cost. A thread's scratch
 * memory holds parts: 0 and 1, of thread 0 only, by turns the state of a group that goes on in the next round; 2 the
 * page that its owner is about to merge; from 3 on the pages after a cut. */
typedef struct {
    size_t start, stop, number, size;
    uint64_t cost;
} llamac_split_plan;

LLAMAC_KERNEL uint64_t llamac_split_share(const llamac_split_plan *plan, const llamac_thread *th, uint32_t id) {
    return plan->cost * id / th->count;
}

/* Part `index` of a thread's scratch memory. */
LLAMAC_KERNEL float *llamac_split_room(const llamac_split_plan *plan, const llamac_thread *th, uint32_t id,
                                       size_t index) {
    return (float *)th->pool->threads[id].scratch + index * plan->size;
}

/* Merges the pages from `cut` on, which later threads have left in their scratch memory; the page `from` starts at
 * cost `at`. */
LLAMAC_KERNEL void llamac_split_gather(const llamac_thread *th, const int group, const llamac_split_plan *plan,
                                       const llamac_split_group *g, uint64_t at, size_t cut, llamac_split_state *state,
                                       size_t width) {
    for (uint32_t id = th->id + 1; cut < g->to; id++) {
        const size_t end = llamac_split_page(g, at, llamac_split_share(plan, th, id + 1));
        for (size_t place = 0; cut < end; cut++, place++)
            llamac_split_merge(group, state, llamac_split_room(plan, th, id, 3 + place), width);
    }
}

/* This thread's share of a round. */
LLAMAC_KERNEL void llamac_split_round(const llamac_thread *th, const int group, const llamac_attention_call *call,
                                      const llamac_split_plan *plan) {
    const size_t width = llamac_round_up(call->head_dim, 16), groups = call->heads / (size_t)group;
    const uint64_t low = llamac_split_share(plan, th, th->id), high = llamac_split_share(plan, th, th->id + 1);
    const float *const carried = llamac_split_room(plan, th, 0, plan->number % 2);
    uint64_t at = 0, open_at = 0;
    size_t before = 0, cut = 0;
    llamac_split_state state;
    llamac_split_group open = {0}; /* the group that this thread owns and that does not end in its share */
    for (size_t n = 0; n < call->rows * groups && at < high; n++) {
        const llamac_split_group g = llamac_split_group_at(call, n, groups, before, plan->start, plan->stop);
        const size_t mine = llamac_split_page(&g, at, low), end = llamac_split_page(&g, at, high);
        const int is_owner = mine == g.from;
        if (g.from < g.to && mine < end) {
            if (is_owner) llamac_split_begin(group, &state, g.from ? carried : NULL, width);
            for (size_t index = mine; index < end; index++) {
                float *const part = llamac_split_room(plan, th, th->id, is_owner ? 2 : 3 + index - mine);
                llamac_split_part(group, call, &g, index, end, part);
                if (is_owner) llamac_split_merge(group, &state, part, width);
            }
            if (is_owner && end == g.count) llamac_split_end(group, call, &g, &state, width);
            if (is_owner && end < g.count) {
                open = g;
                open_at = at;
                cut = end;
            }
        }
        at += llamac_split_cost(&g);
        before += g.count;
    }
    llamac_barrier(th);
    if (cut) {
        llamac_split_gather(th, group, plan, &open, open_at, cut, &state, width);
        if (open.to == open.count) llamac_split_end(group, call, &open, &state, width);
        else llamac_split_carry(group, &state, llamac_split_room(plan, th, 0, 1 - plan->number % 2), width);
    }
    llamac_barrier(th); /* before anybody uses its scratch memory for something else */
}

/* All rows. */
LLAMAC_KERNEL void llamac_attend_split(const llamac_thread *th, const llamac_attention_call *call) {
    const int group = llamac_group_heads(call->heads / call->kv_heads);
    const size_t groups = call->heads / (size_t)group, size = llamac_part_floats(group, call->head_dim);
    /* A share of 1 / threads of a round has at most two more pages of one group than that. */
    const size_t most = (LLAMAC_SCRATCH_BYTES / (size * sizeof(float)) - 5) * th->count;
    size_t pages = 0;
    for (size_t row = 0; row < call->rows; row++) {
        if (th->id == 0 && llamac_sees_nothing(call->seen, row))
            memset(call->out + row * call->ld_out, 0, sizeof(float) * call->heads * call->head_dim);
        pages += groups * llamac_split_group_at(call, row * groups, groups, 0, 0, 0).count;
    }
    llamac_split_plan plan = {0, 0, 0, size, 0};
    for (; plan.start < pages; plan.start = plan.stop, plan.number++) {
        plan.stop = pages - plan.start < most ? pages : plan.start + most;
        plan.cost = 0;
        size_t before = 0;
        for (size_t n = 0; n < call->rows * groups; n++) {
            const llamac_split_group g = llamac_split_group_at(call, n, groups, before, plan.start, plan.stop);
            plan.cost += llamac_split_cost(&g);
            before += g.count;
        }
        llamac_split_round(th, group, call, &plan);
    }
}

#endif
