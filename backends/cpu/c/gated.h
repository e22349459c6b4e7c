/* The gated MLP's first half in one kernel: silu(x G^T) * (x U^T), without gate and up ever being written.
 *
 * The weight's rows are [gate: width | up: width], width a multiple of 16, so a panel of gates and its panel of ups lie a
 * fixed distance apart and are computed together. The products are those of llamac_linear_grouped and
 * llamac_linear_dense, the rest that of llamac_swiglu and llamac_quantize_rows, bit for bit. */
#ifndef LLAMAC_GATED_H
#define LLAMAC_GATED_H

#include "grouped_gemm.h"
#include "linear_dense.h"
#include "linear_grouped.h"
#include "pool.h"
#include "quantize_rows.h"
#include "row_tiles.h"
#include "types.h"

/* Sums [rows][gate: 16 | up: 16] as silu(gate) * up: 16 columns of y. */
LLAMAC_KERNEL void llamac_gate_sums(float *y, size_t ldy, const float *sums, size_t rows) {
    for (size_t row = 0; row < rows; row++, y += ldy, sums += 32)
        llamac_store(y, llamac_silu(llamac_load(sums)) * llamac_load(sums + 16));
}

/* 32 columns of a row, from 32 * `unit` on, into their blocks. */
LLAMAC_KERNEL void llamac_quantize_unit(llamac_quantized out, size_t row, size_t unit, f32x16 first, f32x16 second,
                                        size_t blocks, size_t block) {
    const size_t index = row * blocks + unit * 32 / block;
    llamac_quantize_block(out, index, first, second, block);
    if (block == 16) llamac_quantize_block(out, index + 1, second, second, block);
}

/* 16 columns of one row: of the gates and ups in panel `p`. */
LLAMAC_KERNEL f32x16 llamac_gated_panel(llamac_quantized x, const uint8_t *w, size_t p, size_t width, size_t k,
                                        llamac_grouped format) {
    const size_t panel_bytes = llamac_grouped_panel_bytes(k, format), apart = width / 16 * panel_bytes;
    const uint8_t *gate = w + p * panel_bytes;
    if (p * 16 >= width) return llamac_splat(0.0f);
    const f32x16 value = llamac_silu(llamac_grouped_gemv_panel(x, gate, gate + panel_bytes, k, format));
    return value * llamac_grouped_gemv_panel(x, gate + apart, gate + apart + panel_bytes, k, format);
}

/* Several rows: see llamac_gated_grouped. Units [low, high) of 32 columns are this thread's. */
LLAMAC_KERNEL void llamac_gated_rows(const llamac_thread *th, llamac_quantized out, llamac_quantized x, size_t rows,
                                     const uint8_t *w, size_t width, size_t k, llamac_grouped format, size_t out_group,
                                     size_t low, size_t high) {
    const size_t padded = llamac_padded_k(k, format.group), blocks = padded / llamac_block(format.group);
    const size_t out_block = llamac_block(out_group), out_blocks = llamac_padded_k(width, out_group) / out_block;
    const size_t panel_bytes = llamac_grouped_panel_bytes(k, format), apart = width / 16 * panel_bytes;
    const size_t most = llamac_block_rows(llamac_packed_row_bytes(k, format) + 32 * sizeof(float),
                                          LLAMAC_GEMM_BLOCK_BYTES, LLAMAC_GEMM_FEWEST_ROWS, LLAMAC_GEMM_ROWS);
    const size_t step = llamac_even_step(rows, most, LLAMAC_GEMM_ROWS);
    float *sums = (float *)th->scratch, *gated = sums + (most + LLAMAC_GEMM_ROWS) * 32;
    uint8_t *packed = (uint8_t *)(gated + (most + LLAMAC_GEMM_ROWS) * 32);
    for (size_t first = 0; first < rows && low < high; first += step) {
        const llamac_row_tiles tiles = llamac_cut_rows(llamac_smaller(step, rows - first), LLAMAC_GEMM_ROWS,
                                                       LLAMAC_GEMM_FEW_ROWS, packed);
        const llamac_quantized part = {x.q + first * padded, x.scale + first * blocks, x.sum + first * blocks};
        llamac_pack_rows(tiles, packed, part, k, format);
        for (size_t unit = low; unit < high; unit++) {
            for (size_t p = unit * 2; p < unit * 2 + 2; p++) {
                const uint8_t *gate = w + p * panel_bytes, *next = p + 1 < width / 16 ? gate + panel_bytes : NULL;
                if (p * 16 < width) {
                    llamac_gemm_pair(sums, tiles, gate, apart, next, k, format);
                    llamac_gate_sums(gated + p % 2 * 16, 32, sums, tiles.count);
                } else {
                    for (size_t row = 0; row < tiles.count; row++)
                        llamac_store(gated + row * 32 + p % 2 * 16, llamac_splat(0.0f));
                }
            }
            for (size_t row = 0; row < tiles.count; row++)
                llamac_quantize_unit(out, first + row, unit, llamac_load(gated + row * 32),
                                     llamac_load(gated + row * 32 + 16), out_blocks, out_block);
        }
    }
}

/* `out` [rows][width] becomes silu(gate) * up of the quantized rows x [rows][k], quantized for weights in groups of
 * `out_group`. width, k, format and out_group are literals. Threads take contiguous ranges of 32 columns. */
LLAMAC_KERNEL void llamac_gated_grouped(const llamac_thread *th, llamac_quantized out, llamac_quantized x,
                                        uint32_t rows, const uint8_t *w, uint32_t width, uint32_t k,
                                        llamac_grouped format, uint32_t out_group) {
    const size_t padded = llamac_padded_k(width, out_group), block = llamac_block(out_group);
    size_t low, high;
    llamac_share(th, padded / 32, &low, &high);
    if (rows != 1) {
        llamac_gated_rows(th, out, x, rows, w, width, k, format, out_group, low, high);
        return;
    }
    for (size_t unit = low; unit < high; unit++) {
        const f32x16 first = llamac_gated_panel(x, w, unit * 2, width, k, format);
        const f32x16 second = llamac_gated_panel(x, w, unit * 2 + 1, width, k, format);
        llamac_quantize_unit(out, 0, unit, first, second, padded / block, block);
    }
}

/* The same for dense weights: y [rows][width] in f32. Threads take contiguous ranges of 16 columns. */
LLAMAC_KERNEL void llamac_gated_dense(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                      uint32_t rows, const uint8_t *w, uint32_t width, uint32_t k, int type) {
    const size_t panel_bytes = llamac_dense_panel_bytes(k, type), apart = width / 16 * panel_bytes;
    size_t low, high;
    llamac_share(th, width / 16, &low, &high);
    if (rows == 1) {
        const llamac_unit *inputs = llamac_take_row(th, x, k, type);
        const size_t together = LLAMAC_DENSE_GEMV_PANELS / 2;
        for (size_t p = low; p < high; p += together) {
            const uint8_t *panel[LLAMAC_DENSE_GEMV_PANELS];
            f32x16 out[LLAMAC_DENSE_GEMV_PANELS];
            LLAMAC_UNROLL for (size_t i = 0; i < together; i++) {
                panel[i] = w + llamac_smaller(p + i, high - 1) * panel_bytes;
                panel[together + i] = panel[i] + apart;
            }
            llamac_dense_row_panels(out, inputs, panel, p + together < high ? together * panel_bytes : 0, k, type);
            LLAMAC_UNROLL for (size_t i = 0; i < together; i++)
                if (p + i < high) llamac_store(y + (p + i) * 16, llamac_silu(out[i]) * out[together + i]);
        }
        return;
    }
    const size_t tile = llamac_dense_rows(type);
    const size_t most = llamac_block_rows(llamac_packed_units(k, type) * 4, LLAMAC_DENSE_BLOCK_BYTES,
                                          LLAMAC_DENSE_FEWEST_ROWS, tile);
    const size_t step = llamac_even_step(rows, most, tile);
    float *sums = (float *)th->scratch;
    uint8_t *packed = llamac_packed_rows(th, most, tile);
    for (size_t first = 0; first < rows && low < high; first += step) {
        const llamac_row_tiles tiles = llamac_cut_rows(llamac_smaller(step, rows - first), tile,
                                                       llamac_dense_few_rows(type), packed);
        llamac_pack_dense_rows(tiles, (llamac_unit *)packed, x + first * ldx, ldx, k, type);
        for (size_t p = low; p < high; p++) {
            const uint8_t *gate = w + p * panel_bytes;
            llamac_dense_pair(sums, tiles, gate, apart, p + 1 < high ? gate + panel_bytes : gate, k, type);
            llamac_gate_sums(y + first * ldy + p * 16, ldy, sums, tiles.count);
        }
    }
}

#endif
