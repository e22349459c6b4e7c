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

#include "linear_dense.h"
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

/* The integer dot products: llamac_dot(acc, w, x) adds, in each of 16 lanes, 4 weight bytes times the 4 activation
 * bytes of x. `wide` (a literal) says that weights use all 8 bits. llamac_dots holds whatever the instruction set
 * accumulates in; llamac_finish gives the 32-bit sums, which are (w - LLAMAC_WIDE_ZERO) . x for wide weights. */
#if defined(__AVX512VNNI__)
#define LLAMAC_WIDE_ZERO 0
typedef i32x16 llamac_dots;
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, int32_t x, int wide) {
    (void)wide;
    return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x));
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int wide) {
    (void)wide;
    return acc;
}
#elif defined(__AVXVNNI__)
#define LLAMAC_WIDE_ZERO 0
typedef i32x16 llamac_dots;
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, int32_t x, int wide) {
    (void)wide;
    __m256i part[2], weights[2], input = _mm256_set1_epi32(x);
    memcpy(part, &acc, sizeof part);
    memcpy(weights, &w, sizeof weights);
    part[0] = _mm256_dpbusd_avx_epi32(part[0], weights[0], input);
    part[1] = _mm256_dpbusd_avx_epi32(part[1], weights[1], input);
    memcpy(&acc, part, sizeof acc);
    return acc;
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int wide) {
    (void)wide;
    return acc;
}
#elif defined(__AVX2__)
/* 16-bit sums of byte pairs: a nibble times an int8 twice is at most 2 * 15 * 127, and a block adds at most 8 of those,
 * 30480, so nothing saturates. Wide weights are two nibbles with an accumulator each. */
#define LLAMAC_WIDE_ZERO 0
typedef struct {
    i16x32 low, high;
} llamac_dots;
LLAMAC_KERNEL i16x32 llamac_pair_products(u8x64 w, int32_t x) {
#if defined(__AVX512BW__)
    return (i16x32)_mm512_maddubs_epi16((__m512i)w, _mm512_set1_epi32(x));
#else
    __m256i weights[2], input = _mm256_set1_epi32(x);
    memcpy(weights, &w, sizeof weights);
    weights[0] = _mm256_maddubs_epi16(weights[0], input);
    weights[1] = _mm256_maddubs_epi16(weights[1], input);
    i16x32 products;
    memcpy(&products, weights, sizeof products);
    return products;
#endif
}
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, int32_t x, int wide) {
    acc.low += llamac_pair_products(wide ? w & 15 : w, x);
    if (wide) acc.high += llamac_pair_products(w >> 4, x);
    return acc;
}
LLAMAC_KERNEL i32x16 llamac_add_pairs(i16x32 pairs) {
#if defined(__AVX512BW__)
    return (i32x16)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1));
#else
    __m256i half[2];
    memcpy(half, &pairs, sizeof half);
    half[0] = _mm256_madd_epi16(half[0], _mm256_set1_epi16(1));
    half[1] = _mm256_madd_epi16(half[1], _mm256_set1_epi16(1));
    i32x16 sums;
    memcpy(&sums, half, sizeof sums);
    return sums;
#endif
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int wide) {
    i32x16 sums = llamac_add_pairs(acc.low);
    return wide ? sums + (llamac_add_pairs(acc.high) << 4) : sums;
}
#elif defined(__aarch64__)
/* Signed by signed: wide weights are moved down by 128, nibbles are small enough as they are. */
#define LLAMAC_WIDE_ZERO 128
typedef i32x16 llamac_dots;
LLAMAC_KERNEL int32x4_t llamac_dot_quarter(int32x4_t acc, int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, w, x);
#else
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpadalq_s16(acc, vpaddq_s16(low, high)); /* |pair| <= 2 * 128 * 127 < 2^15 */
#endif
}
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, int32_t x, int wide) {
    if (wide) w ^= 0x80;
    int32x4_t part[4];
    int8x16_t weights[4], input = vreinterpretq_s8_s32(vdupq_n_s32(x));
    memcpy(part, &acc, sizeof part);
    memcpy(weights, &w, sizeof weights);
    LLAMAC_UNROLL for (int i = 0; i < 4; i++) part[i] = llamac_dot_quarter(part[i], weights[i], input);
    memcpy(&acc, part, sizeof acc);
    return acc;
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int wide) {
    (void)wide;
    return acc;
}
#else
#define LLAMAC_WIDE_ZERO 0
typedef i32x16 llamac_dots;
LLAMAC_KERNEL llamac_dots llamac_dot(llamac_dots acc, u8x64 w, int32_t x, int wide) {
    (void)wide;
    int8_t input[4];
    memcpy(input, &x, sizeof input);
    for (int lane = 0; lane < 16; lane++)
        for (int b = 0; b < 4; b++) acc[lane] += (int32_t)w[4 * lane + b] * input[b];
    return acc;
}
LLAMAC_KERNEL i32x16 llamac_finish(llamac_dots acc, int wide) {
    (void)wide;
    return acc;
}
#endif

/* Tile rows: an int and a float accumulator for each in registers, one panel at a time. */
#if defined(__AVX512F__)
#define LLAMAC_GROUPED_ROWS 12
#else
#define LLAMAC_GROUPED_ROWS 4
#endif
#define LLAMAC_GROUPED_SMALL_ROWS 4
#define LLAMAC_GROUPED_BLOCK_ROWS 96
#define LLAMAC_GROUPED_BLOCK_BYTES (256u << 10) /* activations that should stay in the L2 cache */

/* What the integer sum of a block misses: sum * (zero point that llamac_dot took off - the format's offset). */
LLAMAC_KERNEL int32_t llamac_correction(llamac_grouped format) {
    int32_t taken = format.bits == 8 ? LLAMAC_WIDE_ZERO : 0;
    return taken - (format.is_signed ? (format.bits == 8 ? 128 : 8) : 0);
}

LLAMAC_KERNEL int32_t llamac_load_four(const int8_t *from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return four;
}

/* One tile: `row_count` rows (a literal) against one panel. q points at the tile's first row; scale, correction and
 * min_factor are its [row][blocks] arrays. Rows beyond `last_row` repeat it and are not stored. A panel's worth of
 * memory from `next` on (unless it is NULL, as a literal) is prefetched on the way. */
LLAMAC_KERNEL void llamac_grouped_tile(const int row_count, float *y, size_t ldy, const int8_t *q, const float *scale,
                                       const int32_t *correction, const float *min_factor, size_t last_row,
                                       const uint8_t *panel, const uint8_t *next, size_t panel_index, size_t n,
                                       size_t k, llamac_grouped format, const float *residual) {
    const size_t padded = llamac_padded_k(k, format.group), block = llamac_block(format.group);
    const size_t blocks = padded / block, vector_k = format.bits == 4 ? 8 : 4;
    const int wide = format.bits == 8;
    const size_t share = llamac_grouped_panel_bytes(k, format) / blocks;
    const int scale_type = format.scale_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const int min_type = format.min_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const uint8_t *scales = panel + llamac_scales_offset(k, format), *mins = panel + llamac_mins_offset(k, format);
    size_t row[LLAMAC_MOST_ROWS];
    f32x16 acc[LLAMAC_MOST_ROWS];
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
        row[r] = (size_t)r < last_row ? (size_t)r : last_row;
        acc[r] = llamac_splat(0.0f);
    }
    for (size_t b = 0; b < blocks; b++) {
        const size_t group = b * block / format.group;
        llamac_dots dots[LLAMAC_MOST_ROWS];
        if (next) llamac_prefetch(next + b * share, share);
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++) memset(&dots[r], 0, sizeof dots[r]);
        LLAMAC_UNROLL for (size_t j = 0; j < block / vector_k; j++) {
            u8x64 w;
            const size_t at = b * block + j * vector_k;
            memcpy(&w, panel + at / vector_k * 64, sizeof w);
            const u8x64 low = wide ? w : w & 15, high = w >> 4;
            LLAMAC_UNROLL for (int r = 0; r < row_count; r++)
                dots[r] = llamac_dot(dots[r], low, llamac_load_four(q + row[r] * padded + at), wide);
            if (wide) continue;
            LLAMAC_UNROLL for (int r = 0; r < row_count; r++)
                dots[r] = llamac_dot(dots[r], high, llamac_load_four(q + row[r] * padded + at + 4), 0);
        }
        const f32x16 weight_scale = llamac_load_type(scales + group * 2 * format.scale_bits, scale_type);
        const f32x16 weight_min = format.min_bits ? llamac_load_type(mins + group * 2 * format.min_bits, min_type)
                                                  : llamac_splat(0.0f);
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
            const size_t at = row[r] * blocks + b;
            i32x16 whole = llamac_finish(dots[r], wide);
            if (llamac_correction(format)) whole += correction[at];
            acc[r] = llamac_fma(__builtin_convertvector(whole, f32x16), weight_scale * scale[at], acc[r]);
            if (format.min_bits) acc[r] = llamac_fma(weight_min, llamac_splat(min_factor[at]), acc[r]);
        }
    }
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++)
        if ((size_t)r <= last_row)
            llamac_store_outputs(y + r * ldy + panel_index * 16, acc[r], NULL,
                                 residual ? residual + r * ldy + panel_index * 16 : residual, panel_index, n);
}

/* Per block of the given rows: correction * sum, and scale * sum for the mins. */
LLAMAC_KERNEL void llamac_grouped_terms(int32_t *correction, float *min_factor, const float *scale, const int32_t *sum,
                                        size_t count, llamac_grouped format) {
    for (size_t i = 0; i < count; i++) {
        if (llamac_correction(format)) correction[i] = sum[i] * llamac_correction(format);
        if (format.min_bits) min_factor[i] = scale[i] * (float)sum[i];
    }
}

/* `count` rows (at most `capacity`, a literal; 1 means the single-row path) against panels [low, high): panels outside,
 * row tiles inside. */
LLAMAC_KERNEL void llamac_grouped_rows(const size_t capacity, float *y, size_t ldy, llamac_quantized x, size_t count,
                                       const uint8_t *w, size_t low, size_t high, size_t n, size_t k,
                                       llamac_grouped format, const float *residual) {
    const size_t padded = llamac_padded_k(k, format.group), blocks = padded / llamac_block(format.group);
    int32_t correction[capacity * blocks];
    float min_factor[capacity * blocks];
    llamac_grouped_terms(correction, min_factor, x.scale, x.sum, count * blocks, format);
    for (size_t p = low; p < high; p++) {
        const uint8_t *panel = w + p * llamac_grouped_panel_bytes(k, format);
        const uint8_t *next = p + 1 < high ? panel + llamac_grouped_panel_bytes(k, format) : panel;
        if (capacity == 1) {
            llamac_grouped_tile(1, y, ldy, x.q, x.scale, correction, min_factor, 0, panel, next, p, n, k, format,
                                residual);
            continue;
        }
        size_t row = 0;
        for (; row + LLAMAC_GROUPED_ROWS <= count; row += LLAMAC_GROUPED_ROWS)
            llamac_grouped_tile(LLAMAC_GROUPED_ROWS, y + row * ldy, ldy, x.q + row * padded, x.scale + row * blocks,
                                correction + row * blocks, min_factor + row * blocks, LLAMAC_GROUPED_ROWS - 1, panel,
                                NULL, p, n, k, format, residual ? residual + row * ldy : residual);
        for (; row < count; row += LLAMAC_GROUPED_SMALL_ROWS)
            llamac_grouped_tile(LLAMAC_GROUPED_SMALL_ROWS, y + row * ldy, ldy, x.q + row * padded,
                                x.scale + row * blocks, correction + row * blocks, min_factor + row * blocks,
                                llamac_smaller(count - 1 - row, LLAMAC_GROUPED_SMALL_ROWS - 1), panel,
                                row ? panel : next, p, n, k, format, residual ? residual + row * ldy : residual);
    }
}

/* y[row*ldy + j] = (residual[row*ldy + j] +) sum over k of x[row][k] W[j][k], j < n. residual may be NULL or y.
 * n, k, format are literals. Threads take contiguous panel ranges; rows go in blocks whose activations stay in L2. */
LLAMAC_KERNEL void llamac_linear_grouped(const llamac_thread *th, float *y, size_t ldy, llamac_quantized x,
                                         uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k,
                                         llamac_grouped format, const float *residual) {
    const size_t padded = llamac_padded_k(k, format.group), blocks = padded / llamac_block(format.group);
    const size_t tiles = LLAMAC_GROUPED_BLOCK_BYTES / padded / LLAMAC_GROUPED_ROWS;
    const size_t fitting = (tiles ? tiles : 1) * LLAMAC_GROUPED_ROWS;
    const size_t step = llamac_smaller(fitting, LLAMAC_GROUPED_BLOCK_ROWS);
    size_t low, high;
    llamac_share(th, ((size_t)n + 15) / 16, &low, &high);
    if (rows == 1) {
        llamac_grouped_rows(1, y, ldy, x, 1, w, low, high, n, k, format, residual);
        return;
    }
    for (size_t first = 0; first < rows; first += step) {
        llamac_quantized part = {x.q + first * padded, x.scale + first * blocks, x.sum + first * blocks};
        llamac_grouped_rows(step, y + first * ldy, ldy, part, llamac_smaller(rows - first, step), w, low, high, n, k,
                            format, residual ? residual + first * ldy : residual);
    }
}

#endif
