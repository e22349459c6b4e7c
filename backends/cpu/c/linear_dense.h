/* y = x W^T (+ bias) (+ residual) for dense weights in 16-row panels, f32 activations.
 *
 * Panel: [k][16] elements (e4m3fn: k padded to 4, then 16 f32 row scales), padded to 64 bytes.
 * Chain of one output n: acc = 0; acc = fma(x[k], (float)w[n][k], acc) for k ascending; e4m3fn: acc * row scale; then
 * acc + bias[n]; then residual + acc. One lane holds one output, so row tiles, panels at a time and threads do not change a bit. */
#ifndef LLAMAC_LINEAR_DENSE_H
#define LLAMAC_LINEAR_DENSE_H

#include "pool.h"
#include "types.h"

/* Tile shapes: rows x panels whose accumulators fit the vector registers. */
#if defined(__AVX512F__)
#define LLAMAC_DENSE_ROWS 12
#define LLAMAC_DENSE_PANELS 2
#define LLAMAC_DENSE_GEMV_PANELS 4
#else
#define LLAMAC_DENSE_ROWS 6
#define LLAMAC_DENSE_PANELS 1
#define LLAMAC_DENSE_GEMV_PANELS 2
#endif
#define LLAMAC_DENSE_SMALL_ROWS 4
#define LLAMAC_MOST_ROWS 12 /* of any tile; arrays have literal sizes so that they become registers */
#define LLAMAC_MOST_PANELS 8
#define LLAMAC_DENSE_BLOCK_BYTES (384u << 10) /* activations that should stay in the L2 cache */

LLAMAC_KERNEL size_t llamac_dense_panel_bytes(size_t k, int type) {
    if (type == LLAMAC_E4M3FN) return llamac_round_up(k, 4) * 16 + 64;
    return llamac_round_up(k * 16 * llamac_element_bytes(type), 64);
}

/* Writes one row of one panel: the lanes below n - 16 * panel, row-scaled for e4m3fn, plus the bias (which begins at the
 * panel, as y and the residual do) and the residual. */
LLAMAC_KERNEL void llamac_store_outputs(float *y, f32x16 value, const float *bias, const float *residual, size_t panel,
                                        size_t n) {
    size_t lanes = n % 16 && panel == n / 16 ? n % 16 : 16;
    if (bias) value += lanes == 16 ? llamac_load(bias) : llamac_load_part(bias, n % 16);
    if (lanes == 16) {
        if (residual) value = llamac_load(residual) + value;
        llamac_store(y, value);
    } else {
        if (residual) value = llamac_load_part(residual, n % 16) + value;
        llamac_store_part(y, value, n % 16);
    }
}

/* Brings `bytes` (a literal) of memory near: the hardware's own prefetching leaves a third of the bandwidth unused when
 * a kernel also computes. */
LLAMAC_KERNEL void llamac_prefetch(const uint8_t *from, size_t bytes) {
    LLAMAC_UNROLL for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 3);
}

/* One input against one tile: acc[r][p] = fma(input[r][i], w[p], acc[r][p]). */
LLAMAC_KERNEL void llamac_dense_step(const int row_count, const int panel_count,
                                     f32x16 acc[LLAMAC_MOST_ROWS][LLAMAC_MOST_PANELS],
                                     const float *const input[LLAMAC_MOST_ROWS], size_t i,
                                     const f32x16 w[LLAMAC_MOST_PANELS]) {
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
        f32x16 x = llamac_splat(input[r][i]);
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) acc[r][p] = llamac_fma(x, w[p], acc[r][p]);
    }
}

/* The weights of inputs i and i + 1 of a panel; e4m3fn ones without their factor 2^8. */
LLAMAC_KERNEL void llamac_dense_pair(f32x16 *first, f32x16 *second, const uint8_t *panel, size_t i, int type) {
    const size_t step = 16 * llamac_element_bytes(type);
    if (type != LLAMAC_E4M3FN) {
        *first = llamac_load_type(panel + i * step, type);
        *second = llamac_load_type(panel + (i + 1) * step, type);
        return;
    }
    u8x32 bytes;
    memcpy(&bytes, panel + i * step, sizeof bytes);
    const f16x32 half = llamac_half_of_e4m3fn(bytes);
    *first = __builtin_convertvector(half.lo, f32x16);
    *second = __builtin_convertvector(half.hi, f32x16);
}

/* One tile: `row_count` rows by `panel_count` panels (literals). Rows beyond `last_row` and panels beyond `last_panel`
 * (both relative to the tile) repeat the last one and are not stored. x, y, residual point at the tile's first row. The
 * panels after the tile's are prefetched on the way when `ahead` says so (not f32: no gain). e4m3fn weights are
 * multiplied without their factor 2^8, which the sum gets at the end: a power of two changes no rounding. */
LLAMAC_KERNEL void llamac_dense_tile(const int row_count, const int panel_count, float *y, size_t ldy, const float *x,
                                     size_t ldx, size_t last_row, const uint8_t *weights, size_t first_panel,
                                     size_t last_panel, int ahead, size_t n, size_t k, int type, const float *bias,
                                     const float *residual) {
    const size_t panel_bytes = llamac_dense_panel_bytes(k, type), step = 16 * llamac_element_bytes(type);
    const float *input[LLAMAC_MOST_ROWS];
    const uint8_t *panel[LLAMAC_MOST_PANELS];
    f32x16 acc[LLAMAC_MOST_ROWS][LLAMAC_MOST_PANELS];
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
        input[r] = x + ((size_t)r < last_row ? (size_t)r : last_row) * ldx;
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) acc[r][p] = llamac_splat(0.0f);
    }
    LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
        panel[p] = weights + (first_panel + ((size_t)p < last_panel ? (size_t)p : last_panel)) * panel_bytes;
    const uint8_t *next = panel[0] + (ahead && last_panel >= (size_t)panel_count ? panel_count * panel_bytes : 0);
    f32x16 w[LLAMAC_MOST_PANELS], after[LLAMAC_MOST_PANELS];
    for (size_t i = 0; i + 2 <= k; i += 2) {
        if (ahead && type != LLAMAC_F32) llamac_prefetch(next + i * step * panel_count, 2 * step * panel_count);
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) llamac_dense_pair(&w[p], &after[p], panel[p], i, type);
        llamac_dense_step(row_count, panel_count, acc, input, i, w);
        llamac_dense_step(row_count, panel_count, acc, input, i + 1, after);
    }
    if (k % 2) {
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) {
            w[p] = llamac_load_type(panel[p] + (k - 1) * step, type);
            if (type == LLAMAC_E4M3FN) w[p] *= 0x1p-8f;
        }
        llamac_dense_step(row_count, panel_count, acc, input, k - 1, w);
    }
    LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) {
        if ((size_t)p > last_panel) continue;
        const size_t column = (first_panel + p) * 16;
        f32x16 row_scale = llamac_splat(1.0f);
        if (type == LLAMAC_E4M3FN) row_scale = llamac_load((const float *)(panel[p] + llamac_round_up(k, 4) * 16));
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
            if ((size_t)r > last_row) continue;
            f32x16 value = type == LLAMAC_E4M3FN ? acc[r][p] * 256.0f * row_scale : acc[r][p];
            llamac_store_outputs(y + r * ldy + column, value, bias ? bias + column : bias,
                                 residual ? residual + r * ldy + column : residual, first_panel + p, n);
        }
    }
}

LLAMAC_KERNEL size_t llamac_smaller(size_t a, size_t b) { return a < b ? a : b; }

/* One row against panels [low, high): several panels at once hide the latency of the chains. */
LLAMAC_KERNEL void llamac_dense_gemv(float *y, const float *x, const uint8_t *w, size_t low, size_t high, size_t n,
                                     size_t k, int type, const float *bias, const float *residual) {
    for (size_t p = low; p < high; p += LLAMAC_DENSE_GEMV_PANELS)
        llamac_dense_tile(1, LLAMAC_DENSE_GEMV_PANELS, y, 0, x, 0, 0, w, p, high - 1 - p, 1, n, k, type, bias,
                          residual);
}

/* Rows [0, rows) against panels [low, high): row blocks outside, panels next, row tiles inside. */
LLAMAC_KERNEL void llamac_dense_gemm(float *y, size_t ldy, const float *x, size_t ldx, size_t rows, const uint8_t *w,
                                     size_t low, size_t high, size_t n, size_t k, int type, const float *bias,
                                     const float *residual) {
    const size_t tiles = LLAMAC_DENSE_BLOCK_BYTES / (k * 4) / LLAMAC_DENSE_ROWS;
    const size_t block = (tiles ? tiles : 1) * LLAMAC_DENSE_ROWS;
    for (size_t first = 0; first < rows; first += block) {
        const size_t end = llamac_smaller(rows, first + block);
        for (size_t p = low; p < high; p += LLAMAC_DENSE_PANELS) {
            size_t row = first;
            for (; row + LLAMAC_DENSE_ROWS <= end; row += LLAMAC_DENSE_ROWS)
                llamac_dense_tile(LLAMAC_DENSE_ROWS, LLAMAC_DENSE_PANELS, y + row * ldy, ldy, x + row * ldx, ldx,
                                  LLAMAC_DENSE_ROWS - 1, w, p, high - 1 - p, 0, n, k, type, bias,
                                  residual ? residual + row * ldy : residual);
            for (; row < end; row += LLAMAC_DENSE_SMALL_ROWS)
                llamac_dense_tile(LLAMAC_DENSE_SMALL_ROWS, LLAMAC_DENSE_PANELS, y + row * ldy, ldy, x + row * ldx, ldx,
                                  llamac_smaller(end - 1 - row, LLAMAC_DENSE_SMALL_ROWS - 1), w, p, high - 1 - p,
                                  row == 0, n, k, type, bias, residual ? residual + row * ldy : residual);
        }
    }
}

/* y[row*ldy + j] = (residual[row*ldy + j] +) sum over k of x[row*ldx + k] W[j][k] (+ bias[j]), j < n. bias may be NULL,
 * residual NULL or y. n, k, type are literals. Threads take contiguous panel ranges. */
LLAMAC_KERNEL void llamac_linear_biased(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                        uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k, int type,
                                        const float *bias, const float *residual) {
    size_t low, high;
    llamac_share(th, ((size_t)n + 15) / 16, &low, &high);
    if (rows == 1)
        llamac_dense_gemv(y, x, w, low, high, n, k, type, bias, residual);
    else
        llamac_dense_gemm(y, ldy, x, ldx, rows, w, low, high, n, k, type, bias, residual);
}

/* The same without a bias. */
LLAMAC_KERNEL void llamac_linear_dense(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                       uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k, int type,
                                       const float *residual) {
    llamac_linear_biased(th, y, ldy, x, ldx, rows, w, n, k, type, NULL, residual);
}

#endif
