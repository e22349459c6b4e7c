/* Integer dot products of stored weight bytes with int8 activations, for every instruction set.
 *
 * llamac_dot(acc, w, x, wide) adds, in each of 16 lanes, 4 weight bytes times 4 activation bytes. `wide` (a literal)
 * says that weights use all 8 bits. llamac_spread puts the same 4 activations before every lane. llamac_dots holds
 * whatever the instruction set accumulates in: it begins with llamac_begin(correction), and llamac_finish gives the
 * 32-bit sums, which are (w - LLAMAC_WIDE_ZERO) . x for wide weights, plus the correction. Sums are exact, so all
 * instruction sets agree. */
#ifndef LLAMAC_GROUPED_DOTS_H
#define LLAMAC_GROUPED_DOTS_H

#include "types.h"

#define LLAMAC_WIDE_ZERO 0

LLAMAC_KERNEL int32_t llamac_load_four(const int8_t *from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return four;
}

#if defined(__AVX512VNNI__)
typedef i32x16 llamac_dots;
typedef __m512i llamac_inputs;
LLAMAC_KERNEL llamac_inputs llamac_spread(const int8_t *x) { return _mm512_set1_epi32(llamac_load_four(x)); }
LLAMAC_KERNEL llamac_dots llamac_begin(int32_t correction) { return (i32x16)_mm512_set1_epi32(correction); }
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, llamac_inputs x, int wide) {
    (void)wide;
    return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, x);
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int32_t correction, int wide) {
    (void)correction, (void)wide;
    return acc;
}
#elif defined(__AVXVNNI__)
typedef struct {
    __m256i half[2];
} llamac_dots;
typedef __m256i llamac_inputs;
LLAMAC_KERNEL llamac_inputs llamac_spread(const int8_t *x) { return _mm256_set1_epi32(llamac_load_four(x)); }
LLAMAC_KERNEL llamac_dots llamac_begin(int32_t correction) {
    return (llamac_dots){{_mm256_set1_epi32(correction), _mm256_set1_epi32(correction)}};
}
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, llamac_inputs x, int wide) {
    (void)wide;
    __m256i weights[2];
    memcpy(weights, &w, sizeof weights);
    acc.half[0] = _mm256_dpbusd_avx_epi32(acc.half[0], weights[0], x);
    acc.half[1] = _mm256_dpbusd_avx_epi32(acc.half[1], weights[1], x);
    return acc;
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int32_t correction, int wide) {
    (void)correction, (void)wide;
    i32x16 sums;
    memcpy(&sums, acc.half, sizeof sums);
    return sums;
}
#elif defined(__AVX2__)
/* 16-bit sums of byte pairs: a nibble times an int8 twice is at most 2 * 15 * 127, and a block adds at most 8 of those,
 * 30480, so nothing saturates. Wide weights are two nibbles with an accumulator each. */
typedef struct {
    i16x32 low, high;
} llamac_dots;
#if defined(__AVX512BW__)
typedef __m512i llamac_inputs;
LLAMAC_KERNEL llamac_inputs llamac_spread(const int8_t *x) { return _mm512_set1_epi32(llamac_load_four(x)); }
LLAMAC_KERNEL i16x32 llamac_pair_products(u8x64 w, llamac_inputs x) {
    return (i16x32)_mm512_maddubs_epi16((__m512i)w, x);
}
LLAMAC_KERNEL i32x16 llamac_add_pairs(i16x32 pairs) {
    return (i32x16)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1));
}
#else
typedef __m256i llamac_inputs;
LLAMAC_KERNEL llamac_inputs llamac_spread(const int8_t *x) { return _mm256_set1_epi32(llamac_load_four(x)); }
LLAMAC_KERNEL i16x32 llamac_pair_products(u8x64 w, llamac_inputs x) {
    __m256i weights[2];
    memcpy(weights, &w, sizeof weights);
    weights[0] = _mm256_maddubs_epi16(weights[0], x);
    weights[1] = _mm256_maddubs_epi16(weights[1], x);
    i16x32 products;
    memcpy(&products, weights, sizeof products);
    return products;
}
LLAMAC_KERNEL i32x16 llamac_add_pairs(i16x32 pairs) {
    __m256i half[2];
    memcpy(half, &pairs, sizeof half);
    half[0] = _mm256_madd_epi16(half[0], _mm256_set1_epi16(1));
    half[1] = _mm256_madd_epi16(half[1], _mm256_set1_epi16(1));
    i32x16 sums;
    memcpy(&sums, half, sizeof sums);
    return sums;
}
#endif
LLAMAC_KERNEL llamac_dots llamac_begin(int32_t correction) {
    (void)correction;
    return (llamac_dots){(i16x32)(0), (i16x32)(0)};
}
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, llamac_inputs x, int wide) {
    acc.low += llamac_pair_products(wide ? w & 15 : w, x);
    if (wide) acc.high += llamac_pair_products(w >> 4, x);
    return acc;
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int32_t correction, int wide) {
    i32x16 sums = llamac_add_pairs(acc.low) + correction;
    return wide ? sums + (llamac_add_pairs(acc.high) << 4) : sums;
}
#elif defined(__aarch64__)
/* Signed by signed: wide weights are moved down by 128, nibbles are small enough as they are. */
#undef LLAMAC_WIDE_ZERO
#define LLAMAC_WIDE_ZERO 128
typedef struct {
    int32x4_t quarter[4];
} llamac_dots;
typedef int8x16_t llamac_inputs;
LLAMAC_KERNEL llamac_inputs llamac_spread(const int8_t *x) {
    return vreinterpretq_s8_s32(vdupq_n_s32(llamac_load_four(x)));
}
LLAMAC_KERNEL int32x4_t llamac_dot_quarter(int32x4_t acc, int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, w, x);
#else
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpadalq_s16(acc, vpaddq_s16(low, high)); /* |pair| <= 2 * 128 * 127 < 2^15 */
#endif
}
LLAMAC_KERNEL llamac_dots llamac_begin(int32_t correction) {
    const int32x4_t all = vdupq_n_s32(correction);
    return (llamac_dots){{all, all, all, all}};
}
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, llamac_inputs x, int wide) {
    if (wide) w ^= 0x80;
    int8x16_t weights[4];
    memcpy(weights, &w, sizeof weights);
    LLAMAC_UNROLL for (int i = 0; i < 4; i++) acc.quarter[i] = llamac_dot_quarter(acc.quarter[i], weights[i], x);
    return acc;
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int32_t correction, int wide) {
    (void)correction, (void)wide;
    i32x16 sums;
    memcpy(&sums, acc.quarter, sizeof sums);
    return sums;
}
#else
typedef i32x16 llamac_dots;
typedef int32_t llamac_inputs;
LLAMAC_KERNEL llamac_inputs llamac_spread(const int8_t *x) { return llamac_load_four(x); }
LLAMAC_KERNEL llamac_dots llamac_begin(int32_t correction) { return (i32x16)(correction); }
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, llamac_inputs x, int wide) {
    (void)wide;
    int8_t input[4];
    memcpy(input, &x, sizeof input);
    for (int lane = 0; lane < 16; lane++)
        for (int b = 0; b < 4; b++) acc[lane] += (int32_t)w[4 * lane + b] * input[b];
    return acc;
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int32_t correction, int wide) {
    (void)correction, (void)wide;
    return acc;
}
#endif

#endif
