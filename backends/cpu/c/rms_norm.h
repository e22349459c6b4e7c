/* y = (x * rsqrt(mean(x^2) + eps)) * weight, per row, in f32.
 *
 * The sum of squares runs in 4 x 16 lanes: vector j of 16 goes to accumulator j % 4 by fma, j ascending; then
 * (s0 + s1) + (s2 + s3) and the fixed lane tree of llamac_sum. The factor is 1 / sqrt(sum / width + eps). */
#ifndef LLAMAC_RMS_NORM_H
#define LLAMAC_RMS_NORM_H

#include "linear_grouped.h"
#include "pool.h"
#include "quantize_rows.h"
#include "types.h"

/* 1 / sqrt(mean(x^2) + eps) of one row. */
LLAMAC_KERNEL float llamac_rms_factor(const float *x, uint32_t width, float eps) {
    f32x16 sum[4] = {llamac_splat(0.0f), llamac_splat(0.0f), llamac_splat(0.0f), llamac_splat(0.0f)};
    for (size_t at = 0; at < width; at += 64) LLAMAC_UNROLL for (size_t lane = 0; lane < 4; lane++) {
            f32x16 v = llamac_load_padded(x, at + 16 * lane, width);
            sum[lane] = llamac_fma(v, v, sum[lane]);
        }
    const float total = llamac_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    return 1.0f / __builtin_sqrtf(total / (float)width + eps);
}

/* One row on the calling thread; y may be x. */
LLAMAC_KERNEL void llamac_rms_norm_row(float *y, const float *x, uint32_t width, const float *weight, float eps) {
    const float factor = llamac_rms_factor(x, width, eps);
    size_t at = 0;
    for (; at + 16 <= width; at += 16) llamac_store(y + at, (llamac_load(x + at) * factor) * llamac_load(weight + at));
    if (width % 16)
        llamac_store_part(
            y + at, (llamac_load_part(x + at, width % 16) * factor) * llamac_load_part(weight + at, width % 16),
            width % 16);
}

/* rows x width (strides ldy, ldx); y may be x. Threads take contiguous row ranges. */
LLAMAC_KERNEL void llamac_rms_norm(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                   uint32_t rows, uint32_t width, const float *weight, float eps) {
    size_t low, high;
    llamac_share(th, rows, &low, &high);
    for (size_t row = low; row < high; row++) llamac_rms_norm_row(y + row * ldy, x + row * ldx, width, weight, eps);
}

/* The same bits as llamac_rms_norm followed by llamac_quantize_rows, without the floats in between. Threads take
 * contiguous ranges of (row, block) and each finds the factor of its rows itself. */
LLAMAC_KERNEL void llamac_rms_norm_quantize(const llamac_thread *th, llamac_quantized out, const float *x, size_t ldx,
                                            uint32_t rows, uint32_t width, const float *weight, float eps,
                                            uint32_t group) {
    const size_t block = llamac_block(group), blocks = llamac_padded_k(width, group) / block;
    size_t low, high, known = SIZE_MAX;
    float factor = 0.0f;
    llamac_share(th, rows * blocks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t at = unit % blocks * block;
        const float *row = x + unit / blocks * ldx;
        if (unit / blocks != known) {
            known = unit / blocks;
            factor = llamac_rms_factor(row, width, eps);
        }
        f32x16 first = (llamac_load_padded(row, at, width) * factor) * llamac_load_padded(weight, at, width);
        f32x16 second = (llamac_load_padded(row, at + 16, width) * factor) * llamac_load_padded(weight, at + 16, width);
        llamac_quantize_block(out, unit, first, second, block);
    }
}

#endif
