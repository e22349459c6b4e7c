/* A tile of quantized rows against a panel with NEON's 8-bit matrix products: i8mm's smmla.
 *
 * One instruction multiplies 8 inputs of two rows with those of two outputs. Weights are joined from two vectors of 4
 * inputs as they are loaded; the integer sums of two rows and two outputs share a register, and are taken apart once a
 * block. The float sums stay in memory. */
#ifndef LLAMAC_GROUPED_TILE_I8MM_H
#define LLAMAC_GROUPED_TILE_I8MM_H

#include "grouped_inputs.h"
#include "grouped_tile.h"
#include "types.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
/* Adds 8 inputs of `row_count` rows times outputs [4 quarter, 4 quarter + 4): sums[pair of rows][2 quarter + i] grows
 * by outputs 2i and 2i + 1 of the quarter. `first` and `second` hold inputs 0..3 and 4..7 of the outputs. */
LLAMAC_KERNEL void llamac_mm_quarter(const int row_count, int32x4_t sums[][8], const int quarter, const int8_t *x,
                                     int8x16_t first, int8x16_t second) {
    const int32x4_t a = vreinterpretq_s32_s8(first), b = vreinterpretq_s32_s8(second);
    const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(a, b)), high = vreinterpretq_s8_s32(vzip2q_s32(a, b));
    LLAMAC_UNROLL for (int pair = 0; pair < row_count / 2; pair++) {
        const int8x16_t inputs = vld1q_s8(x + 16 * pair);
        sums[pair][2 * quarter] = vmmlaq_s32(sums[pair][2 * quarter], inputs, low);
        sums[pair][2 * quarter + 1] = vmmlaq_s32(sums[pair][2 * quarter + 1], inputs, high);
    }
}

/* The integer sums of a block. */
LLAMAC_KERNEL void llamac_mm_block(const int row_count, int32x4_t sums[][8], const int8_t *q, const uint8_t *quants,
                                   llamac_grouped format) {
    const uint8x16_t nibble = vdupq_n_u8(15), middle = vdupq_n_u8(LLAMAC_WIDE_ZERO);
    LLAMAC_UNROLL for (size_t j = 0; j < llamac_block(format.group) / 8; j++)
        LLAMAC_UNROLL for (int quarter = 0; quarter < 4; quarter++) {
            const uint8_t *w = quants + (format.bits == 4 ? 64 : 128) * j + 16 * quarter;
            uint8x16_t first = vld1q_u8(w), second;
            if (format.bits == 4) {
                second = vshrq_n_u8(first, 4);
                first = vandq_u8(first, nibble);
            } else {
                second = veorq_u8(vld1q_u8(w + 64), middle);
                first = veorq_u8(first, middle);
            }
            llamac_mm_quarter(row_count, sums, quarter, q + 8 * j * row_count, vreinterpretq_s8_u8(first),
                              vreinterpretq_s8_u8(second));
        }
}

/* Outputs 0..15 of a row, from the registers that it shares with its neighbour: `odd` says which of both it is. */
LLAMAC_KERNEL i32x16 llamac_mm_row(const int32x4_t sums[8], const int odd) {
    int32x4_t quarter[4];
    LLAMAC_UNROLL for (int i = 0; i < 4; i++) {
        const int64x2_t a = vreinterpretq_s64_s32(sums[2 * i]), b = vreinterpretq_s64_s32(sums[2 * i + 1]);
        quarter[i] = vreinterpretq_s32_s64(odd ? vuzp2q_s64(a, b) : vuzp1q_s64(a, b));
    }
    i32x16 all;
    memcpy(&all, quarter, sizeof all);
    return all;
}

/* A tile of `row_count` rows (a literal, even) times one panel: see llamac_lane_tile. */
LLAMAC_KERNEL void llamac_mm_tile(const int row_count, float *partial, const uint8_t *x, llamac_section s,
                                  size_t number, int is_first, llamac_grouped format) {
    const size_t block = llamac_block(format.group);
    const int scale_type = format.scale_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const int min_type = format.min_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const uint8_t *fetched = s.next + number * s.blocks * s.lines * 64;
    for (int r = 0; r < row_count && is_first; r++) llamac_store(partial + r * 32, llamac_splat(0.0f));
    for (size_t b = 0; b < s.blocks; b++, x += row_count * llamac_packed_block_bytes(format)) {
        const size_t group = b * block / format.group;
        const float *scale = (const float *)(x + row_count * block), *min_factor = scale + 2 * row_count;
        const int32_t *correction = (const int32_t *)(scale + row_count);
        int32x4_t sums[LLAMAC_GEMM_ROWS / 2][8];
        fetched = llamac_fetch_section(&s, fetched, 1, group, format);
        LLAMAC_UNROLL for (int pair = 0; pair < row_count / 2; pair++) LLAMAC_UNROLL for (int i = 0; i < 8; i++)
            sums[pair][i] = vcombine_s32(vdup_n_s32(correction[2 * pair]), vdup_n_s32(correction[2 * pair + 1]));
        llamac_mm_block(row_count, sums, (const int8_t *)x, s.quants + b * block * 2 * format.bits, format);
        const f32x16 weight_scale = llamac_load_type(s.scales + group * 2 * format.scale_bits, scale_type);
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
            const i32x16 whole = llamac_mm_row(sums[r / 2], r % 2);
            f32x16 acc = llamac_fma(__builtin_convertvector(whole, f32x16), weight_scale * scale[r],
                                    llamac_load(partial + r * 32));
            if (format.min_bits)
                acc = llamac_fma(llamac_load_type(s.mins + group * 2 * format.min_bits, min_type),
                                 llamac_splat(min_factor[r]), acc);
            llamac_store(partial + r * 32, acc);
        }
    }
}
#endif

#endif
