/* Attention over a paged KV cache: causal, or to a range of positions that each row names.
 *
 * The arithmetic of a row is that of attention_page.h: page by page in ascending order, so it depends neither on the
 * other rows nor on threads. Rows that go on where others of their sequence end share the loads of a page (tiles,
 * below), and many tiles of a KV head go through the pages together (bands), so that memory is read once for all of
 * them; single rows share the pages themselves out to the threads (attention_split.h). With `chunk`, a row at position
 * p sees the keys from p / chunk * chunk on; 0 means all. A row with a range sees the keys start..stop - 1; where that
 * is empty its output is zero. */
#ifndef LLAMAC_ATTENTION_H
#define LLAMAC_ATTENTION_H

#include "attention_page.h"
#include "attention_rows.h"
#include "attention_split.h"
#include "pool.h"
#include "types.h"

#define LLAMAC_SMALL_QUERIES 4
#define LLAMAC_BAND_TILES 32 /* tiles that share the fetch of a page, which stays in the L2 cache meanwhile */

/* Query vectors, their outputs, and the positions (ascending) of their last keys. */
typedef struct {
    size_t count;
    const float *query[LLAMAC_MOST_QUERIES];
    float *output[LLAMAC_MOST_QUERIES];
    int32_t position[LLAMAC_MOST_QUERIES];
} llamac_queries;

/* Tiles of one sequence and KV head with one first key. */
typedef struct {
    size_t count, sequence, kv_head, first_visible;
    llamac_queries tile[LLAMAC_BAND_TILES];
} llamac_band;

/* Running values [query][width], maxima and sums of a tile, in a thread's scratch memory. */
typedef struct {
    float *running, *maximum, *sum;
} llamac_tile_state;

LLAMAC_KERNEL llamac_tile_state llamac_tile_state_at(const llamac_thread *th, size_t tile, size_t width) {
    float *const running = (float *)th->scratch + tile * LLAMAC_MOST_QUERIES * (width + 2);
    float *const maximum = running + LLAMAC_MOST_QUERIES * width;
    return (llamac_tile_state){running, maximum, maximum + LLAMAC_MOST_QUERIES};
}

/* A tile that has seen no page; entries from its count on repeat the last one. */
LLAMAC_KERNEL void llamac_begin_queries(llamac_queries *tile, llamac_tile_state state, size_t width) {
    for (size_t i = 0; i < LLAMAC_MOST_QUERIES; i++) {
        const size_t source = i < tile->count ? i : tile->count - 1;
        tile->query[i] = tile->query[source];
        tile->position[i] = tile->position[source];
        state.maximum[i] = -__builtin_inff();
        state.sum[i] = 0.0f;
    }
    memset(state.running, 0, sizeof(float) * LLAMAC_MOST_QUERIES * width);
}

/* Page `number` for `count` (a literal) queries. */
LLAMAC_KERNEL void llamac_attend_queries(const int count, const llamac_queries *tile, llamac_tile_state running,
                                         const llamac_page *page, size_t number, size_t visible, const int hides) {
    _Alignas(64) float mixed[LLAMAC_MOST_QUERIES * LLAMAC_MOST_HEAD_DIM];
    llamac_page_state state;
    llamac_attend_page(count, &state, mixed, tile->query, tile->position, page, number, visible, hides);
    llamac_merge_page((size_t)count, running.maximum, running.sum, running.running, state.maximum, state.sum, mixed,
                      page->width);
}

/* All pages for all tiles, page by page, then the outputs. Of the call only the cache and what is literal counts. */
LLAMAC_KERNEL void llamac_attend_band(const llamac_thread *th, llamac_band *band, const llamac_attention_call *call) {
    const size_t head_dim = call->head_dim, width = llamac_round_up(head_dim, 16), visible = band->first_visible;
    size_t pages = 0;
    for (size_t t = 0; t < band->count; t++) {
        const size_t seen = (size_t)band->tile[t].position[band->tile[t].count - 1] / LLAMAC_PAGE + 1;
        pages = seen > pages ? seen : pages;
        llamac_begin_queries(&band->tile[t], llamac_tile_state_at(th, t, width), width);
    }
    for (size_t number = visible / LLAMAC_PAGE; number < pages; number++) {
        const uint8_t *head = llamac_kv_head(call->kv, band->sequence, number, call->layer, call->kv_heads,
                                             band->kv_head, head_dim, call->type);
        const llamac_page page = llamac_page_at(head, NULL, head_dim, call->type, call->scale);
        for (size_t t = 0; t < band->count; t++) {
            const llamac_queries *const tile = &band->tile[t];
            const llamac_tile_state state = llamac_tile_state_at(th, t, width);
            if ((size_t)tile->position[tile->count - 1] / LLAMAC_PAGE < number) continue;
            if (tile->count > LLAMAC_SMALL_QUERIES)
                llamac_attend_queries(LLAMAC_MOST_QUERIES, tile, state, &page, number, visible, call->hides);
            else
                llamac_attend_queries(LLAMAC_SMALL_QUERIES, tile, state, &page, number, visible, call->hides);
        }
    }
    for (size_t t = 0; t < band->count; t++) {
        const llamac_tile_state state = llamac_tile_state_at(th, t, width);
        for (size_t i = 0; i < band->tile[t].count; i++)
            llamac_attention_output(band->tile[t].output[i], state.running + i * width, state.sum[i], head_dim);
    }
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

/* The next neighbouring units of one sequence and KV head, as tiles; an empty band when the share is done. */
LLAMAC_KERNEL void llamac_next_band(llamac_band *band, llamac_attention_work *work, const llamac_attention_call *call) {
    const llamac_seen seen = call->seen;
    const size_t ratio = call->heads / call->kv_heads, head_dim = call->head_dim;
    llamac_queries *tile = NULL;
    band->count = 0;
    for (; work->unit < work->units && work->at < work->high; work->unit++) {
        const size_t group = work->unit / ratio, kv_head = group / call->rows, row = group % call->rows;
        const size_t sequence = (size_t)call->sequence_of_token[row], head = kv_head * ratio + work->unit % ratio;
        if (work->at >= work->low && llamac_sees_nothing(seen, row)) {
            memset(call->out + row * call->ld_out + head * head_dim, 0, sizeof(float) * head_dim);
        } else if (work->at >= work->low) {
            const size_t first = llamac_seen_first(seen, row);
            const int32_t last = llamac_seen_last(seen, row);
            if (tile && (band->sequence != sequence || band->kv_head != kv_head || band->first_visible != first))
                return;
            if (!tile || tile->count == LLAMAC_MOST_QUERIES || last < tile->position[tile->count - 1]) {
                if (band->count == LLAMAC_BAND_TILES) return;
                band->sequence = sequence;
                band->kv_head = kv_head;
                band->first_visible = first;
                tile = &band->tile[band->count++];
                tile->count = 0;
            }
            tile->query[tile->count] = call->q + row * call->ldq + head * head_dim;
            tile->output[tile->count] = call->out + row * call->ld_out + head * head_dim;
            tile->position[tile->count++] = last;
        }
        work->at += llamac_row_cost(seen, row);
    }
}

/* Units go to threads by equal cost; neighbours of one sequence and KV head are worked on together. */
LLAMAC_KERNEL void llamac_attend_tiles(const llamac_thread *th, const llamac_attention_call *call) {
    llamac_band band;
    llamac_attention_work work = {0, call->rows * call->heads, 0, 0, 0};
    uint64_t cost = 0;
    for (size_t row = 0; row < call->rows; row++) cost += llamac_row_cost(call->seen, row) * call->heads;
    work.low = cost * th->id / th->count;
    work.high = cost * (th->id + 1) / th->count;
    for (;;) {
        llamac_next_band(&band, &work, call);
        if (band.count == 0) return;
        llamac_attend_band(th, &band, call);
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
