/* Vector types, loads and stores, number formats, and the few elementary functions that the kernels share.
 *
 * Every function here gives the same bits on every instruction set: lanes are independent, fused multiply-adds are
 * written out, nothing is left to the compiler's contraction (-ffp-contract=off). */
#ifndef LLAMAC_TYPES_H
#define LLAMAC_TYPES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LLAMAC_KERNEL static inline __attribute__((always_inline))
#define LLAMAC_UNROLL _Pragma("clang loop unroll(full)")
#define LLAMAC_PANEL 16 /* output rows of a weight panel = lanes of a vector */

typedef float f32x16 __attribute__((ext_vector_type(16)));
typedef float f32x8 __attribute__((ext_vector_type(8)));
typedef float f32x4 __attribute__((ext_vector_type(4)));
typedef int32_t i32x16 __attribute__((ext_vector_type(16)));
typedef uint32_t u32x16 __attribute__((ext_vector_type(16)));
typedef uint16_t u16x16 __attribute__((ext_vector_type(16)));
typedef uint8_t u8x16 __attribute__((ext_vector_type(16)));
typedef uint8_t u8x32 __attribute__((ext_vector_type(32)));
typedef uint8_t u8x64 __attribute__((ext_vector_type(64)));
typedef int16_t i16x32 __attribute__((ext_vector_type(32)));
typedef _Float16 f16x16 __attribute__((ext_vector_type(16)));
typedef _Float16 f16x32 __attribute__((ext_vector_type(32)));

/* Element types of dense weights and of the KV cache (the cache takes the first three). The pairs are weights that
 * are multiplied with bf16 inputs, two at a time. */
enum { LLAMAC_F32, LLAMAC_F16, LLAMAC_BF16, LLAMAC_E4M3FN, LLAMAC_BF16_PAIRS, LLAMAC_E4M3FN_PAIRS };

LLAMAC_KERNEL size_t llamac_element_bytes(int type) {
    return type == LLAMAC_F32 ? 4 : type == LLAMAC_E4M3FN || type == LLAMAC_E4M3FN_PAIRS ? 1 : 2;
}
LLAMAC_KERNEL int llamac_is_pairs(int type) { return type == LLAMAC_BF16_PAIRS || type == LLAMAC_E4M3FN_PAIRS; }
LLAMAC_KERNEL size_t llamac_round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

LLAMAC_KERNEL f32x16 llamac_splat(float value) { return (f32x16)(value); }
LLAMAC_KERNEL f32x16 llamac_fma(f32x16 a, f32x16 b, f32x16 c) { return __builtin_elementwise_fma(a, b, c); }

LLAMAC_KERNEL f32x16 llamac_load(const float *from) {
    f32x16 value;
    memcpy(&value, from, sizeof value);
    return value;
}
LLAMAC_KERNEL void llamac_store(float *to, f32x16 value) { memcpy(to, &value, sizeof value); }

/* The first `lanes` (1..16) floats, the others zero. */
LLAMAC_KERNEL f32x16 llamac_load_part(const float *from, size_t lanes) {
    if (lanes >= 16) return llamac_load(from);
    float value[16] = {0};
    memcpy(value, from, lanes * sizeof *from);
    return llamac_load(value);
}
LLAMAC_KERNEL void llamac_store_part(float *to, f32x16 value, size_t lanes) {
    if (lanes >= 16) {
        llamac_store(to, value);
        return;
    }
    float lane[16];
    llamac_store(lane, value);
    memcpy(to, lane, lanes * sizeof *to);
}

/* 16 bf16 bit patterns as f32: the upper half of the f32. */
LLAMAC_KERNEL f32x16 llamac_from_bf16(u16x16 bits) {
    u32x16 wide = __builtin_convertvector(bits, u32x16) << 16;
    f32x16 value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* f32 to bf16 bits, round to nearest even; NaN stays NaN. */
LLAMAC_KERNEL uint16_t llamac_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)(value != value ? 0x7fc0u : rounded);
}

/* e4m3fn bytes as f16 values times 2^-8, exact with subnormals: sign, a zero bit, 4 exponent bits, 3 mantissa bits. */
LLAMAC_KERNEL f16x32 llamac_half_of_e4m3fn(u8x32 bytes) {
    i16x32 bits = ((__builtin_convertvector(bytes, i16x32) << 8) >> 1) & (int16_t)0xbf80;
    f16x32 half;
    memcpy(&half, &bits, sizeof half);
    return half;
}
LLAMAC_KERNEL f32x16 llamac_from_e4m3fn(u8x16 bytes) {
    u8x32 twice;
    memcpy(&twice, &bytes, sizeof bytes);
    memcpy((uint8_t *)&twice + sizeof bytes, &bytes, sizeof bytes);
    return __builtin_convertvector(llamac_half_of_e4m3fn(twice).lo, f32x16) * llamac_splat(256.0f);
}

/* 16 consecutive elements of a type as f32; `from` needs no alignment. */
LLAMAC_KERNEL f32x16 llamac_load_type(const uint8_t *from, int type) {
    if (type == LLAMAC_F32) return llamac_load((const float *)from);
    if (type == LLAMAC_F16) {
        f16x16 half;
        memcpy(&half, from, sizeof half);
        return __builtin_convertvector(half, f32x16);
    }
    if (type == LLAMAC_BF16) {
        u16x16 bits;
        memcpy(&bits, from, sizeof bits);
        return llamac_from_bf16(bits);
    }
    u8x16 bytes;
    memcpy(&bytes, from, sizeof bytes);
    return llamac_from_e4m3fn(bytes);
}
LLAMAC_KERNEL f32x16 llamac_load_type_part(const uint8_t *from, int type, size_t lanes) {
    if (lanes >= 16) return llamac_load_type(from, type);
    uint8_t bytes[64] = {0};
    memcpy(bytes, from, lanes * llamac_element_bytes(type));
    return llamac_load_type(bytes, type);
}

/* One element of a type, read as f32 or written rounded to nearest even. */
LLAMAC_KERNEL float llamac_get(const uint8_t *from, int type) { return llamac_load_type_part(from, type, 1)[0]; }
LLAMAC_KERNEL void llamac_put(uint8_t *to, int type, float value) {
    if (type == LLAMAC_F32) {
        memcpy(to, &value, sizeof value);
    } else if (type == LLAMAC_F16) {
        _Float16 half = (_Float16)value;
        memcpy(to, &half, sizeof half);
    } else {
        uint16_t bits = llamac_to_bf16(value);
        memcpy(to, &bits, sizeof bits);
    }
}

/* Lane sum and maximum by halving: ((0+8)+(4+12)) + ..., one fixed tree. */
LLAMAC_KERNEL float llamac_sum(f32x16 v) {
    f32x8 eight = v.lo + v.hi;
    f32x4 four = eight.lo + eight.hi;
    return (four.x + four.z) + (four.y + four.w);
}
LLAMAC_KERNEL float llamac_max(f32x16 v) {
    f32x8 eight = v.lo > v.hi ? v.lo : v.hi;
    f32x4 four = eight.lo > eight.hi ? eight.lo : eight.hi;
    float even = four.x > four.z ? four.x : four.z, odd = four.y > four.w ? four.y : four.w;
    return even > odd ? even : odd;
}

/* exp(x), about 1 ulp: x = n ln2 + r, a degree-5 polynomial in r (the Cephes coefficients), then 2^n by the exponent
 * bits. 0 below the smallest normal result (x < -87.33), saturated above x = 88, NaN stays NaN. */
LLAMAC_KERNEL f32x16 llamac_exp(f32x16 x) {
    const f32x16 magic = llamac_splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    f32x16 clamped = x > 88.0f ? llamac_splat(88.0f) : x;
    f32x16 shifted = llamac_fma(clamped, llamac_splat(1.44269504088896341f), magic);
    f32x16 n = shifted - magic;
    f32x16 r = llamac_fma(n, llamac_splat(-0.693359375f), clamped);
    r = llamac_fma(n, llamac_splat(2.12194440e-4f), r);
    f32x16 p = llamac_splat(1.9875691500e-4f);
    p = llamac_fma(p, r, llamac_splat(1.3981999507e-3f));
    p = llamac_fma(p, r, llamac_splat(8.3334519073e-3f));
    p = llamac_fma(p, r, llamac_splat(4.1665795894e-2f));
    p = llamac_fma(p, r, llamac_splat(1.6666665459e-1f));
    p = llamac_fma(p, r, llamac_splat(5.0000001201e-1f));
    p = llamac_fma(p, r * r, r) + 1.0f;
    u32x16 exponent, bits;
    memcpy(&exponent, &shifted, sizeof exponent);
    memcpy(&bits, &p, sizeof bits);
    bits += exponent << 23; /* the low bits of `shifted` hold n; the rest falls off the top */
    f32x16 value;
    memcpy(&value, &bits, sizeof value);
    return x < -87.33f ? llamac_splat(0.0f) : x == x ? value : x;
}

/* x * sigmoid(x) = x / (1 + exp(-x)). */
LLAMAC_KERNEL f32x16 llamac_silu(f32x16 x) { return x / (1.0f + llamac_exp(-x)); }

/* sin and cos of an f32 angle in double: reduced by multiples of pi/2 held in two doubles (exact enough for any f32
 * angle below 2^31), then the fdlibm kernels. Correct to the last f32 bit but for rare ties. */
LLAMAC_KERNEL void llamac_sincos(float angle, float *sine, float *cosine) {
    double turns = __builtin_rint((double)angle * 0.63661977236758134308);
    double r = __builtin_fma(turns, -1.57079632679489655800, (double)angle);
    r = __builtin_fma(turns, -6.12323399573676603587e-17, r);
    double z = r * r;
    double s = 1.58969099521155010221e-10;
    s = __builtin_fma(s, z, -2.50507602534068634195e-08);
    s = __builtin_fma(s, z, 2.75573137070700676789e-06);
    s = __builtin_fma(s, z, -1.98412698298579493134e-04);
    s = __builtin_fma(s, z, 8.33333333332248946124e-03);
    s = __builtin_fma(s, z, -1.66666666666666324348e-01);
    s = __builtin_fma(s * z, r, r);
    double c = -1.13596475577881948265e-11;
    c = __builtin_fma(c, z, 2.08757232129817482790e-09);
    c = __builtin_fma(c, z, -2.75573143513906633035e-07);
    c = __builtin_fma(c, z, 2.48015872894767294178e-05);
    c = __builtin_fma(c, z, -1.38888888888741095749e-03);
    c = __builtin_fma(c, z, 4.16666666666666019037e-02);
    c = __builtin_fma(c, z, -0.5);
    c = __builtin_fma(c, z, 1.0);
    int64_t quadrant = (int64_t)turns & 3;
    double sin_part = quadrant & 1 ? c : s, cos_part = quadrant & 1 ? s : c;
    *sine = (float)(quadrant & 2 ? -sin_part : sin_part);
    *cosine = (float)((quadrant + 1) & 2 ? -cos_part : cos_part);
}

#endif
