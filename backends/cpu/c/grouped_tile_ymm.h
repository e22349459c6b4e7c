/* A tile of quantized rows against a panel with 32-byte vectors: AVX2, with VNNI or without.
 *
 * Sixteen registers hold the integer sums of a block of inputs, two halves of a panel for each row, and what is being
 * multiplied; the float sums stay in memory. The empty asm statements keep the compiler from turning sums around, which
 * would cost it registers. */
#ifndef LLAMAC_GROUPED_TILE_YMM_H
#define LLAMAC_GROUPED_TILE_YMM_H

#include "grouped_inputs.h"
#include "grouped_tile.h"
#include "types.h"

#if defined(__AVX2__) && !defined(__AVX512F__)
/* `llamac_ymm_exact` says that sums of 8-bit weights do not saturate. Without VNNI see llamac_dots of AVX2. */
#if defined(__AVXVNNI__)
LLAMAC_KERNEL int llamac_ymm_exact(void) { return 1; }
LLAMAC_KERNEL __m256i llamac_ymm_begin(int32_t correction) { return _mm256_set1_epi32(correction); }
LLAMAC_KERNEL __m256i llamac_ymm_dot(__m256i acc, __m256i w, __m256i x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
LLAMAC_KERNEL __m256i llamac_ymm_sum(__m256i acc) { return acc; }
LLAMAC_KERNEL __m256i llamac_ymm_finish(__m256i acc, int32_t correction) {
    (void)correction;
    return acc;
}
#else
LLAMAC_KERNEL int llamac_ymm_exact(void) { return 0; }
LLAMAC_KERNEL __m256i llamac_ymm_begin(int32_t correction) {
    (void)correction;
    return _mm256_setzero_si256();
}
LLAMAC_KERNEL __m256i llamac_ymm_dot(__m256i acc, __m256i w, __m256i x) {
    return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
}
LLAMAC_KERNEL __m256i llamac_ymm_sum(__m256i acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
LLAMAC_KERNEL __m256i llamac_ymm_finish(__m256i acc, int32_t correction) {
    return _mm256_add_epi32(llamac_ymm_sum(acc), _mm256_set1_epi32(correction));
}
#endif

LLAMAC_KERNEL __m256i llamac_ymm_load(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
LLAMAC_KERNEL __m256i llamac_ymm_low(__m256i w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
LLAMAC_KERNEL __m256i llamac_ymm_high(__m256i w) { return llamac_ymm_low(_mm256_srli_epi16(w, 4)); }
LLAMAC_KERNEL __m256 llamac_ymm_factors(const uint8_t *from, uint32_t bits) {
    if (bits == 16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
    return _mm256_loadu_ps((const float *)from);
}

/* Four inputs of each row times two vectors of weights. */
LLAMAC_KERNEL void llamac_ymm_dots(const int row_count, __m256i dots[][2], const int8_t *x, __m256i first,
                                   __m256i second) {
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
        __m256i inputs = _mm256_set1_epi32(llamac_load_four(x + 4 * r));
        __asm__ volatile("" : "+x"(inputs)); /* one load for both */
        dots[r][0] = llamac_ymm_dot(dots[r][0], first, inputs);
        dots[r][1] = llamac_ymm_dot(dots[r][1], second, inputs);
        __asm__ volatile("" : "+x"(dots[r][0]), "+x"(dots[r][1]));
    }
}

/* The integer sums of a block for both halves of a panel; `q` are its inputs. */
LLAMAC_KERNEL void llamac_ymm_block(const int row_count, __m256i dots[][2], const int8_t *q, const uint8_t *quants,
                                    const int32_t *correction, llamac_grouped format) {
    const size_t block = llamac_block(format.group);
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) dots[r][0] = dots[r][1] = llamac_ymm_begin(correction[r]);
    if (format.bits == 8) {
        LLAMAC_UNROLL for (size_t j = 0; j < block / 4; j++)
            llamac_ymm_dots(row_count, dots, q + 4 * j * row_count, llamac_ymm_load(quants + 64 * j),
                            llamac_ymm_load(quants + 64 * j + 32));
    } else {
        LLAMAC_UNROLL for (size_t j = 0; j < block / 8; j++) {
            const uint8_t *w = quants + 64 * j;
            llamac_ymm_dots(row_count, dots, q + 8 * j * row_count, llamac_ymm_low(llamac_ymm_load(w)),
                            llamac_ymm_low(llamac_ymm_load(w + 32)));
            llamac_ymm_dots(row_count, dots, q + (8 * j + 4) * row_count, llamac_ymm_high(llamac_ymm_load(w)),
                            llamac_ymm_high(llamac_ymm_load(w + 32)));
        }
    }
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) LLAMAC_UNROLL for (int h = 0; h < 2; h++)
        dots[r][h] = llamac_ymm_finish(dots[r][h], correction[r]);
}

/* The integer sums of a block of 8-bit weights where they go as two nibbles: one half of a panel, in dots[r][half]. */
LLAMAC_KERNEL void llamac_ymm_wide_half(const int row_count, __m256i dots[][2], const int half, const int8_t *q,
                                        const uint8_t *quants, const int32_t *correction, size_t block) {
    __m256i nibbles[LLAMAC_GEMM_ROWS][2];
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) nibbles[r][0] = nibbles[r][1] = _mm256_setzero_si256();
    LLAMAC_UNROLL for (size_t j = 0; j < block / 4; j++) {
        const __m256i w = llamac_ymm_load(quants + 64 * j + 32 * half);
        llamac_ymm_dots(row_count, nibbles, q + 4 * j * row_count, llamac_ymm_low(w), llamac_ymm_high(w));
    }
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++)
        dots[r][half] = _mm256_add_epi32(llamac_ymm_finish(nibbles[r][0], correction[r]),
                                         _mm256_slli_epi32(llamac_ymm_sum(nibbles[r][1]), 4));
}

/* Adds the integer sums of one half of a panel to the float sums: partial[row][2][16]. `factors` are the rows' scales,
 * corrections and sums times scales. */
LLAMAC_KERNEL void llamac_ymm_add(const int row_count, float *partial, __m256i dots[][2], const int half,
                                  const float *factors, const uint8_t *scales, const uint8_t *mins,
                                  llamac_grouped format) {
    const __m256 weight_scale = llamac_ymm_factors(scales + half * format.scale_bits, format.scale_bits);
    const __m256 weight_min = format.min_bits ? llamac_ymm_factors(mins + half * format.min_bits, format.min_bits)
                                              : _mm256_setzero_ps();
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
        float *sums = partial + r * 32 + 8 * half;
        const __m256 scale = _mm256_mul_ps(weight_scale, _mm256_set1_ps(factors[r]));
        __m256 acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][half]), scale, _mm256_loadu_ps(sums));
        if (format.min_bits) acc = _mm256_fmadd_ps(weight_min, _mm256_set1_ps(factors[2 * row_count + r]), acc);
        _mm256_storeu_ps(sums, acc);
    }
}

/* A tile of `row_count` rows (a literal) times one panel: see llamac_lane_tile. */
LLAMAC_KERNEL void llamac_ymm_tile(const int row_count, float *partial, const uint8_t *x, llamac_section s,
                                   size_t number, int is_first, llamac_grouped format) {
    const size_t block = llamac_block(format.group), block_bytes = block * 2 * format.bits;
    const uint8_t *fetched = s.next + number * s.blocks * s.lines * 64;
    for (int r = 0; r < row_count && is_first; r++) llamac_store(partial + r * 32, llamac_splat(0.0f));
    for (size_t b = 0; b < s.blocks; b++, x += row_count * llamac_packed_block_bytes(format)) {
        const size_t group = b * block / format.group;
        const uint8_t *quants = s.quants + b * block_bytes;
        const uint8_t *scales = s.scales + group * 2 * format.scale_bits, *mins = s.mins + group * 2 * format.min_bits;
        const int8_t *q = (const int8_t *)x;
        const float *factors = (const float *)(x + row_count * block);
        const int32_t *correction = (const int32_t *)(factors + row_count);
        __m256i dots[LLAMAC_GEMM_ROWS][2];
        fetched = llamac_fetch_section(&s, fetched, 1, group, format);
        if (format.bits == 4 || llamac_ymm_exact()) {
            llamac_ymm_block(row_count, dots, q, quants, correction, format);
            LLAMAC_UNROLL for (int h = 0; h < 2; h++)
                llamac_ymm_add(row_count, partial, dots, h, factors, scales, mins, format);
        } else {
            LLAMAC_UNROLL for (int h = 0; h < 2; h++) {
                llamac_ymm_wide_half(row_count, dots, h, q, quants, correction, block);
                llamac_ymm_add(row_count, partial, dots, h, factors, scales, mins, format);
            }
        }
    }
}
#endif

#endif
