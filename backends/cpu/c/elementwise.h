/* Element-wise steps between the kernels: the gated activation, addition, and the gathering of rows. */
#ifndef LLAMAC_ELEMENTWISE_H
#define LLAMAC_ELEMENTWISE_H

#include "linear_grouped.h"
#include "pool.h"
#include "quantize_rows.h"
#include "types.h"

/* y[row][i] = silu(gate) * up; a row of gate_up is [gate: width | up: width]. Threads take ranges of (row, chunk). */
LLAMAC_KERNEL void llamac_swiglu(const llamac_thread *th, float *y, size_t ldy, const float *gate_up, size_t ld,
                                 uint32_t rows, uint32_t width) {
    const size_t chunks = ((size_t)width + 15) / 16;
    size_t low, high;
    llamac_share(th, rows * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, at = unit % chunks * 16;
        const float *gate = gate_up + row * ld, *up = gate + width;
        const f32x16 value = llamac_silu(llamac_load_padded(gate, at, width)) * llamac_load_padded(up, at, width);
        llamac_store_part(y + row * ldy + at, value, at + 16 <= width ? 16 : width % 16);
    }
}

/* The same bits as llamac_swiglu followed by llamac_quantize_rows, without the floats in between. */
LLAMAC_KERNEL void llamac_swiglu_quantize(const llamac_thread *th, llamac_quantized out, const float *gate_up,
                                          size_t ld, uint32_t rows, uint32_t width, uint32_t group) {
    const size_t block = llamac_block(group), blocks = llamac_padded_k(width, group) / block;
    size_t low, high;
    llamac_share(th, rows * blocks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const float *gate = gate_up + unit / blocks * ld, *up = gate + width;
        const size_t at = unit % blocks * block;
        const f32x16 first = llamac_silu(llamac_load_padded(gate, at, width)) * llamac_load_padded(up, at, width);
        f32x16 second = llamac_splat(0.0f);
        if (block == 32)
            second = llamac_silu(llamac_load_padded(gate, at + 16, width)) * llamac_load_padded(up, at + 16, width);
        llamac_quantize_block(out, unit, first, second, block);
    }
}

/* y = a + b, rows x width; y may be a or b. Threads take contiguous row ranges, or inputs when there is one row. */
LLAMAC_KERNEL void llamac_add(const llamac_thread *th, float *y, size_t ldy, const float *a, size_t lda, const float *b,
                              size_t ldb, uint32_t rows, uint32_t width) {
    const size_t chunks = ((size_t)width + 15) / 16;
    size_t low, high;
    llamac_share(th, rows * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, at = unit % chunks * 16, lanes = at + 16 <= width ? 16 : width % 16;
        const f32x16 sum = llamac_load_part(a + row * lda + at, lanes) + llamac_load_part(b + row * ldb + at, lanes);
        llamac_store_part(y + row * ldy + at, sum, lanes);
    }
}

/* y[i] = x[row_ids[i]], `count` rows of `width` floats. Threads take contiguous ranges of i. */
LLAMAC_KERNEL void llamac_gather_rows(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                      const int32_t *row_ids, uint32_t count, uint32_t width) {
    size_t low, high;
    llamac_share(th, count, &low, &high);
    for (size_t i = low; i < high; i++) memcpy(y + i * ldy, x + (size_t)row_ids[i] * ldx, width * sizeof *y);
}

#endif
