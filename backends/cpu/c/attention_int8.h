/* Scores and weighted values of a page of int8: products of integers.
 *
 * Arithmetic of one query: its elements, and its weights p[key] * the value's scale in blocks of 32 keys, are rounded
 * to 16-bit integers: n = the nearest to x * (32767 / most), most the largest |x|, worth u = most / 32767 each. A score
 * is (sum of n[d] * K[d][key]) * (u * (c * the key's scale)), a value o[d] = chain of fma(sum of n[key] * V[key][d], u)
 * over ascending blocks. The sums are integers, exact within 32 bits: 2^15 * 2^7 * 256 terms. What a weight loses to
 * rounding is below 2^-16 of the largest one in its block; a NaN or an infinity makes its unit one, which shows. */
#ifndef LLAMAC_ATTENTION_INT8_H
#define LLAMAC_ATTENTION_INT8_H

#include "attention_view.h"
#include "kv_pages.h"
#include "types.h"

#define LLAMAC_WEIGHT_BLOCK 32 /* keys whose weights have one unit */
#define LLAMAC_MOST_INT16 32767.0f
#define LLAMAC_LEAST_MOST 0x1p-100f /* of the largest magnitude; what is smaller counts as 0 */

typedef int8_t i8x32 __attribute__((ext_vector_type(32)));

/* Queries and weights as integers, and what 1 is worth. */
typedef struct {
    _Alignas(64) int16_t query[LLAMAC_MOST_QUERIES][LLAMAC_MOST_HEAD_DIM];
    _Alignas(64) int16_t weight[LLAMAC_MOST_QUERIES][LLAMAC_PAGE];
    float query_unit[LLAMAC_MOST_QUERIES];
    float weight_unit[LLAMAC_MOST_QUERIES][LLAMAC_PAGE / LLAMAC_WEIGHT_BLOCK];
} llamac_integers;

/* acc[l] + a[2l] * b[2l] + a[2l + 1] * b[2l + 1]. */
LLAMAC_KERNEL i32x16 llamac_add_products(i32x16 acc, i16x32 a, i16x32 b) {
#if defined(__AVX512VNNI__)
    return (i32x16)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return acc + (i32x16)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    __m256i x[2], y[2], sums[2];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    sums[0] = _mm256_madd_epi16(x[0], y[0]);
    sums[1] = _mm256_madd_epi16(x[1], y[1]);
    i32x16 sum;
    memcpy(&sum, sums, sizeof sum);
    return acc + sum;
#elif defined(__aarch64__)
    int16x8_t x[4], y[4];
    int32x4_t sums[4];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    LLAMAC_UNROLL for (int n = 0; n < 4; n++)
        sums[n] = vpaddq_s32(vmull_s16(vget_low_s16(x[n]), vget_low_s16(y[n])), vmull_high_s16(x[n], y[n]));
    i32x16 sum;
    memcpy(&sum, sums, sizeof sum);
    return acc + sum;
#else
    const i32x16 even = __builtin_convertvector(a.even, i32x16) * __builtin_convertvector(b.even, i32x16);
    const i32x16 odd = __builtin_convertvector(a.odd, i32x16) * __builtin_convertvector(b.odd, i32x16);
    return acc + even + odd;
#endif
}

/* 32 elements; the first 2 * lanes of them, the others zero. */
LLAMAC_KERNEL i16x32 llamac_load_int8(const uint8_t *from) {
    i8x32 bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, i16x32);
}
LLAMAC_KERNEL i16x32 llamac_load_int8_part(const uint8_t *from, size_t lanes) {
    if (lanes >= 16) return llamac_load_int8(from);
    uint8_t bytes[32] = {0};
    memcpy(bytes, from, 2 * lanes);
    return llamac_load_int8(bytes);
}

/* Two neighbouring integers in all lanes. */
LLAMAC_KERNEL i16x32 llamac_splat_pair(const int16_t *from) {
    int32_t pair;
    memcpy(&pair, from, sizeof pair);
    const i32x16 all = (i32x16)(pair);
    i16x32 pairs;
    memcpy(&pairs, &all, sizeof pairs);
    return pairs;
}

/* Bits of |x|, ordered like the values, NaN above all. */
LLAMAC_KERNEL u32x16 llamac_magnitudes(f32x16 x) {
    u32x16 bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu;
}
LLAMAC_KERNEL float llamac_most_of(u32x16 magnitudes) {
    const uint32_t bits = __builtin_reduce_max(magnitudes);
    float most;
    memcpy(&most, &bits, sizeof most);
    return most;
}

/* What values of at most `most` are multiplied with to become integers; 0 where they are none, or vanish. */
LLAMAC_KERNEL float llamac_per_unit(float most) {
    return most >= LLAMAC_LEAST_MOST && most < __builtin_inff() ? LLAMAC_MOST_INT16 / most : 0.0f;
}

/* 16 values as integers: the low bits of 1.5 * 2^23 plus a value. A NaN becomes any integer: its unit shows it. */
LLAMAC_KERNEL void llamac_put_int16(int16_t *to, f32x16 x, float per_unit) {
    const f32x16 shifted = llamac_fma(x, llamac_splat(per_unit), llamac_splat(12582912.0f));
    u32x16 bits;
    memcpy(&bits, &shifted, sizeof bits);
    const u16x16 integers = __builtin_convertvector(bits, u16x16);
    memcpy(to, &integers, sizeof integers);
}

LLAMAC_KERNEL void llamac_integer_query(llamac_integers *integers, size_t i, const float *query, size_t head_dim) {
    u32x16 magnitudes = {0};
    for (size_t d = 0; d < head_dim; d += 16) {
        const u32x16 these = llamac_magnitudes(llamac_load_part(query + d, head_dim - d));
        magnitudes = __builtin_elementwise_max(magnitudes, these);
    }
    const float most = llamac_most_of(magnitudes), per_unit = llamac_per_unit(most);
    for (size_t d = 0; d < head_dim; d += 16)
        llamac_put_int16(&integers->query[i][d], llamac_load_part(query + d, head_dim - d), per_unit);
    integers->query_unit[i] = most / LLAMAC_MOST_INT16;
}

/* 16 weights times the scales of their values, 0 where the query does not see them: stale scales may be anything. */
LLAMAC_KERNEL f32x16 llamac_scaled_weights(const llamac_page_state *state, size_t i, size_t at, const llamac_page *page,
                                           const int hides) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int32_t from = (int32_t)state->from - (int32_t)at, stop = (int32_t)state->valid[i] - (int32_t)at;
    f32x16 scaled = llamac_load(&state->weight[i][at]) * llamac_kv_scale(page->scales, LLAMAC_PAGE + at);
    scaled = lane < stop ? scaled : llamac_splat(0.0f);
    if (hides) scaled = lane >= from ? scaled : llamac_splat(0.0f);
    return scaled;
}

/* The weights of query i; those of keys from `most` on to the end of their block are 0. */
LLAMAC_KERNEL void llamac_integer_weights(llamac_integers *integers, const llamac_page_state *state, size_t i,
                                          size_t most, const llamac_page *page, const int hides) {
    for (size_t at = 0; at < most; at += LLAMAC_WEIGHT_BLOCK) {
        f32x16 low = llamac_scaled_weights(state, i, at, page, hides), high = llamac_splat(0.0f);
        if (at + 16 < most) high = llamac_scaled_weights(state, i, at + 16, page, hides);
        const u32x16 magnitudes = __builtin_elementwise_max(llamac_magnitudes(low), llamac_magnitudes(high));
        const float largest = llamac_most_of(magnitudes), per_unit = llamac_per_unit(largest);
        llamac_put_int16(&integers->weight[i][at], low, per_unit);
        llamac_put_int16(&integers->weight[i][at + 16], high, per_unit);
        integers->weight_unit[i][at / LLAMAC_WEIGHT_BLOCK] = largest / LLAMAC_MOST_INT16;
    }
}

/* Scores of `count` queries against `vectors` x 16 keys from key `first` on; count, vectors, `hides` are literals. */
LLAMAC_KERNEL void llamac_int8_scores(const int count, const int vectors, llamac_page_state *state,
                                      const llamac_integers *integers, const llamac_page *page, size_t first,
                                      const int hides) {
    const size_t head_dim = page->head_dim, step = 16 * (size_t)vectors, asked = step < 64 ? 64 : step;
    const uint8_t *keys = page->keys + first * head_dim;
    i32x16 acc[LLAMAC_MOST_QUERIES][LLAMAC_ATTENTION_VECTORS];
    LLAMAC_UNROLL for (int i = 0; i < count; i++) LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
        acc[i][t] = (i32x16)(0);
    for (size_t d = 0; d < head_dim; d += 2) {
        i16x32 key[LLAMAC_ATTENTION_VECTORS];
        if (d * step % asked == 0) llamac_prefetch_page(page, keys + d * step, asked);
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
            key[t] = llamac_load_int8(keys + ((size_t)t * head_dim + d) * 16);
        LLAMAC_UNROLL for (int i = 0; i < count; i++) {
            const i16x32 q = llamac_splat_pair(&integers->query[i][d]);
            LLAMAC_UNROLL for (int t = 0; t < vectors; t++) acc[i][t] = llamac_add_products(acc[i][t], q, key[t]);
        }
    }
    LLAMAC_UNROLL for (int t = 0; t < vectors; t++) {
        const size_t at = first + 16 * (size_t)t;
        const f32x16 factor = llamac_splat(page->scale * LLAMAC_LOG2_E) * llamac_kv_scale(page->scales, at);
        LLAMAC_UNROLL for (int i = 0; i < count; i++)
            llamac_put_scores(state, (size_t)i, at,
                              __builtin_convertvector(acc[i][t], f32x16) * (integers->query_unit[i] * factor), hides);
    }
}

/* The sums of one block of keys from `key` to `stop` (a pair that begins before it is whole), times their units, onto
 * mixed[query][dim..]. */
LLAMAC_KERNEL void llamac_int8_block(const int count, const int vectors, const llamac_integers *integers,
                                     const llamac_page *page, float *mixed, size_t dim, size_t lanes, size_t key,
                                     size_t stop) {
    const size_t row = 2 * page->head_dim, block = key / LLAMAC_WEIGHT_BLOCK;
    const uint8_t *values = page->values + 2 * dim;
    i32x16 acc[LLAMAC_MOST_QUERIES][LLAMAC_ATTENTION_VECTORS];
    LLAMAC_UNROLL for (int i = 0; i < count; i++) LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
        acc[i][t] = (i32x16)(0);
    for (; key < stop; key += 2) {
        i16x32 value[LLAMAC_ATTENTION_VECTORS];
        const uint8_t *at = values + key / 2 * row;
        if (dim == 0 && (row >= 64 || key / 2 * row % 64 == 0)) llamac_prefetch_page(page, at, row);
        LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
            value[t] = llamac_load_int8_part(at + 32 * (size_t)t, lanes);
        LLAMAC_UNROLL for (int i = 0; i < count; i++) {
            const i16x32 p = llamac_splat_pair(&integers->weight[i][key]);
            LLAMAC_UNROLL for (int t = 0; t < vectors; t++) acc[i][t] = llamac_add_products(acc[i][t], p, value[t]);
        }
    }
    LLAMAC_UNROLL for (int i = 0; i < count; i++) LLAMAC_UNROLL for (int t = 0; t < vectors; t++) {
        float *const to = mixed + (size_t)i * page->width + dim + 16 * (size_t)t;
        const f32x16 sum = __builtin_convertvector(acc[i][t], f32x16);
        llamac_store(to, llamac_fma(sum, llamac_splat(integers->weight_unit[i][block]), llamac_load(to)));
    }
}

/* Weighted values of `count` queries for `vectors` x 16 dims from `dim` on (`lanes` dims when vectors is 1), to
 * mixed[query][dim..]. */
LLAMAC_KERNEL void llamac_int8_values(const int count, const int vectors, const llamac_page_state *state,
                                      const llamac_integers *integers, const llamac_page *page, float *mixed,
                                      size_t dim, size_t lanes) {
    LLAMAC_UNROLL for (int i = 0; i < count; i++) LLAMAC_UNROLL for (int t = 0; t < vectors; t++)
        llamac_store(mixed + (size_t)i * page->width + dim + 16 * (size_t)t, llamac_splat(0.0f));
    for (size_t key = state->from / LLAMAC_WEIGHT_BLOCK * LLAMAC_WEIGHT_BLOCK; key < state->most;
         key += LLAMAC_WEIGHT_BLOCK) {
        const size_t end = key + LLAMAC_WEIGHT_BLOCK, stop = end < state->most ? end : state->most;
        llamac_int8_block(count, vectors, integers, page, mixed, dim, lanes, key, stop);
    }
}

#endif
