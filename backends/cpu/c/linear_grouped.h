/* y = x W^T (+ residual) for group-quantized weights in 16-row panels and block-quantized int8 activations.
 *
 * Panel: quants | scales [group][16] | mins [group][16], each section padded to 64 bytes. 4-bit: vector j of 64 bytes
 * covers k = 8j..8j+7, lane n byte b: low nibble k = 8j + b, high nibble k = 8j + 4 + b (i4 stored + 8). 8-bit: vector
 * j covers k = 4j..4j+3, lane n byte b: k = 4j + b (i8 stored + 128).
 * Chain of one output, for activation blocks b ascending (block = 32 inputs, 16 for groups of 16):
 *   acc = fma((float)(dot_b - offset * sum_b), wscale * xscale_b, acc), then with mins
 *   acc = fma(wmin, xscale_b * (float)sum_b, acc); at the end residual + acc.
 * The integer part is exact whatever instruction computes it, so all instruction sets, tiles and threads agree. */
#ifndef LLAMAC_LINEAR_GROUPED_H
#define LLAMAC_LINEAR_GROUPED_H

#include "grouped_dots.h"
#include "panels.h"
#include "pool.h"
#include "types.h"

typedef struct {
    uint32_t bits, is_signed, group, scale_bits, min_bits;
} llamac_grouped;

/* Quantized activation rows: int8 [rows][padded k], f32 [rows][blocks], i32 [rows][blocks]. */
typedef struct {
    int8_t *q;
    float *scale;
    int32_t *sum;
} llamac_quantized;

LLAMAC_KERNEL size_t llamac_padded_k(size_t k, size_t group) { return llamac_round_up(k, group > 32 ? group : 32); }
LLAMAC_KERNEL size_t llamac_block(size_t group) { return group == 16 ? 16 : 32; }
LLAMAC_KERNEL size_t llamac_scales_offset(size_t k, llamac_grouped format) {
    return llamac_padded_k(k, format.group) * 16 * format.bits / 8;
}
LLAMAC_KERNEL size_t llamac_mins_offset(size_t k, llamac_grouped format) {
    size_t groups = llamac_padded_k(k, format.group) / format.group;
    return llamac_scales_offset(k, format) + llamac_round_up(groups * 16 * format.scale_bits / 8, 64);
}
LLAMAC_KERNEL size_t llamac_grouped_panel_bytes(size_t k, llamac_grouped format) {
    size_t groups = llamac_padded_k(k, format.group) / format.group;
    return llamac_mins_offset(k, format) + llamac_round_up(groups * 16 * format.min_bits / 8, 64);
}

/* What the integer sum of a block misses: sum * (zero point that llamac_dot took off - the format's offset). */
LLAMAC_KERNEL int32_t llamac_correction(llamac_grouped format) {
    int32_t taken = format.bits == 8 ? LLAMAC_WIDE_ZERO : 0;
    return taken - (format.is_signed ? (format.bits == 8 ? 128 : 8) : 0);
}

/* One row against one panel: its 16 outputs. A panel's worth of memory from `next` on is prefetched on the way. */
LLAMAC_KERNEL f32x16 llamac_grouped_gemv_panel(llamac_quantized x, const uint8_t *panel, const uint8_t *next, size_t k,
                                               llamac_grouped format) {
    const size_t padded = llamac_padded_k(k, format.group), block = llamac_block(format.group);
    const size_t blocks = padded / block, vector_k = format.bits == 4 ? 8 : 4;
    const int wide = format.bits == 8;
    const size_t share = llamac_grouped_panel_bytes(k, format) / blocks;
    const int scale_type = format.scale_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const int min_type = format.min_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const uint8_t *scales = panel + llamac_scales_offset(k, format), *mins = panel + llamac_mins_offset(k, format);
    f32x16 acc = llamac_splat(0.0f);
    for (size_t b = 0; b < blocks; b++) {
        const size_t group = b * block / format.group;
        const int32_t correction = x.sum[b] * llamac_correction(format);
        llamac_dots dots = llamac_begin(correction);
        llamac_prefetch(next + b * share, share);
        LLAMAC_UNROLL for (size_t j = 0; j < block / vector_k; j++) {
            u8x64 w;
            const size_t at = b * block + j * vector_k;
            memcpy(&w, panel + at / vector_k * 64, sizeof w);
            dots = llamac_dot(dots, wide ? w : w & 15, llamac_spread(x.q + at), wide);
            if (!wide) dots = llamac_dot(dots, w >> 4, llamac_spread(x.q + at + 4), 0);
        }
        const f32x16 weight_scale = llamac_load_type(scales + group * 2 * format.scale_bits, scale_type);
        const i32x16 whole = llamac_finish(dots, correction, wide);
        acc = llamac_fma(__builtin_convertvector(whole, f32x16), weight_scale * x.scale[b], acc);
        if (format.min_bits) {
            const f32x16 weight_min = llamac_load_type(mins + group * 2 * format.min_bits, min_type);
            acc = llamac_fma(weight_min, llamac_splat(x.scale[b] * (float)x.sum[b]), acc);
        }
    }
    return acc;
}

/* One row of a linear: see llamac_linear_grouped. */
LLAMAC_KERNEL void llamac_gemv_grouped(const llamac_thread *th, float *y, llamac_quantized x, const uint8_t *w,
                                       size_t n, size_t k, llamac_grouped format, const float *residual) {
    const size_t panel_bytes = llamac_grouped_panel_bytes(k, format);
    size_t low, high;
    llamac_share(th, (n + 15) / 16, &low, &high);
    for (size_t p = low; p < high; p++) {
        const uint8_t *panel = w + p * panel_bytes, *next = p + 1 < high ? panel + panel_bytes : panel;
        llamac_store_outputs(y + p * 16, llamac_grouped_gemv_panel(x, panel, next, k, format), NULL,
                             residual ? residual + p * 16 : residual, p, n);
    }
}

#endif
