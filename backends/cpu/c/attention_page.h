/* Attention of a few queries to one page of keys: scores, softmax, weighted values.
 *
 * Arithmetic of one query: s[key] = (chain of fma(q[d], K[d][key]), d ascending) * c with c = scale * log2(e);
 * m = max s over the keys that it sees; p = 2^(s - m); l = sum of p (16 lanes over ascending vectors of 16 keys, then
 * the lane tree); o[d] = chain of fma(p[key], V[key][d]), keys ascending. For int8 s and o are those of
 * attention_int8.h. Pages are merged in order: M' = max(M, m), a = 2^(M - M'), b = 2^(m - M'), L = fma(L, a, l * b),
 * O = fma(O, a, o * b). Keys that a query does not see count nothing and their scores are discarded, so
 * stale memory cannot matter; neither can which queries are worked on together. */
#ifndef LLAMAC_ATTENTION_PAGE_H
#define LLAMAC_ATTENTION_PAGE_H

#include "attention_int8.h"
#include "attention_view.h"
#include "types.h"

/* 2^x for x <= 0, about 1 ulp: x = n + f, a degree-5 polynomial in f (minimax in relative error over +-1/2), then 2^n
 * by the exponent bits. 0 below the smallest normal result (x < -126), NaN stays NaN. */
LLAMAC_KERNEL f32x16 llamac_exp2(f32x16 x) {
    const f32x16 magic = llamac_splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const f32x16 shifted = x + magic, f = x - (shifted - magic);
    f32x16 p = llamac_splat(1.326472731307149e-3f);
    p = llamac_fma(p, f, llamac_splat(9.671512991189957e-3f));
    p = llamac_fma(p, f, llamac_splat(5.550733581185341e-2f));
    p = llamac_fma(p, f, llamac_splat(2.402224242687225e-1f));
    p = llamac_fma(p, f, llamac_splat(6.931470036506653e-1f));
    p = llamac_fma(p, f, llamac_splat(1.0f));
    u32x16 exponent, bits;
    memcpy(&exponent, &shifted, sizeof exponent);
    memcpy(&bits, &p, sizeof bits);
    bits += exponent << 23; /* the low bits of `shifted` hold n; the rest falls off the top */
    f32x16 value;
    memcpy(&value, &bits, sizeof value);
    return x < -126.0f ? llamac_splat(0.0f) : value;
}

/* Scores of `count` queries against `vectors` x 16 keys from key `first` on; count, vectors, `hides` are literals. */
LLAMAC_KERNEL void llamac_page_scores(const int count, const int vectors, llamac_page_state *state,
                                      const float *const *queries, const llamac_page *page, size_t first,
                                      const int hides) {
    const size_t head_dim = page->head_dim, row = 16 * llamac_kv_element(page->type);
    const uint8_t *keys = page->keys + first / 16 * head_dim * row;
    const size_t step = (size_t)vectors * row, asked = step < 64 ? 64 : step;
    const float *query[LLAMAC_MOST_QUERIES];
    f32x16 acc[LLAMAC_MOST_QUERIES][LLAMAC_ATTENTION_VECTORS];
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        query[i] = queries[i];
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++) acc[i][t] = llamac_splat(0.0f);
    }
    for (size_t d = 0; d < head_dim; d++) {
        f32x16 key[LLAMAC_ATTENTION_VECTORS];
        if (d * step % asked == 0) llamac_prefetch_page(page, keys + d * step, asked);
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
            key[t] = llamac_load_type(keys + ((size_t)t * head_dim + d) * row, page->type);
        LLAMAC_UNROLL for (int i = 0; i < count; i++) {
            const f32x16 q = llamac_splat(query[i][d]);
            LLAMAC_UNROLL for (int t = 0; t < vectors; t++) acc[i][t] = llamac_fma(q, key[t], acc[i][t]);
        }
    }
    const f32x16 factor = llamac_splat(page->scale * LLAMAC_LOG2_E);
    LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
        LLAMAC_UNROLL for (int i = 0; i < count; i++)
            llamac_put_scores(state, (size_t)i, first + 16 * (size_t)t, acc[i][t] * factor, hides);
}

/* Scores of query i to weights 2^(s - max), over the first `vectors` vectors of keys. */
LLAMAC_KERNEL void llamac_page_softmax(llamac_page_state *state, size_t i, size_t vectors) {
    f32x16 maximum = llamac_splat(-__builtin_inff()), sum = llamac_splat(0.0f);
    for (size_t t = 0; t < vectors; t++) {
        const f32x16 score = llamac_load(&state->weight[i][16 * t]);
        maximum = score > maximum ? score : maximum;
    }
    state->maximum[i] = llamac_max(maximum);
    for (size_t t = 0; t < vectors; t++) {
        f32x16 p = llamac_exp2(llamac_load(&state->weight[i][16 * t]) - state->maximum[i]);
        sum += p;
        llamac_store(&state->weight[i][16 * t], p);
    }
    state->sum[i] = llamac_sum(sum);
}

/* Weighted values of `count` queries for `vectors` x 16 dims from `dim` on (`lanes` dims when vectors is 1), to
 * mixed[query][dim..]. */
LLAMAC_KERNEL void llamac_page_values(const int count, const int vectors, const llamac_page_state *state,
                                      const llamac_page *page, float *mixed, size_t dim, size_t lanes) {
    const size_t bytes = llamac_kv_element(page->type), row = page->head_dim * bytes, shared = state->valid[0];
    const uint8_t *values = page->values + dim * bytes;
    f32x16 acc[LLAMAC_MOST_QUERIES][LLAMAC_ATTENTION_VECTORS], value[LLAMAC_ATTENTION_VECTORS];
    LLAMAC_UNROLL for (int i = 0; i < count; i++) LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
        acc[i][t] = llamac_splat(0.0f);
    for (size_t key = state->from; key < shared; key++) { /* keys that every query sees: positions ascend */
        if (dim == 0 && (row >= 64 || key * row % 64 == 0)) llamac_prefetch_page(page, values + key * row, row);
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
            value[t] = llamac_load_type_part(values + key * row + 16 * (size_t)t * bytes, page->type, lanes);
        LLAMAC_UNROLL for (int i = 0; i < count; i++) {
            const f32x16 p = llamac_splat(state->weight[i][key]);
            LLAMAC_UNROLL for (int t = 0; t < vectors; t++) acc[i][t] = llamac_fma(p, value[t], acc[i][t]);
        }
    }
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        for (size_t key = shared; key < state->valid[i]; key++) {
            const f32x16 p = llamac_splat(state->weight[i][key]);
            LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
                acc[i][t] = llamac_fma(
                    p, llamac_load_type_part(values + key * row + 16 * (size_t)t * bytes, page->type, lanes),
                    acc[i][t]);
        }
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
            llamac_store(mixed + (size_t)i * page->width + dim + 16 * (size_t)t, acc[i][t]);
    }
}

/* The same for either kind of page. */
LLAMAC_KERNEL void llamac_some_values(const int count, const int vectors, const llamac_page_state *state,
                                      const llamac_integers *integers, const llamac_page *page, float *mixed,
                                      size_t dim, size_t lanes) {
    if (page->type == LLAMAC_KV_I8) llamac_int8_values(count, vectors, state, integers, page, mixed, dim, lanes);
    else llamac_page_values(count, vectors, state, page, mixed, dim, lanes);
}

/* Weighted values of all dims. */
LLAMAC_KERNEL void llamac_page_all_values(const int count, const llamac_page_state *state,
                                          const llamac_integers *integers, const llamac_page *page, float *mixed) {
    const int most = llamac_tile_vectors(count), whole = (int)(page->head_dim / 16);
    const int vectors = most < whole ? most : whole;
    int t = 0;
    if (vectors > 0)
        for (; t + vectors <= whole; t += vectors)
            llamac_some_values(count, vectors, state, integers, page, mixed, 16 * (size_t)t, 16);
    if (vectors > 1)
        for (; t < whole; t++) llamac_some_values(count, 1, state, integers, page, mixed, 16 * (size_t)t, 16);
    if (page->head_dim % 16)
        llamac_some_values(count, 1, state, integers, page, mixed, 16 * (size_t)whole, page->head_dim % 16);
}

/* Scores, then weights, of the keys that queries see, `most` of them; of int8 the weights as integers too. */
LLAMAC_KERNEL void llamac_page_weights(const int count, llamac_page_state *state, llamac_integers *integers,
                                       const float *const *queries, const llamac_page *page, size_t most,
                                       const int hides) {
    const int vectors = llamac_tile_vectors(count);
    if (page->type == LLAMAC_KV_I8) LLAMAC_UNROLL for (int i = 0; i < count; i++)
        llamac_integer_query(integers, (size_t)i, queries[i], page->head_dim);
    for (size_t first = 0; first < most; first += 16 * (size_t)vectors)
        if (page->type == LLAMAC_KV_I8) llamac_int8_scores(count, vectors, state, integers, page, first, hides);
        else llamac_page_scores(count, vectors, state, queries, page, first, hides);
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        llamac_page_softmax(state, (size_t)i, (most + 15) / 16);
        if (page->type == LLAMAC_KV_I8) llamac_integer_weights(integers, state, (size_t)i, most, page, hides);
    }
}

/* One page, number `number`, for `count` (a literal) queries whose last keys are at `position`; nobody sees what is
 * before `visible`. Maxima and sums are left in `state`, weighted values in mixed [count][width]. */
LLAMAC_KERNEL void llamac_attend_page(const int count, llamac_page_state *state, float *mixed,
                                      const float *const *queries, const int32_t *position, const llamac_page *page,
                                      size_t number, size_t visible, const int hides) {
    llamac_integers integers;
    size_t most = 0;
    state->from = hides && visible > number * LLAMAC_PAGE ? visible - number * LLAMAC_PAGE : 0;
    LLAMAC_UNROLL for (int i = 0; i < count; i++) {
        const int64_t left = (int64_t)position[i] + 1 - (int64_t)(number * LLAMAC_PAGE);
        state->valid[i] = left < 0 ? 0 : left > LLAMAC_PAGE ? LLAMAC_PAGE : (size_t)left;
        if (state->valid[i] > most) most = state->valid[i];
    }
    state->most = most;
    llamac_page_weights(count, state, &integers, queries, page, most, hides);
    llamac_page_all_values(count, state, &integers, page, mixed);
}

/* Running maxima, sums and values [count][width] of up to 8 queries with those of a further page, for the queries that
 * see any of its keys. */
LLAMAC_KERNEL void llamac_merge_page(size_t count, float *maximum, float *sum, float *running,
                                     const float *page_maximum, const float *page_sum, const float *mixed,
                                     size_t width) {
    _Alignas(64) float factor[16] = {0};
    for (size_t i = 0; i < count; i++) {
        const float after = maximum[i] > page_maximum[i] ? maximum[i] : page_maximum[i];
        factor[i] = maximum[i] - after;
        factor[8 + i] = page_maximum[i] - after;
        maximum[i] = after;
    }
    llamac_store(factor, llamac_exp2(llamac_load(factor)));
    for (size_t i = 0; i < count; i++) {
        if (page_maximum[i] == -__builtin_inff()) continue;
        float *const values = running + i * width;
        sum[i] = __builtin_fmaf(sum[i], factor[i], page_sum[i] * factor[8 + i]);
        for (size_t d = 0; d < width; d += 16)
            llamac_store(values + d, llamac_fma(llamac_load(values + d), llamac_splat(factor[i]),
                                                llamac_load(mixed + i * width + d) * factor[8 + i]));
    }
}

/* The output of a query from its running values and sum. */
LLAMAC_KERNEL void llamac_attention_output(float *output, const float *running, float sum, size_t head_dim) {
    const float inverse = 1.0f / sum;
    for (size_t d = 0; d < head_dim; d++) output[d] = running[d] * inverse;
}

#endif
