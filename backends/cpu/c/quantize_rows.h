/* f32 rows to int8 blocks with a scale and a sum each: the activations of the grouped linears.
 *
 * Block of 32 inputs (16 for groups of 16): amax = max |x|; q = round-half-even(x * (127 / amax)), scale = amax / 127,
 * sum = the i32 sum of q. Blocks whose amax is below 2^-120 are zero; a NaN or an infinity makes the scale say so. */
#ifndef LLAMAC_QUANTIZE_ROWS_H
#define LLAMAC_QUANTIZE_ROWS_H

#include "linear_grouped.h"
#include "pool.h"
#include "types.h"

typedef int8_t llamac_i8x16 __attribute__((ext_vector_type(16)));

/* The largest |lane| of two vectors, by integer comparison of the bits: NaN is above infinity is above all numbers. */
LLAMAC_KERNEL float llamac_largest_magnitude(f32x16 a, f32x16 b) {
    i32x16 left, right;
    memcpy(&left, &a, sizeof left);
    memcpy(&right, &b, sizeof right);
    left &= 0x7fffffff;
    right &= 0x7fffffff;
    int32_t bits = __builtin_reduce_max(left > right ? left : right);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* 16 values to int8, clamped to +-127 (only a NaN or an infinity in the block needs the clamp; NaN becomes 127). */
LLAMAC_KERNEL i32x16 llamac_quantize_lanes(int8_t *q, f32x16 x, float inverse) {
    f32x16 scaled = x * inverse;
    scaled = scaled < 127.0f ? scaled : llamac_splat(127.0f);
    scaled = scaled > -127.0f ? scaled : llamac_splat(-127.0f);
    i32x16 whole = __builtin_convertvector(__builtin_elementwise_roundeven(scaled), i32x16);
    llamac_i8x16 bytes = __builtin_convertvector(whole, llamac_i8x16);
    memcpy(q, &bytes, sizeof bytes);
    return whole;
}

/* Block `index` (counted over all rows) from its 16 or 32 values; `second` is unused in blocks of 16. */
LLAMAC_KERNEL void llamac_quantize_block(llamac_quantized out, size_t index, f32x16 first, f32x16 second,
                                         size_t block) {
    if (block == 16) second = llamac_splat(0.0f);
    const float amax = llamac_largest_magnitude(first, second);
    const int zero = amax < 0x1p-120f;
    const float inverse = zero ? 0.0f : 127.0f / amax;
    i32x16 sums = llamac_quantize_lanes(out.q + index * block, first, inverse);
    if (block == 32) sums += llamac_quantize_lanes(out.q + index * block + 16, second, inverse);
    out.scale[index] = zero ? 0.0f : amax / 127.0f;
    out.sum[index] = __builtin_reduce_add(sums);
}

/* 16 inputs from x[at], zeros from `k` on. */
LLAMAC_KERNEL f32x16 llamac_load_padded(const float *x, size_t at, size_t k) {
    if (at + 16 <= k) return llamac_load(x + at);
    return at < k ? llamac_load_part(x + at, k % 16) : llamac_splat(0.0f);
}

/* One row, on the calling thread: x[k] into row 0 of `out`. */
LLAMAC_KERNEL void llamac_quantize_row(llamac_quantized out, const float *x, uint32_t k, uint32_t group) {
    const size_t block = llamac_block(group), blocks = llamac_padded_k(k, group) / block;
    for (size_t b = 0; b < blocks; b++)
        llamac_quantize_block(out, b, llamac_load_padded(x, b * block, k), llamac_load_padded(x, b * block + 16, k),
                              block);
}

/* rows x k floats (row stride ldx) into `out`; threads take contiguous ranges of (row, block). */
LLAMAC_KERNEL void llamac_quantize_rows(const llamac_thread *th, llamac_quantized out, const float *x, size_t ldx,
                                        uint32_t rows, uint32_t k, uint32_t group) {
    const size_t block = llamac_block(group), blocks = llamac_padded_k(k, group) / block;
    size_t low, high;
    llamac_share(th, rows * blocks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const float *row = x + unit / blocks * ldx;
        const size_t at = unit % blocks * block;
        llamac_quantize_block(out, unit, llamac_load_padded(row, at, k), llamac_load_padded(row, at + 16, k), block);
    }
}

#endif
