/* y[row] = row token_ids[row] of a weight in 16-row panels, as f32: so a tied head needs no second copy.
 *
 * Grouped formats: scale * (float)q, then + min, each rounded; dense formats: the element (e4m3fn: times row scale). */
#ifndef LLAMAC_EMBEDDING_H
#define LLAMAC_EMBEDDING_H

#include "linear_grouped.h"
#include "panels.h"
#include "pool.h"
#include "types.h"

/* Inputs [low, high) of output row n of a dense weight. */
LLAMAC_KERNEL void llamac_dense_row(float *y, const uint8_t *w, size_t n, size_t low, size_t high, size_t k, int type) {
    const size_t bytes = llamac_element_bytes(type), lane = n % 16;
    const uint8_t *panel = w + n / 16 * llamac_dense_panel_bytes(k, type);
    const int is_fp8 = type == LLAMAC_E4M3FN || type == LLAMAC_E4M3FN_PAIRS, pairs = llamac_is_pairs(type);
    float row_scale = 1.0f;
    if (is_fp8) memcpy(&row_scale, panel + llamac_dense_panel_bytes(k, type) - 64 + 4 * lane, sizeof row_scale);
    for (size_t i = low; i < high; i++) {
        const size_t element = pairs ? i / 2 * 32 + 2 * lane + i % 2 : i * 16 + lane;
        const float value = llamac_get(panel + element * bytes, !pairs ? type : is_fp8 ? LLAMAC_E4M3FN : LLAMAC_BF16);
        y[i] = is_fp8 ? value * row_scale : value;
    }
}

/* The stored quant of input i, lane n of a panel, its offset taken off. */
LLAMAC_KERNEL int32_t llamac_quant_at(const uint8_t *panel, size_t lane, size_t i, llamac_grouped format) {
    if (format.bits == 8) return (int32_t)panel[i / 4 * 64 + 4 * lane + i % 4] - (format.is_signed ? 128 : 0);
    const uint8_t pair = panel[i / 8 * 64 + 4 * lane + i % 4];
    return (int32_t)(i % 8 < 4 ? pair & 15 : pair >> 4) - (format.is_signed ? 8 : 0);
}

/* Inputs [low, high) of output row n of a grouped weight. */
LLAMAC_KERNEL void llamac_grouped_row(float *y, const uint8_t *w, size_t n, size_t low, size_t high, size_t k,
                                      llamac_grouped format) {
    const size_t lane = n % 16, scale_bytes = format.scale_bits / 8, min_bytes = format.min_bits / 8;
    const uint8_t *panel = w + n / 16 * llamac_grouped_panel_bytes(k, format);
    const uint8_t *scales = panel + llamac_scales_offset(k, format), *mins = panel + llamac_mins_offset(k, format);
    for (size_t i = low; i < high;) {
        const size_t group = i / format.group, end = llamac_smaller(high, (group + 1) * format.group);
        const float scale =
            llamac_get(scales + (group * 16 + lane) * scale_bytes, scale_bytes == 2 ? LLAMAC_F16 : LLAMAC_F32);
        float minimum = 0.0f;
        if (min_bytes)
            minimum = llamac_get(mins + (group * 16 + lane) * min_bytes, min_bytes == 2 ? LLAMAC_F16 : LLAMAC_F32);
        for (; i < end; i++) {
            const float value = scale * (float)llamac_quant_at(panel, lane, i, format);
            y[i] = min_bytes ? value + minimum : value;
        }
    }
}

/* y [rows][k] (stride ldy), token_ids below n. Threads take contiguous ranges of (row, chunk of 64 inputs). */
LLAMAC_KERNEL void llamac_embedding_dense(const llamac_thread *th, float *y, size_t ldy, const int32_t *token_ids,
                                          uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k, int type) {
    const size_t chunks = ((size_t)k + 63) / 64;
    size_t low, high;
    (void)n;
    llamac_share(th, rows * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, from = unit % chunks * 64;
        llamac_dense_row(y + row * ldy, w, (size_t)token_ids[row], from, llamac_smaller(k, from + 64), k, type);
    }
}
LLAMAC_KERNEL void llamac_embedding_grouped(const llamac_thread *th, float *y, size_t ldy, const int32_t *token_ids,
                                            uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k,
                                            llamac_grouped format) {
    const size_t chunks = ((size_t)k + 63) / 64;
    size_t low, high;
    (void)n;
    llamac_share(th, rows * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, from = unit % chunks * 64;
        llamac_grouped_row(y + row * ldy, w, (size_t)token_ids[row], from, llamac_smaller(k, from + 64), k, format);
    }
}

/* y[row] = images[image_rows[row]] where that is not negative; nothing at all when image_rows is NULL. Threads take the
 * ranges that they take of an embedding, so that no barrier is needed after it. */
LLAMAC_KERNEL void llamac_merge_rows(const llamac_thread *th, float *y, size_t ldy, uint32_t rows, uint32_t width,
                                     const int32_t *image_rows, const float *images) {
    if (image_rows == NULL) return;
    const size_t chunks = ((size_t)width + 63) / 64;
    size_t low, high;
    llamac_share(th, rows * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, from = unit % chunks * 64, end = llamac_smaller(width, from + 64);
        if (image_rows[row] < 0) continue;
        memcpy(y + row * ldy + from, images + (size_t)image_rows[row] * width + from, sizeof(float) * (end - from));
    }
}

#endif
