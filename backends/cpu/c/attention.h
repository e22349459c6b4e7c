/* Attention over a paged KV cache: causal, or to a range of positions that each row names.
 *
 * A page holds 256 positions: [layer][kv head][K: head_dim x 256, then V: 256 x head_dim] of f32, f16 or bf16. Position
 * t of sequence s is in page page_tables[s * pages_per_sequence + t / 256], slot t % 256.
 *
 * Arithmetic of one row and head, page by page in ascending order:
 *   s[key] = scale * (chain of fma(q[d], K[d][key]), d ascending); m = max s over the keys up to the row's position;
 *   p = exp(s - m); l = sum of p (16 lanes over ascending vectors of 16 keys, then the lane tree);
 *   o[d] = chain of fma(p[key], V[key][d]), keys ascending.
 * Pages are merged in order: M' = max(M, m), a = exp(M - M'), b = exp(m - M'), L = fma(L, a, l * b),
 * O = fma(O, a, o * b); at the end O * (1 / L). Keys that the row does not see - after its position, or before the first
 * of its chunk - are never read as values and their scores are discarded, so stale memory cannot matter; neither can
 * tiles or threads. With `chunk`, a row at position p sees the keys from p / chunk * chunk on; 0 means all. A row with a
 * range sees the keys start..stop - 1; where that is empty its output is zero. */
#ifndef LLAMAC_ATTENTION_H
#define LLAMAC_ATTENTION_H

#include "linear_dense.h"
#include "pool.h"
#include "rope.h"
#include "types.h"

#define LLAMAC_PAGE 256
#define LLAMAC_MOST_HEAD_DIM 256
#define LLAMAC_SMALL_QUERIES 4
#if defined(__AVX512F__)
#define LLAMAC_MOST_QUERIES 8       /* query vectors that share the loads of K and V */
#define LLAMAC_ATTENTION_VECTORS 16 /* accumulators of a tile: queries x vectors of keys or of dims */
#else
#define LLAMAC_MOST_QUERIES 4
#define LLAMAC_ATTENTION_VECTORS 4
#endif

typedef struct {
    uint8_t *base;
    uint64_t page_bytes;
    const int32_t *page_tables;
    uint32_t pages_per_sequence;
} llamac_kv;

/* Where K of (sequence, page of the sequence, layer, kv head) starts; V follows after head_dim * 256 elements. */
LLAMAC_KERNEL uint8_t *llamac_kv_head(llamac_kv kv, size_t sequence, size_t page, size_t layer, size_t kv_heads,
                                      size_t kv_head, size_t head_dim, int type) {
    const size_t head_bytes = 2 * head_dim * LLAMAC_PAGE * llamac_element_bytes(type);
    const size_t physical = (size_t)kv.page_tables[sequence * kv.pages_per_sequence + page];
    return kv.base + physical * kv.page_bytes + (layer * kv_heads + kv_head) * head_bytes;
}

/* Writes k and v [rows][kv_heads * head_dim] into their slots, k rotated by cos, sin [rows][head_dim / 2] on the way
 * (as it is when cosines is NULL). All are of sequence 0 when sequence_of_token is NULL. Threads take ranges of (kv head, row). */
LLAMAC_KERNEL void llamac_kv_append(const llamac_thread *th, llamac_kv kv, uint32_t layer, uint32_t kv_heads,
                                    uint32_t head_dim, int type, const float *k, size_t ldk, const float *v, size_t ldv,
                                    uint32_t rows, const int32_t *positions, const int32_t *sequence_of_token,
                                    const float *cosines, const float *sines) {
    const size_t bytes = llamac_element_bytes(type), half = head_dim / 2;
    size_t low, high;
    llamac_share(th, (size_t)rows * kv_heads, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit % rows, head = unit / rows, slot = (size_t)positions[row] % LLAMAC_PAGE;
        const size_t sequence = sequence_of_token ? (size_t)sequence_of_token[row] : 0;
        uint8_t *keys = llamac_kv_head(kv, sequence, (size_t)positions[row] / LLAMAC_PAGE, layer, kv_heads, head,
                                       head_dim, type);
        uint8_t *values = keys + (head_dim * LLAMAC_PAGE + slot * head_dim) * bytes;
        const float *key = k + row * ldk + head * head_dim, *value = v + row * ldv + head * head_dim;
        float rotated[LLAMAC_MOST_HEAD_DIM];
        if (cosines) {
            llamac_rope_head(rotated, key, head_dim, cosines + row * half, sines + row * half);
            key = rotated;
        }
        for (size_t d = 0; d < head_dim; d++) llamac_put(keys + (d * LLAMAC_PAGE + slot) * bytes, type, key[d]);
        for (size_t d = 0; d < head_dim; d++) llamac_put(values + d * bytes, type, value[d]);
    }
}

/* The first position that a row at `position` sees. */
LLAMAC_KERNEL size_t llamac_first_visible(int32_t position, uint32_t chunk) {
    return chunk ? (size_t)position / chunk * chunk : 0;
}

/* What each row sees: with `start`, the positions start[row]..stop[row] - 1; else those of its chunk up to its own. */
typedef struct {
    const int32_t *positions, *start, *stop;
    uint32_t chunk;
} llamac_seen;

LLAMAC_KERNEL size_t llamac_seen_first(llamac_seen seen, size_t row) {
    return seen.start ? (size_t)seen.start[row] : llamac_first_visible(seen.positions[row], seen.chunk);
}

LLAMAC_KERNEL int32_t llamac_seen_last(llamac_seen seen, size_t row) {
    return seen.start ? seen.stop[row] - 1 : seen.positions[row];
}

LLAMAC_KERNEL int llamac_sees_nothing(llamac_seen seen, size_t row) {
    return seen.start && seen.start[row] >= seen.stop[row];
}

/* Query vectors of one sequence and KV head with one first key, positions (of their last keys) ascending. Entries from
 * `count` on repeat the last one. */
typedef struct {
    size_t count, sequence, kv_head, first_visible;
    const float *query[LLAMAC_MOST_QUERIES];
    float *output[LLAMAC_MOST_QUERIES];
    int32_t position[LLAMAC_MOST_QUERIES];
} llamac_queries;

/* What a page gives each query: scores (then weights) of its keys, their maximum and sum, and the weighted values.
 * No query sees the keys before `from`: only the first page of a chunk hides any. */
typedef struct {
    size_t from;
    _Alignas(64) float weight[LLAMAC_MOST_QUERIES][LLAMAC_PAGE];
    size_t valid[LLAMAC_MOST_QUERIES]; /* keys of this page up to the query's position: 0..256 */
    float maximum[LLAMAC_MOST_QUERIES], sum[LLAMAC_MOST_QUERIES];
} llamac_page_state;

/* Scores of `count` queries against `vectors` x 16 keys from key `first` on; count, vectors and `hides` (whether a page
 * may begin with keys that nobody sees) are literals. */
LLAMAC_KERNEL void llamac_page_scores(const int count, const int vectors, llamac_page_state *state,
                                      const llamac_queries *queries, const uint8_t *keys, size_t first, size_t head_dim,
                                      int type, float scale, const int hides) {
    const size_t bytes = llamac_element_bytes(type);
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 hidden = llamac_splat(-__builtin_inff());
    const float *query[LLAMAC_MOST_QUERIES];
    f32x16 acc[LLAMAC_MOST_QUERIES][LLAMAC_ATTENTION_VECTORS];
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        query[i] = queries->query[i];
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++) acc[i][t] = llamac_splat(0.0f);
    }
    for (size_t d = 0; d < head_dim; d++) {
        f32x16 key[LLAMAC_ATTENTION_VECTORS];
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
            key[t] = llamac_load_type(keys + (d * LLAMAC_PAGE + first + 16 * t) * bytes, type);
        LLAMAC_UNROLL for (int i = 0; i < count; i++) {
            const f32x16 q = llamac_splat(query[i][d]);
            LLAMAC_UNROLL for (int t = 0; t < vectors; t++) acc[i][t] = llamac_fma(q, key[t], acc[i][t]);
        }
    }
    LLAMAC_UNROLL for (int i = 0; i < count; i++) LLAMAC_UNROLL for (int t = 0; t < vectors; t++) {
            const int32_t left = (int32_t)state->valid[i] - (int32_t)(first + 16 * t);
            f32x16 score = lane < left ? acc[i][t] * scale : llamac_splat(-__builtin_inff());
            if (hides) score = lane >= (int32_t)state->from - (int32_t)(first + 16 * t) ? score : hidden;
            llamac_store(&state->weight[i][first + 16 * t], score);
        }
}

/* Scores of query i to weights exp(s - max), over the first `vectors` vectors of keys. */
LLAMAC_KERNEL void llamac_page_softmax(llamac_page_state *state, size_t i, size_t vectors) {
    f32x16 maximum = llamac_splat(-__builtin_inff()), sum = llamac_splat(0.0f);
    for (size_t t = 0; t < vectors; t++) {
        const f32x16 score = llamac_load(&state->weight[i][16 * t]);
        maximum = score > maximum ? score : maximum;
    }
    state->maximum[i] = llamac_max(maximum);
    for (size_t t = 0; t < vectors; t++) {
        const f32x16 p = llamac_exp(llamac_load(&state->weight[i][16 * t]) - state->maximum[i]);
        sum += p;
        llamac_store(&state->weight[i][16 * t], p);
    }
    state->sum[i] = llamac_sum(sum);
}

/* V[key][dim..], 16 dims of which the first `lanes` exist. */
LLAMAC_KERNEL f32x16 llamac_value_vector(const uint8_t *values, size_t key, size_t dim, size_t head_dim, int type,
                                         size_t lanes) {
    return llamac_load_type_part(values + (key * head_dim + dim) * llamac_element_bytes(type), type, lanes);
}

/* Weighted values of `count` queries for `vectors` x 16 dims from `dim` on (`lanes` dims when vectors is 1), merged
 * into running[query][dim..] with the page factors old[query], new[query]. */
LLAMAC_KERNEL void llamac_page_values(const int count, const int vectors, const llamac_page_state *state,
                                      const uint8_t *values, float *running, size_t width, size_t dim, size_t lanes,
                                      size_t head_dim, int type, const float *old_factor, const float *new_factor) {
    f32x16 acc[LLAMAC_MOST_QUERIES][LLAMAC_ATTENTION_VECTORS], value[LLAMAC_ATTENTION_VECTORS];
    size_t shared = state->valid[0]; /* keys that every query sees: positions ascend */
    LLAMAC_UNROLL for (int i = 0; i < count; i++) LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
        acc[i][t] = llamac_splat(0.0f);
    for (size_t key = state->from; key < shared; key++) {
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
            value[t] = llamac_value_vector(values, key, dim + 16 * t, head_dim, type, lanes);
        LLAMAC_UNROLL for (int i = 0; i < count; i++) {
            const f32x16 p = llamac_splat(state->weight[i][key]);
            LLAMAC_UNROLL for (int t = 0; t < vectors; t++) acc[i][t] = llamac_fma(p, value[t], acc[i][t]);
        }
    }
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        for (size_t key = shared; key < state->valid[i]; key++) {
            const f32x16 p = llamac_splat(state->weight[i][key]);
            LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
                acc[i][t] =
                    llamac_fma(p, llamac_value_vector(values, key, dim + 16 * t, head_dim, type, lanes), acc[i][t]);
        }
        if (state->valid[i] == 0) continue;
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++) {
            float *at = running + i * width + dim + 16 * t;
            llamac_store(at, llamac_fma(llamac_load(at), llamac_splat(old_factor[i]), acc[i][t] * new_factor[i]));
        }
    }
}

/* Running state of the queries over the pages. */
typedef struct {
    float maximum[LLAMAC_MOST_QUERIES], sum[LLAMAC_MOST_QUERIES];
} llamac_attention_state;

/* Updates maximum and sum with a page and gives the factors of the old and the new part. */
LLAMAC_KERNEL void llamac_merge_factors(const int count, llamac_attention_state *all, const llamac_page_state *page,
                                        float *old_factor, float *new_factor) {
    f32x16 exponent = llamac_splat(0.0f);
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        if (page->valid[i] == 0) continue;
        const float before = all->maximum[i], here = page->maximum[i], after = before > here ? before : here;
        exponent[i] = before - after;
        exponent[8 + i] = here - after;
        all->maximum[i] = after;
    }
    const f32x16 factor = llamac_exp(exponent);
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        old_factor[i] = factor[i];
        new_factor[i] = factor[8 + i];
        if (page->valid[i]) all->sum[i] = __builtin_fmaf(all->sum[i], factor[i], page->sum[i] * factor[8 + i]);
    }
}

/* One page for `count` (a literal) queries: scores, softmax, values, merge. */
LLAMAC_KERNEL void llamac_attend_page(const int count, llamac_attention_state *all, float *running, size_t width,
                                      const llamac_queries *queries, const uint8_t *keys, size_t page, size_t head_dim,
                                      int type, float scale, size_t visible, const int hides) {
    const int vectors = LLAMAC_ATTENTION_VECTORS / count > 8   ? 8
                        : LLAMAC_ATTENTION_VECTORS / count < 1 ? 1
                                                               : LLAMAC_ATTENTION_VECTORS / count;
    const int whole = (int)(head_dim / 16), chunk = vectors < whole ? vectors : whole;
    const uint8_t *values = keys + head_dim * LLAMAC_PAGE * llamac_element_bytes(type);
    llamac_page_state state;
    float old_factor[LLAMAC_MOST_QUERIES], new_factor[LLAMAC_MOST_QUERIES];
    size_t most = 0;
    state.from = hides && visible > page * LLAMAC_PAGE ? visible - page * LLAMAC_PAGE : 0;
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        const int64_t left = (int64_t)queries->position[i] + 1 - (int64_t)(page * LLAMAC_PAGE);
        state.valid[i] = left < 0 ? 0 : left > LLAMAC_PAGE ? LLAMAC_PAGE : (size_t)left;
        if (state.valid[i] > most) most = state.valid[i];
    }
    for (size_t first = 0; first < most; first += 16 * (size_t)vectors)
        llamac_page_scores(count, vectors, &state, queries, keys, first, head_dim, type, scale, hides);
    LLAMAC_UNROLL for (int i = 0; i < count; i++) llamac_page_softmax(&state, (size_t)i, (most + 15) / 16);
    llamac_merge_factors(count, all, &state, old_factor, new_factor);
    int t = 0;
    if (chunk > 0)
        for (; t + chunk <= whole; t += chunk)
            llamac_page_values(count, chunk, &state, values, running, width, 16 * (size_t)t, 16, head_dim, type,
                               old_factor, new_factor);
    if (chunk > 1)
        for (; t < whole; t++)
            llamac_page_values(count, 1, &state, values, running, width, 16 * (size_t)t, 16, head_dim, type, old_factor,
                               new_factor);
    if (head_dim % 16)
        llamac_page_values(count, 1, &state, values, running, width, head_dim / 16 * 16, head_dim % 16, head_dim, type,
                           old_factor, new_factor);
}

/* All pages for `count` (a literal) queries, then the outputs of the real ones. */
LLAMAC_KERNEL void llamac_attend_queries(const int count, llamac_queries *queries, llamac_kv kv, size_t layer,
                                         size_t kv_heads, size_t head_dim, int type, float scale, const int hides) {
    const size_t width = head_dim + 16, last = queries->count - 1; /* rows of `running` hold a whole last vector */
    _Alignas(64) float running[LLAMAC_MOST_QUERIES * (LLAMAC_MOST_HEAD_DIM + 16)];
    llamac_attention_state all;
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        const size_t source = (size_t)i < last ? (size_t)i : last;
        queries->query[i] = queries->query[source];
        queries->position[i] = queries->position[source];
        all.maximum[i] = -__builtin_inff();
        all.sum[i] = 0.0f;
    }
    memset(running, 0, sizeof(float) * (size_t)count * width);
    const size_t pages = (size_t)queries->position[last] / LLAMAC_PAGE + 1;
    const size_t visible = queries->first_visible;
    for (size_t page = visible / LLAMAC_PAGE; page < pages; page++) {
        const uint8_t *keys =
            llamac_kv_head(kv, queries->sequence, page, layer, kv_heads, queries->kv_head, head_dim, type);
        llamac_attend_page(count, &all, running, width, queries, keys, page, head_dim, type, scale, visible,
                           hides);
    }
    for (size_t i = 0; i < queries->count; i++) {
        const float inverse = 1.0f / all.sum[i];
        for (size_t d = 0; d < head_dim; d++) queries->output[i][d] = running[i * width + d] * inverse;
    }
}

LLAMAC_KERNEL void llamac_attend(llamac_queries *queries, llamac_kv kv, size_t layer, size_t kv_heads, size_t head_dim,
                                 int type, float scale, const int hides) {
    if (queries->count == 1)
        llamac_attend_queries(1, queries, kv, layer, kv_heads, head_dim, type, scale, hides);
    else if (queries->count > LLAMAC_SMALL_QUERIES)
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
LLAMAC_KERNEL void llamac_next_queries(llamac_queries *queries, llamac_attention_work *work, float *out, size_t ld_out,
                                       const float *q, size_t ldq, size_t rows, size_t ratio, size_t head_dim,
                                       llamac_seen seen, const int32_t *sequence_of_token) {
    queries->count = 0;
    for (; work->unit < work->units && work->at < work->high; work->unit++) {
        const size_t group = work->unit / ratio, kv_head = group / rows, row = group % rows;
        const size_t sequence = (size_t)sequence_of_token[row], head = kv_head * ratio + work->unit % ratio;
        if (work->at >= work->low && llamac_sees_nothing(seen, row)) {
            memset(out + row * ld_out + head * head_dim, 0, sizeof(float) * head_dim);
        } else if (work->at >= work->low) {
            const size_t place = queries->count;
            if (place == LLAMAC_MOST_QUERIES) return;
            if (place && (queries->sequence != sequence || queries->kv_head != kv_head)) return;
            if (place && llamac_seen_first(seen, row) != queries->first_visible) return;
            if (place && seen.start && llamac_seen_last(seen, row) < queries->position[place - 1]) return;
            queries->sequence = sequence;
            queries->first_visible = llamac_seen_first(seen, row);
            queries->kv_head = kv_head;
            queries->query[place] = q + row * ldq + head * head_dim;
            queries->output[place] = out + row * ld_out + head * head_dim;
            queries->position[place] = llamac_seen_last(seen, row);
            queries->count = place + 1;
        }
        work->at += llamac_row_cost(seen, row);
    }
}

/* out [rows][heads * head_dim] (stride ld_out) from q (stride ldq) and the cache, for what each row sees. layer may be a
 * variable; heads, kv_heads, head_dim, type, scale and `hides` (whether a first page may begin with keys that its rows do
 * not see) are literals. Units go to threads by equal cost; neighbours of one sequence and KV head are worked on
 * together. */
LLAMAC_KERNEL void llamac_attention_seen(const llamac_thread *th, float *out, size_t ld_out, const float *q, size_t ldq,
                                         uint32_t rows, llamac_kv kv, uint32_t layer, uint32_t heads, uint32_t kv_heads,
                                         uint32_t head_dim, int type, float scale, llamac_seen seen,
                                         const int32_t *sequence_of_token, const int hides) {
    const size_t ratio = heads / kv_heads;
    llamac_queries queries;
    llamac_attention_work work = {0, (size_t)rows * heads, 0, 0, 0};
    uint64_t cost = 0;
    for (size_t row = 0; row < rows; row++) cost += llamac_row_cost(seen, row) * heads;
    work.low = cost * th->id / th->count;
    work.high = cost * (th->id + 1) / th->count;
    for (;;) {
        llamac_next_queries(&queries, &work, out, ld_out, q, ldq, rows, ratio, head_dim, seen, sequence_of_token);
        if (queries.count == 0) return;
        llamac_attend(&queries, kv, layer, kv_heads, head_dim, type, scale, hides);
    }
}

/* Causal attention: the cache already holds this step's keys. chunk is a literal. */
LLAMAC_KERNEL void llamac_attention(const llamac_thread *th, float *out, size_t ld_out, const float *q, size_t ldq,
                                    uint32_t rows, llamac_kv kv, uint32_t layer, uint32_t heads, uint32_t kv_heads,
                                    uint32_t head_dim, int type, float scale, uint32_t chunk, const int32_t *positions,
                                    const int32_t *sequence_of_token) {
    const llamac_seen seen = {positions, NULL, NULL, chunk};
    llamac_attention_seen(th, out, ld_out, q, ldq, rows, kv, layer, heads, kv_heads, head_dim, type, scale, seen,
                          sequence_of_token, chunk % LLAMAC_PAGE != 0);
}

/* Attention of each row to the keys start..stop - 1 of its sequence; zeros where there are none, and everywhere when
 * start is NULL. */
LLAMAC_KERNEL void llamac_attention_range(const llamac_thread *th, float *out, size_t ld_out, const float *q,
                                          size_t ldq, uint32_t rows, llamac_kv kv, uint32_t layer, uint32_t heads,
                                          uint32_t kv_heads, uint32_t head_dim, int type, float scale,
                                          const int32_t *start, const int32_t *stop, const int32_t *sequence_of_token) {
    if (start) {
        const llamac_seen seen = {NULL, start, stop, 0};
        llamac_attention_seen(th, out, ld_out, q, ldq, rows, kv, layer, heads, kv_heads, head_dim, type, scale, seen,
                              sequence_of_token, 1);
        return;
    }
    size_t low, high;
    llamac_share(th, rows, &low, &high);
    for (size_t row = low; row < high; row++) memset(out + row * ld_out, 0, sizeof(float) * heads * head_dim);
}

#endif
