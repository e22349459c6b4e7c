/* Dense weights as they are multiplied: single elements or pairs of bf16, with instructions of every kind. */
#ifndef LLAMAC_DENSE_UNITS_H
#define LLAMAC_DENSE_UNITS_H

#include "panels.h"
#include "types.h"

/* What one multiplication takes of a row: two bf16, the lower input in the lower half, or one f32. */
typedef uint32_t llamac_unit;

LLAMAC_KERNEL size_t llamac_units(size_t k, int type) { return llamac_is_pairs(type) ? (k + 1) / 2 : k; }
/* Bytes of the weights that one unit is multiplied with, for 16 outputs. */
LLAMAC_KERNEL size_t llamac_unit_bytes(int type) { return (llamac_is_pairs(type) ? 32 : 16) * llamac_element_bytes(type); }

/* Weights as they are multiplied, less a factor of llamac_unit_factor: a power of two, which changes no rounding. */
typedef struct {
    f32x16 even, odd; /* single ones are even */
#if defined(__AVX512BF16__)
    __m512bh pairs;
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    bfloat16x8_t quarter[4];
#endif
} llamac_unit_weights;

LLAMAC_KERNEL f32x16 llamac_as_floats(u32x16 bits) {
    f32x16 value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#if defined(__AVX512BF16__)
/* Exponents move from a bias of 7 to one of 127; the eight subnormal values come from a table. */
LLAMAC_KERNEL __m512i llamac_bf16_of_e4m3fn(__m256i bytes) {
    const __m512i subnormal = _mm512_set4_epi32(0x3c603c40, 0x3c203c00, 0x3bc03b80, 0x3b000000); /* m * 2^-9 */
    const __m512i wide = _mm512_cvtepu8_epi16(bytes);
    const __m512i magnitude = _mm512_slli_epi16(_mm512_and_si512(wide, _mm512_set1_epi16(0x7f)), 4);
    const __mmask32 is_subnormal = _mm512_testn_epi16_mask(wide, _mm512_set1_epi16(0x78));
    const __m512i value = _mm512_mask_permutexvar_epi16(_mm512_add_epi16(magnitude, _mm512_set1_epi16(120 << 7)),
                                                        is_subnormal, wide, subnormal);
    return _mm512_or_si512(value, _mm512_slli_epi16(_mm512_and_si512(wide, _mm512_set1_epi16(0x80)), 8));
}
LLAMAC_KERNEL void llamac_load_pairs(llamac_unit_weights *w, const uint8_t *from, int type) {
    if (type == LLAMAC_E4M3FN_PAIRS)
        w->pairs = (__m512bh)llamac_bf16_of_e4m3fn(_mm256_loadu_si256((const __m256i *)from));
    else
        w->pairs = (__m512bh)_mm512_loadu_si512(from);
}
LLAMAC_KERNEL f32x16 llamac_dot_pairs(f32x16 acc, const llamac_unit_weights *w, llamac_unit x) {
    return (f32x16)_mm512_dpbf16_ps((__m512)acc, w->pairs, (__m512bh)_mm512_set1_epi32((int32_t)x));
}
LLAMAC_KERNEL float llamac_unit_factor(int type) { return type == LLAMAC_E4M3FN ? 256.0f : 1.0f; }
#else
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
/* bfmlalt and bfmlalb are fused multiply-adds of the odd and of the even elements; bfdot and bfmmla round otherwise. */
LLAMAC_KERNEL void llamac_load_pairs(llamac_unit_weights *w, const uint8_t *from, int type) {
    if (type == LLAMAC_E4M3FN_PAIRS) {
        u8x32 bytes;
        memcpy(&bytes, from, sizeof bytes);
        const f16x32 half = llamac_half_of_e4m3fn(bytes);
        const f32x16 even = __builtin_convertvector(half.even, f32x16), odd = __builtin_convertvector(half.odd, f32x16);
        u32x16 low, high;
        memcpy(&low, &even, sizeof low);
        memcpy(&high, &odd, sizeof high);
        low = (low >> 16) | (high & 0xffff0000u);
        memcpy(w->quarter, &low, sizeof low);
    } else {
        memcpy(w->quarter, from, sizeof w->quarter);
    }
}
LLAMAC_KERNEL f32x16 llamac_dot_pairs(f32x16 acc, const llamac_unit_weights *w, llamac_unit x) {
    const bfloat16x8_t inputs = vreinterpretq_bf16_u32(vdupq_n_u32(x));
    float32x4_t quarter[4];
    memcpy(quarter, &acc, sizeof quarter);
    LLAMAC_UNROLL for (int i = 0; i < 4; i++)
        quarter[i] = vbfmlalbq_f32(vbfmlaltq_f32(quarter[i], w->quarter[i], inputs), w->quarter[i], inputs);
    memcpy(&acc, quarter, sizeof acc);
    return acc;
}
#else
LLAMAC_KERNEL void llamac_load_pairs(llamac_unit_weights *w, const uint8_t *from, int type) {
    if (type == LLAMAC_E4M3FN_PAIRS) {
        u8x32 bytes;
        memcpy(&bytes, from, sizeof bytes);
        const f16x32 half = llamac_half_of_e4m3fn(bytes);
        w->even = __builtin_convertvector(half.even, f32x16);
        w->odd = __builtin_convertvector(half.odd, f32x16);
        return;
    }
    u32x16 pairs;
    memcpy(&pairs, from, sizeof pairs);
    w->even = llamac_as_floats(pairs << 16);
    w->odd = llamac_as_floats(pairs & 0xffff0000u);
}
LLAMAC_KERNEL f32x16 llamac_dot_pairs(f32x16 acc, const llamac_unit_weights *w, llamac_unit x) {
    const f32x16 even = llamac_as_floats((u32x16)(x << 16)), odd = llamac_as_floats((u32x16)(x & 0xffff0000u));
    return llamac_fma(even, w->even, llamac_fma(odd, w->odd, acc));
}
#endif
LLAMAC_KERNEL float llamac_unit_factor(int type) {
    return type == LLAMAC_E4M3FN || type == LLAMAC_E4M3FN_PAIRS ? 256.0f : 1.0f;
}
#endif

LLAMAC_KERNEL llamac_unit_weights llamac_load_unit(const uint8_t *from, int type) {
    llamac_unit_weights w;
    if (llamac_is_pairs(type)) {
        llamac_load_pairs(&w, from, type);
    } else if (type == LLAMAC_E4M3FN) {
        u8x32 bytes = {0};
        memcpy(&bytes, from, 16);
        w.even = __builtin_convertvector(llamac_half_of_e4m3fn(bytes).lo, f32x16);
    } else {
        w.even = llamac_load_type(from, type);
    }
    return w;
}
LLAMAC_KERNEL f32x16 llamac_dot_unit(f32x16 acc, const llamac_unit_weights *w, llamac_unit x, int type) {
    if (llamac_is_pairs(type)) return llamac_dot_pairs(acc, w, x);
    return llamac_fma(llamac_as_floats((u32x16)(x)), w->even, acc);
}

/* The finished sum of a panel's outputs: times what the weights lacked and the row scales. */
LLAMAC_KERNEL int llamac_has_row_scales(int type) { return type == LLAMAC_E4M3FN || type == LLAMAC_E4M3FN_PAIRS; }
LLAMAC_KERNEL f32x16 llamac_scale_units(f32x16 acc, const uint8_t *panel, size_t k, int type) {
    if (!llamac_has_row_scales(type)) return acc;
    const uint8_t *scales = panel + llamac_dense_panel_bytes(k, type) - 64;
    return acc * llamac_unit_factor(type) * llamac_load((const float *)scales);
}

#endif
