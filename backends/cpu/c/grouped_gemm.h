/* Several rows of quantized activations against panels of group-quantized weights.
 *
 * A thread first packs its block of rows into tiles of a few rows each: block by block of the inputs, what a tile needs
 * lies in one stream, the activations in the order of grouped_inputs.h, then [rows] of scales, corrections and (with
 * mins) sums times scales. Then panels go two at a time: section by section of their inputs, small enough for the L1
 * cache, every tile is multiplied while the next section is fetched. Partial sums wait in between, so the order of
 * an output's sum is that of linear_grouped.h whatever the cut. */
#ifndef LLAMAC_GROUPED_GEMM_H
#define LLAMAC_GROUPED_GEMM_H

#include "grouped_tile.h"
#include "grouped_tile_amx.h"
#include "grouped_tile_i8mm.h"
#include "grouped_tile_ymm.h"
#include "linear_grouped.h"
#include "panels.h"
#include "pool.h"
#include "row_tiles.h"
#include "types.h"

#define LLAMAC_GEMM_SECTION_BYTES 8192        /* of a panel's quants: two, and a tile's inputs, stay in the L1 cache */
#define LLAMAC_GEMM_BLOCK_BYTES (400u << 10)  /* of packed rows, which should stay in the L2 cache */
#define LLAMAC_GEMM_FEWEST_ROWS (4 * LLAMAC_GEMM_ROWS) /* of a block, even where they leave the cache */

/* Bytes of one packed row. */
LLAMAC_KERNEL size_t llamac_packed_row_bytes(size_t k, llamac_grouped format) {
    return llamac_padded_k(k, format.group) / llamac_block(format.group) * llamac_packed_block_bytes(format);
}

/* One tile of `row_count` rows (a literal), of which rows after `last_row` repeat it. */
LLAMAC_KERNEL void llamac_pack_tile(const int row_count, uint8_t *to, llamac_quantized x, size_t last_row, size_t k,
                                    llamac_grouped format) {
    const size_t padded = llamac_padded_k(k, format.group), block = llamac_block(format.group);
    const size_t blocks = padded / block, bytes = row_count * llamac_packed_block_bytes(format);
    for (size_t b = 0; b < blocks; b++, to += bytes) {
        const int8_t *q[LLAMAC_GEMM_ROWS];
        float factor[3][LLAMAC_GEMM_ROWS];
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
            const size_t row = (size_t)r < last_row ? (size_t)r : last_row, at = row * blocks + b;
            const int32_t correction = x.sum[at] * llamac_correction(format);
            q[r] = x.q + row * padded + b * block;
            factor[0][r] = x.scale[at];
            memcpy(&factor[1][r], &correction, sizeof correction);
            factor[2][r] = x.scale[at] * (float)x.sum[at];
        }
        llamac_pack_inputs(row_count, to, q, block);
        LLAMAC_UNROLL for (int part = 0; part < (format.min_bits ? 3 : 2); part++)
            LLAMAC_UNROLL for (int r = 0; r < row_count; r++)
                memcpy(to + row_count * (block + 4 * part) + 4 * r, &factor[part][r], 4);
    }
}

/* Packs the rows of a block into its tiles. */
LLAMAC_KERNEL void llamac_pack_rows(llamac_row_tiles rows, uint8_t *to, llamac_quantized x, size_t k,
                                    llamac_grouped format) {
    const size_t padded = llamac_padded_k(k, format.group), blocks = padded / llamac_block(format.group);
    size_t row = 0;
    for (size_t t = 0; t < rows.tiles + rows.few_tiles; t++) {
        const size_t size = t < rows.tiles ? LLAMAC_GEMM_ROWS : LLAMAC_GEMM_FEW_ROWS;
        const llamac_quantized tile = {x.q + row * padded, x.scale + row * blocks, x.sum + row * blocks};
        if (t < rows.tiles)
            llamac_pack_tile(LLAMAC_GEMM_ROWS, to, tile, llamac_smaller(rows.count - row, size) - 1, k, format);
        else
            llamac_pack_tile(LLAMAC_GEMM_FEW_ROWS, to, tile, llamac_smaller(rows.count - row, size) - 1, k, format);
        to += size * llamac_packed_row_bytes(k, format);
        row += size;
    }
}

/* A tile of `row_count` rows times `panel_count` panels of a section (both literals): see llamac_lane_tile. */
LLAMAC_KERNEL void llamac_gemm_tile(const int row_count, const int panel_count, float *partial, const uint8_t *x,
                                    llamac_section s, size_t number, int is_first, llamac_grouped format) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    (void)panel_count;
    llamac_ymm_tile(row_count, partial, x, s, number, is_first, format);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    (void)panel_count;
    llamac_mm_tile(row_count, partial, x, s, number, is_first, format);
#else
#if defined(__AMX_INT8__)
    if (row_count == LLAMAC_GEMM_ROWS) {
        llamac_amx_tile(panel_count, partial, x, s, number, is_first, format);
        return;
    }
#endif
    llamac_lane_tile(row_count, panel_count, partial, x, s, number, is_first, format);
#endif
}

/* Every tile of a block of rows times a section: partial[rows][2][16]. `packed` begins at the section's inputs. */
LLAMAC_KERNEL void llamac_gemm_section(const int panel_count, float *partial, llamac_row_tiles rows,
                                       size_t inputs_before, llamac_section s, size_t k, int is_first,
                                       llamac_grouped format) {
    const size_t row_bytes = llamac_packed_row_bytes(k, format);
    const size_t before = inputs_before * llamac_packed_block_bytes(format);
    const uint8_t *x = rows.packed;
    size_t tile = 0;
    for (; tile < rows.tiles; tile++, x += LLAMAC_GEMM_ROWS * row_bytes, partial += LLAMAC_GEMM_ROWS * 32)
        llamac_gemm_tile(LLAMAC_GEMM_ROWS, panel_count, partial, x + LLAMAC_GEMM_ROWS * before, s, tile, is_first,
                         format);
    for (; tile < rows.tiles + rows.few_tiles;
         tile++, x += LLAMAC_GEMM_FEW_ROWS * row_bytes, partial += LLAMAC_GEMM_FEW_ROWS * 32)
        llamac_gemm_tile(LLAMAC_GEMM_FEW_ROWS, panel_count, partial, x + LLAMAC_GEMM_FEW_ROWS * before, s, tile,
                         is_first, format);
}

/* A block of rows times a pair of panels: partial[rows][2][16] becomes their products. `second` is the distance to the
 * second panel, 0 where there is none; `next` is the pair to be fetched meanwhile, NULL where there is none. */
LLAMAC_KERNEL void llamac_gemm_pair(float *partial, llamac_row_tiles rows, const uint8_t *panel, size_t second,
                                    const uint8_t *next, size_t k, llamac_grouped format) {
    const size_t block = llamac_block(format.group), blocks = llamac_padded_k(k, format.group) / block;
    const size_t block_bytes = block * 2 * format.bits, per_section = LLAMAC_GEMM_SECTION_BYTES / block_bytes;
    const size_t passes = LLAMAC_GEMM_PANELS == 2 ? 1 : second ? 2 : 1, tiles = rows.tiles + rows.few_tiles;
    llamac_begin_tiles(format);
    for (size_t done = 0; done < blocks; done += per_section) {
        const size_t here = llamac_smaller(per_section, blocks - done), after = done + here;
        const size_t group = done * block / format.group, next_group = after * block / format.group;
        const uint8_t *follows = after < blocks ? panel + after * block_bytes : next ? next : panel;
        const size_t following = after < blocks ? llamac_smaller(per_section, blocks - after)
                                                : llamac_smaller(per_section, blocks);
        const uint8_t *scales = after < blocks ? panel + next_group * 2 * format.scale_bits : follows;
        llamac_section s = {
            .quants = panel + done * block_bytes,
            .scales = panel + llamac_scales_offset(k, format) + group * 2 * format.scale_bits,
            .mins = panel + llamac_mins_offset(k, format) + group * 2 * format.min_bits,
            .apart = second,
            .blocks = here,
            .lines = (following * block_bytes / 64 + tiles * here - 1) / (tiles * here),
            .next = follows,
            .next_end = after < blocks || next ? follows + following * block_bytes : follows,
            .next_scales = scales + llamac_scales_offset(k, format),
            .next_apart = second,
        };
        for (size_t pass = 0; pass < passes; pass++) {
            llamac_gemm_section(LLAMAC_GEMM_PANELS, partial + pass * 16, rows, done, s, k, done == 0, format);
            s.quants += second, s.scales += second, s.mins += second;
            s.next += second, s.next_end += second, s.next_scales += second;
        }
    }
    llamac_end_tiles();
}

/* Several rows of a linear: see llamac_linear_grouped. Threads take contiguous ranges of pairs of panels. */
LLAMAC_KERNEL void llamac_gemm_grouped(const llamac_thread *th, float *y, size_t ldy, llamac_quantized x, size_t rows,
                                       const uint8_t *w, size_t n, size_t k, llamac_grouped format,
                                       const float *residual) {
    const size_t padded = llamac_padded_k(k, format.group), blocks = padded / llamac_block(format.group);
    const size_t panels = (n + 15) / 16, panel_bytes = llamac_grouped_panel_bytes(k, format);
    const size_t most = llamac_block_rows(llamac_packed_row_bytes(k, format), LLAMAC_GEMM_BLOCK_BYTES,
                                          LLAMAC_GEMM_FEWEST_ROWS, LLAMAC_GEMM_ROWS);
    const size_t step = llamac_even_step(rows, most, LLAMAC_GEMM_ROWS);
    float *sums = (float *)th->scratch;
    uint8_t *packed = llamac_packed_rows(th, most, LLAMAC_GEMM_ROWS);
    size_t low, high;
    llamac_share(th, (panels + 1) / 2, &low, &high);
    for (size_t first = 0; first < rows && low < high; first += step) {
        const llamac_row_tiles tiles = llamac_cut_rows(llamac_smaller(step, rows - first), LLAMAC_GEMM_ROWS,
                                                       LLAMAC_GEMM_FEW_ROWS, packed);
        const llamac_quantized part = {x.q + first * padded, x.scale + first * blocks, x.sum + first * blocks};
        llamac_pack_rows(tiles, packed, part, k, format);
        for (size_t pair = low; pair < high; pair++) {
            const uint8_t *panel = w + pair * 2 * panel_bytes;
            llamac_gemm_pair(sums, tiles, panel, pair * 2 + 1 < panels ? panel_bytes : 0,
                             pair + 1 < high ? panel + 2 * panel_bytes : NULL, k, format);
            llamac_store_pair(y + first * ldy, ldy, sums, tiles.count, pair * 2, n, NULL,
                              residual ? residual + first * ldy : residual);
        }
    }
}

/* y[row*ldy + j] = (residual[row*ldy + j] +) sum over k of x[row][k] W[j][k], j < n. residual may be NULL or y.
 * n, k, format are literals. */
LLAMAC_KERNEL void llamac_linear_grouped(const llamac_thread *th, float *y, size_t ldy, llamac_quantized x,
                                         uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k,
                                         llamac_grouped format, const float *residual) {
    if (rows == 1)
        llamac_gemv_grouped(th, y, x, w, n, k, format, residual);
    else if (rows) /* a step may want no logits */
        llamac_gemm_grouped(th, y, ldy, x, rows, w, n, k, format, residual);
}

#endif
