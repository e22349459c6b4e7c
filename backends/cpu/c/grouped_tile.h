/* Tiles of quantized rows against a section of one or two panels: the one in lanes of 16 outputs that runs everywhere.
 *
 * grouped_tile_ymm.h, grouped_tile_i8mm.h and grouped_tile_amx.h have those of other instruction sets. */
#ifndef LLAMAC_GROUPED_TILE_H
#define LLAMAC_GROUPED_TILE_H

#include "grouped_dots.h"
#include "grouped_inputs.h"
#include "linear_grouped.h"
#include "types.h"

/* Fetches `lines` cache lines of each panel that follows, and the scales of a group; returns where to go on. */
LLAMAC_KERNEL const uint8_t *llamac_fetch_section(const llamac_section *s, const uint8_t *at, const int panel_count,
                                                  size_t group, llamac_grouped format) {
    if (at >= s->next_end) return at;
    for (size_t line = 0; line < s->lines; line++, at += 64)
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) __builtin_prefetch(at + p * s->next_apart, 0, 3);
    LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
        __builtin_prefetch(s->next_scales + p * s->next_apart + group * 2 * format.scale_bits, 0, 3);
    return at;
}

/* A tile of `row_count` rows times `panel_count` panels of a section (both literals): partial[row][2][16] grows by it.
 * `number` counts the tiles before it. */
LLAMAC_KERNEL void llamac_lane_tile(const int row_count, const int panel_count, float *partial, const uint8_t *x,
                                    llamac_section s, size_t number, int is_first, llamac_grouped format) {
    const size_t block = llamac_block(format.group), vector_k = format.bits == 4 ? 8 : 4;
    const size_t bytes = row_count * llamac_packed_block_bytes(format);
    const int wide = format.bits == 8;
    const int scale_type = format.scale_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const int min_type = format.min_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const uint8_t *fetched = s.next + number * s.blocks * s.lines * 64;
    f32x16 acc[LLAMAC_GEMM_ROWS][LLAMAC_GEMM_PANELS];
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
        acc[r][p] = is_first ? llamac_splat(0.0f) : llamac_load(partial + (r * 2 + p) * 16);
    for (size_t b = 0; b < s.blocks; b++, x += bytes) {
        const size_t group = b * block / format.group;
        const int8_t *q = (const int8_t *)x;
        const float *scale = (const float *)(x + row_count * block), *min_factor = scale + 2 * row_count;
        const int32_t *correction = (const int32_t *)(scale + row_count);
        llamac_dots dots[LLAMAC_GEMM_ROWS][LLAMAC_GEMM_PANELS];
        fetched = llamac_fetch_section(&s, fetched, panel_count, group, format);
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++) LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
            dots[r][p] = llamac_begin(correction[r]);
        LLAMAC_UNROLL for (size_t j = 0; j < block / vector_k; j++) {
            u8x64 low[LLAMAC_GEMM_PANELS], high[LLAMAC_GEMM_PANELS];
            LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) {
                u8x64 w;
                memcpy(&w, s.quants + p * s.apart + (b * block / vector_k + j) * 64, sizeof w);
                low[p] = wide ? w : w & 15;
                high[p] = w >> 4;
            }
            LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
                llamac_inputs inputs = llamac_spread(q + (j * vector_k / 4 * row_count + r) * 4);
                LLAMAC_IN_REGISTER(inputs);
                LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
                    dots[r][p] = llamac_dot(dots[r][p], low[p], inputs, wide);
            }
            if (wide) continue;
            LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
                llamac_inputs inputs = llamac_spread(q + ((j * 2 + 1) * row_count + r) * 4);
                LLAMAC_IN_REGISTER(inputs);
                LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
                    dots[r][p] = llamac_dot(dots[r][p], high[p], inputs, 0);
            }
        }
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) {
            const f32x16 weight_scale = llamac_load_type(s.scales + p * s.apart + group * 2 * format.scale_bits,
                                                         scale_type);
            const f32x16 weight_min =
                format.min_bits ? llamac_load_type(s.mins + p * s.apart + group * 2 * format.min_bits, min_type)
                                : llamac_splat(0.0f);
            LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
                const i32x16 whole = llamac_finish(dots[r][p], correction[r], wide);
                acc[r][p] = llamac_fma(__builtin_convertvector(whole, f32x16), weight_scale * scale[r], acc[r][p]);
                if (format.min_bits) acc[r][p] = llamac_fma(weight_min, llamac_splat(min_factor[r]), acc[r][p]);
            }
        }
    }
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
        llamac_store(partial + (r * 2 + p) * 16, acc[r][p]);
}

#endif
