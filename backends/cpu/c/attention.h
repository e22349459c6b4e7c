/* Attention over a paged KV cache: causal, or to a range of positions that each row names.
 *
 * The arithmetic of a row is that of attention_page.h: page by page in ascending order, so it depends neither on the
 * other rows nor on threads. Rows that go on where others of their sequence end share the loads of a page (tiles,
 * below); single rows share the pages themselves out to the threads (attention_split.h). With `chunk`, a row at
 * position p sees the keys from p / chunk * chunk on; 0 means all. A row with a range sees the keys start..stop - 1;
 * where that is empty its output is zero. */
#ifndef LLAMAC_ATTENTION_H
#define LLAMAC_ATTENTION_H

#include "attention_page.h"
#include "attention_rows.h"
#include "attention_split.h"
#include "pool.h"
#include "types.h"

#define LLAMAC_SMALL_QUERIES 4

/* Query vectors of one sequence and KV head with one first key, positions (of their last keys) ascending. Entries from
 * `count` on repeat the last one. */
typedef struct {
    size_t count, sequence, kv_head, first_visible;
    const float *query[LLAMAC_MOST_QUERIES];
    float *output[LLAMAC_MOST_QUERIES];
    int32_t position[LLAMAC_MOST_QUERIES];
} llamac_queries;

/* All pages for `count` (a literal) queries, then the outputs of the real ones. */
LLAMAC_KERNEL void llamac_attend_queries(const int count, llamac_queries *queries, llamac_kv kv, size_t layer,
                                         size_t kv_heads, size_t head_dim, int type, float scale, const int hides) {
    const size_t width = llamac_round_up(head_dim, 16), last = queries->count - 1;
    _Alignas(64) float running[LLAMAC_MOST_QUERIES * LLAMAC_MOST_HEAD_DIM];
    _Alignas(64) float mixed[LLAMAC_MOST_QUERIES * LLAMAC_MOST_HEAD_DIM];
    float maximum[LLAMAC_MOST_QUERIES], sum[LLAMAC_MOST_QUERIES];
    llamac_page_state state;
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        const size_t source = (size_t)i < last ? (size_t)i : last;
        queries->query[i] = queries->query[source];
        queries->position[i] = queries->position[source];
        maximum[i] = -__builtin_inff();
        sum[i] = 0.0f;
    }
    memset(running, 0, sizeof(float) * (size_t)count * width);
    const size_t pages = (size_t)queries->position[last] / LLAMAC_PAGE + 1;
    const size_t visible = queries->first_visible;
    for (size_t number = visible / LLAMAC_PAGE; number < pages; number++) {
        const uint8_t *head =
            llamac_kv_head(kv, queries->sequence, number, layer, kv_heads, queries->kv_head, head_dim, type);
        const llamac_page page = llamac_page_at(head, NULL, head_dim, type, scale);
        llamac_attend_page(count, &state, mixed, queries->query, queries->position, &page, number, visible, hides);
        llamac_merge_page((size_t)count, maximum, sum, running, state.maximum, state.sum, mixed, width);
    }
    for (size_t i = 0; i < queries->count; i++)
        llamac_attention_output(queries->output[i], running + i * width, sum[i], head_dim);
}

LLAMAC_KERNEL void llamac_attend(llamac_queries *queries, llamac_kv kv, size_t layer, size_t kv_heads, size_t head_dim,
                                 int type, float scale, const int hides) {
    if (queries->count > LLAMAC_SMALL_QUERIES)
        llamac_attend_queries(LLAMAC_MOST_QUERIES, queries, kv, layer, kv_heads, head_dim, type, scale, hides);
    else if (queries->count)
        llamac_attend_queries(LLAMAC_SMALL_QUERIES, queries, kv, layer, kv_heads, head_dim, type, scale, hides);
}

/* What a row costs, in keys: those it sees and a constant for the rest. */
LLAMAC_KERNEL uint64_t llamac_row_cost(llamac_seen seen, size_t row) {
    if (llamac_sees_nothing(seen, row)) return 1;
    return (uint64_t)llamac_seen_last(seen, row) - llamac_seen_first(seen, row) + 33;
}

/* The units of a thread still to do: unit = (kv head, row, head of its group), `at` the cost of all units before it. */
typedef struct {
    size_t unit, units;
    uint64_t at, low, high;
} llamac_attention_work;

/* The next neighbouring units of one sequence and KV head, as queries; an empty set when the share is done. */
LLAMAC_KERNEL void llamac_next_queries(llamac_queries *queries, llamac_attention_work *work,
                                       const llamac_attention_call *call) {
    const llamac_seen seen = call->seen;
    const size_t ratio = call->heads / call->kv_heads, head_dim = call->head_dim;
    queries->count = 0;
    for (; work->unit < work->units && work->at < work->high; work->unit++) {
        const size_t group = work->unit / ratio, kv_head = group / call->rows, row = group % call->rows;
        const size_t sequence = (size_t)call->sequence_of_token[row], head = kv_head * ratio + work->unit % ratio;
        if (work->at >= work->low && llamac_sees_nothing(seen, row)) {
            memset(call->out + row * call->ld_out + head * head_dim, 0, sizeof(float) * head_dim);
        } else if (work->at >= work->low) {
            const size_t place = queries->count;
            if (place == LLAMAC_MOST_QUERIES) return;
            if (place && (queries->sequence != sequence || queries->kv_head != kv_head)) return;
            if (place && llamac_seen_first(seen, row) != queries->first_visible) return;
            if (place && seen.start && llamac_seen_last(seen, row) < queries->position[place - 1]) return;
            queries->sequence = sequence;
            queries->first_visible = llamac_seen_first(seen, row);
            queries->kv_head = kv_head;
            queries->query[place] = call->q + row * call->ldq + head * head_dim;
            queries->output[place] = call->out + row * call->ld_out + head * head_dim;
            queries->position[place] = llamac_seen_last(seen, row);
            queries->count = place + 1;
        }
        work->at += llamac_row_cost(seen, row);
    }
}

/* Units go to threads by equal cost; neighbours of one sequence and KV head are worked on together. */
LLAMAC_KERNEL void llamac_attend_tiles(const llamac_thread *th, const llamac_attention_call *call) {
    llamac_queries queries;
    llamac_attention_work work = {0, call->rows * call->heads, 0, 0, 0};
    uint64_t cost = 0;
    for (size_t row = 0; row < call->rows; row++) cost += llamac_row_cost(call->seen, row) * call->heads;
    work.low = cost * th->id / th->count;
    work.high = cost * (th->id + 1) / th->count;
    for (;;) {
        llamac_next_queries(&queries, &work, call);
        if (queries.count == 0) return;
        llamac_attend(&queries, call->kv, call->layer, call->kv_heads, call->head_dim, call->type, call->scale,
                      call->hides);
    }
}

/* Whether no two neighbouring rows are of one sequence: there are no loads to share between rows. */
LLAMAC_KERNEL int llamac_rows_are_single(const llamac_attention_call *call) {
    for (size_t row = 1; row < call->rows; row++)
        if (call->sequence_of_token[row] == call->sequence_of_token[row - 1]) return 0;
    return 1;
}

LLAMAC_KERNEL void llamac_attend_rows(const llamac_thread *th, const llamac_attention_call *call) {
    if (llamac_rows_are_single(call)) llamac_attend_split(th, call);
    else llamac_attend_tiles(th, call);
}

/* Causal attention: the cache already holds this step's keys. chunk is a literal. */
LLAMAC_KERNEL void llamac_attention(const llamac_thread *th, float *out, size_t ld_out, const float *q, size_t ldq,
                                    uint32_t rows, llamac_kv kv, uint32_t layer, uint32_t heads, uint32_t kv_heads,
                                    uint32_t head_dim, int type, float scale, uint32_t chunk, const int32_t *positions,
                                    const int32_t *sequence_of_token) {
    const llamac_attention_call call = {
        .out = out, .ld_out = ld_out, .q = q, .ldq = ldq, .rows = rows, .kv = kv, .layer = layer,
        .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .type = type, .scale = scale,
        .sequence_of_token = sequence_of_token, .seen = {positions, NULL, NULL, chunk},
        .hides = chunk % LLAMAC_PAGE != 0};
    llamac_attend_rows(th, &call);
}

/* Attention of each row to the keys start..stop - 1 of its sequence; zeros where there are none, and everywhere when
 * start is NULL. */
LLAMAC_KERNEL void llamac_attention_range(const llamac_thread *th, float *out, size_t ld_out, const float *q,
                                          size_t ldq, uint32_t rows, llamac_kv kv, uint32_t layer, uint32_t heads,
                                          uint32_t kv_heads, uint32_t head_dim, int type, float scale,
                                          const int32_t *start, const int32_t *stop, const int32_t *sequence_of_token) {
    if (start) {
        const llamac_attention_call call = {
            .out = out, .ld_out = ld_out, .q = q, .ldq = ldq, .rows = rows, .kv = kv, .layer = layer,
            .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .type = type, .scale = scale,
            .sequence_of_token = sequence_of_token, .seen = {NULL, start, stop, 0}, .hides = 1};
        llamac_attend_rows(th, &call);
        return;
    }
    size_t low, high;
    llamac_share(th, rows, &low, &high);
    for (size_t row = low; row < high; row++) memset(out + row * ld_out, 0, sizeof(float) * heads * head_dim);
}

#endif
