/* y = x W^T (+ bias) (+ residual) for dense weights in 16-row panels.
 *
 * Single: panels of [k][16] elements, inputs in f32. Chain of one output: acc = 0; acc = fma(x[k], w[k], acc) for k
 * ascending. In pairs (bf16, e4m3fn): panels of [k / 2][16][2] elements, k padded to even with zeros, inputs rounded to
 * bf16; for pairs ascending acc = fma(x[2i+1], w[2i+1], acc), then acc = fma(x[2i], w[2i], acc). e4m3fn panels are padded
 * to 64 bytes and end in 16 f32 row scales. Then acc * row scale, + bias, residual + acc.
 *
 * The chain of pairs is what vdpbf16ps computes, bit for bit, but for subnormal numbers, which it takes for zero; so
 * instruction sets agree, and tiles and threads too, as one lane holds one output. With AMX's bf16 tiles it is another
 * one, that of dense_tile_amx.h, for any number of rows. */
#ifndef LLAMAC_LINEAR_DENSE_H
#define LLAMAC_LINEAR_DENSE_H

#include "dense_tile_amx.h"
#include "dense_units.h"
#include "panels.h"
#include "pool.h"
#include "row_tiles.h"
#include "types.h"

/* Rows and panels of a tile, whose sums fit the vector registers beside the weights (llamac_dense_rows where AMX has
 * some). */
#if defined(__AVX512F__)
#define LLAMAC_DENSE_ROWS 12
#define LLAMAC_DENSE_FEW_ROWS 8
#define LLAMAC_DENSE_PANELS 2
#define LLAMAC_DENSE_GEMV_PANELS 4
#else
#define LLAMAC_DENSE_ROWS 4
#define LLAMAC_DENSE_FEW_ROWS 2
#define LLAMAC_DENSE_PANELS 1
#define LLAMAC_DENSE_GEMV_PANELS 2
#endif
#define LLAMAC_DENSE_SECTION 128             /* pairs of a panel: two panels and a tile's inputs stay in the L1 cache */
#define LLAMAC_DENSE_BLOCK_BYTES (400u << 10) /* of packed rows, which should stay in the L2 cache */
#define LLAMAC_DENSE_FEWEST_ROWS 96 /* of a block: fewer would read the weights more often than memory can */

/* 16 floats rounded to bf16, to nearest even; NaN stays NaN. */
LLAMAC_KERNEL u16x16 llamac_round_bf16(f32x16 value) {
    u32x16 bits;
    memcpy(&bits, &value, sizeof bits);
    const u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const u32x16 odd = (u32x16)(value != value);
    return __builtin_convertvector((odd & 0x7fc0u) | (~odd & rounded), u16x16);
}

/* The units of inputs [at, at + 16) of a row, zeros from k on; how many there are. */
LLAMAC_KERNEL size_t llamac_take_units(llamac_unit to[16], const float *x, size_t at, size_t k, int type) {
    const f32x16 value = at + 16 <= k ? llamac_load(x + at) : llamac_load_part(x + at, k - at);
    const u16x16 rounded = llamac_round_bf16(value);
    if (llamac_is_pairs(type))
        memcpy(to, &rounded, sizeof rounded);
    else
        memcpy(to, &value, sizeof value);
    return llamac_units(llamac_smaller(16, k - at), type);
}

/* Rows of a tile, and of one with few rows. */
LLAMAC_KERNEL size_t llamac_dense_rows(int type) {
    return llamac_in_tiles(type) ? LLAMAC_TILE_ROWS * 2 : LLAMAC_DENSE_ROWS;
}
LLAMAC_KERNEL size_t llamac_dense_few_rows(int type) {
    return llamac_in_tiles(type) ? LLAMAC_TILE_ROWS : LLAMAC_DENSE_FEW_ROWS;
}
/* Units of a packed row. */
LLAMAC_KERNEL size_t llamac_packed_units(size_t k, int type) {
    return llamac_in_tiles(type) ? llamac_round_up(llamac_units(k, type), LLAMAC_TILE_UNITS) : llamac_units(k, type);
}

/* One tile of `row_count` rows (a literal), of which rows after `last_row` repeat it: [unit][row], and with AMX
 * [16 units][row][unit]. */
LLAMAC_KERNEL void llamac_pack_units(const int row_count, llamac_unit *to, const float *x, size_t ldx, size_t last_row,
                                     size_t k, int type) {
    for (size_t r = 0; r < (size_t)row_count; r++) {
        const float *row = x + (r < last_row ? r : last_row) * ldx;
        for (size_t at = 0; at < k; at += 16) {
            llamac_unit units[16];
            const size_t count = llamac_take_units(units, row, at, k, type), first = llamac_units(at, type);
            if (llamac_in_tiles(type)) {
                llamac_pack_tile_units(to + r * LLAMAC_TILE_UNITS, row_count, units, first, count, at + 16 >= k);
                continue;
            }
            for (size_t i = 0; i < count; i++) to[(first + i) * row_count + r] = units[i];
        }
    }
}

/* A tile of `row_count` rows times `panel_count` panels (both literals), `apart` bytes from one another, over `units`
 * units of inputs: sums[row][2][16] grows by it. The lines [next, next_end) of the first panel to follow are fetched
 * meanwhile, with those of the second. */
LLAMAC_KERNEL void llamac_dense_tile(const int row_count, const int panel_count, float *sums, const llamac_unit *x,
                                     const uint8_t *panel, size_t apart, size_t units, int is_first,
                                     const uint8_t *next, const uint8_t *next_end, int type) {
    f32x16 acc[LLAMAC_DENSE_ROWS][LLAMAC_DENSE_PANELS];
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
        acc[r][p] = is_first ? llamac_splat(0.0f) : llamac_load(sums + (r * 2 + p) * 16);
    for (size_t i = 0; i < units; i++, x += row_count) {
        llamac_unit_weights w[LLAMAC_DENSE_PANELS];
        if (next < next_end) {
            LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) __builtin_prefetch(next + p * apart, 0, 3);
            next += 64;
        }
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) 
            w[p] = llamac_load_unit(panel + p * apart + i * llamac_unit_bytes(type), type);
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
            LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
                acc[r][p] = llamac_dot_unit(acc[r][p], &w[p], x[r], type);
        }
    }
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
        llamac_store(sums + (r * 2 + p) * 16, acc[r][p]);
}

/* A block of rows times a pair of panels: sums[rows][2][16] becomes their products. `apart` is the distance to the second
 * panel, 0 where there is none; `next` is the pair to be fetched meanwhile, `panel` itself where there is none. */
LLAMAC_KERNEL void llamac_dense_pair(float *sums, llamac_row_tiles rows, const uint8_t *panel, size_t apart,
                                     const uint8_t *next, size_t k, int type) {
    const size_t bytes = llamac_unit_bytes(type);
    const size_t all = llamac_units(k, type), tiles = rows.tiles + rows.few_tiles, packed = llamac_packed_units(k, type);
    const size_t passes = LLAMAC_DENSE_PANELS == 2 ? 1 : apart ? 2 : 1;
    if (llamac_in_tiles(type)) llamac_begin_pair_tiles();
    for (size_t done = 0; done < all; done += LLAMAC_DENSE_SECTION) {
        const size_t here = llamac_smaller(LLAMAC_DENSE_SECTION, all - done), after = done + here;
        const uint8_t *follows = after < all ? panel + after * bytes : next;
        const size_t left = after < all ? all - after : next == panel ? 0 : all;
        const size_t following = llamac_smaller(LLAMAC_DENSE_SECTION, left);
        llamac_tile_section section;
        if (llamac_in_tiles(type)) llamac_take_section(&section, panel + done * bytes, apart, here, type);
        for (size_t pass = 0; pass < passes; pass++) {
            const llamac_unit *x = (const llamac_unit *)rows.packed;
            float *to = sums + pass * 16;
            for (size_t t = 0; t < tiles; t++) {
                const size_t size = t < rows.tiles ? llamac_dense_rows(type) : llamac_dense_few_rows(type);
                const uint8_t *fetch = follows + pass * apart + following * bytes / 64 * t / tiles * 64;
                const uint8_t *end = follows + pass * apart + following * bytes / 64 * (t + 1) / tiles * 64;
                const uint8_t *here_panel = panel + done * bytes + pass * apart;
                if (llamac_in_tiles(type) && t < rows.tiles)
                    llamac_pair_tiles(2, to, x + done * size, &section, done == 0, fetch, end, apart);
                else if (llamac_in_tiles(type))
                    llamac_pair_tiles(1, to, x + done * size, &section, done == 0, fetch, end, apart);
                else if (t < rows.tiles)
                    llamac_dense_tile(LLAMAC_DENSE_ROWS, LLAMAC_DENSE_PANELS, to, x + done * size, here_panel, apart,
                                      here, done == 0, fetch, end, type);
                else
                    llamac_dense_tile(LLAMAC_DENSE_FEW_ROWS, LLAMAC_DENSE_PANELS, to, x + done * size, here_panel,
                                      apart, here, done == 0, fetch, end, type);
                x += packed * size;
                to += size * 32;
            }
        }
    }
    if (llamac_in_tiles(type)) llamac_end_pair_tiles();
    if (llamac_has_row_scales(type))
        for (size_t row = 0; row < rows.count; row++)
            for (size_t p = 0; p < (apart ? 2 : 1); p++) {
                float *sum = sums + (row * 2 + p) * 16;
                llamac_store(sum, llamac_scale_units(llamac_load(sum), panel + p * apart, k, type));
            }
}

/* Packs a block of rows into its tiles. */
LLAMAC_KERNEL void llamac_pack_dense_rows(llamac_row_tiles rows, llamac_unit *to, const float *x, size_t ldx, size_t k,
                                         int type) {
    const size_t all = llamac_packed_units(k, type);
    size_t row = 0;
    for (size_t t = 0; t < rows.tiles + rows.few_tiles; t++) {
        const size_t size = t < rows.tiles ? rows.size : rows.few, last = llamac_smaller(rows.count - row, size) - 1;
        if (t < rows.tiles)
            llamac_pack_units((int)llamac_dense_rows(type), to, x + row * ldx, ldx, last, k, type);
        else
            llamac_pack_units((int)llamac_dense_few_rows(type), to, x + row * ldx, ldx, last, k, type);
        to += size * all;
        row += size;
    }
}

/* Several rows. Threads take contiguous ranges of pairs of panels. */
LLAMAC_KERNEL void llamac_dense_gemm(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                     size_t rows, const uint8_t *w, size_t n, size_t k, int type, const float *bias,
                                     const float *residual) {
    const size_t panels = (n + 15) / 16, panel_bytes = llamac_dense_panel_bytes(k, type);
    const size_t tile = llamac_dense_rows(type);
    const size_t most = llamac_block_rows(llamac_packed_units(k, type) * 4, LLAMAC_DENSE_BLOCK_BYTES,
                                          LLAMAC_DENSE_FEWEST_ROWS, tile);
    const size_t step = llamac_even_step(rows, most, tile);
    float *sums = (float *)th->scratch;
    uint8_t *packed = llamac_packed_rows(th, most, tile);
    size_t low, high;
    llamac_share(th, (panels + 1) / 2, &low, &high);
    for (size_t first = 0; first < rows && low < high; first += step) {
        const llamac_row_tiles tiles = llamac_cut_rows(llamac_smaller(step, rows - first), tile,
                                                       llamac_dense_few_rows(type), packed);
        llamac_pack_dense_rows(tiles, (llamac_unit *)packed, x + first * ldx, ldx, k, type);
        for (size_t pair = low; pair < high; pair++) {
            const uint8_t *panel = w + pair * 2 * panel_bytes;
            llamac_dense_pair(sums, tiles, panel, pair * 2 + 1 < panels ? panel_bytes : 0,
                              pair + 1 < high ? panel + 2 * panel_bytes : panel, k, type);
            llamac_store_pair(y + first * ldy, ldy, sums, tiles.count, pair * 2, n, bias,
                              residual ? residual + first * ldy : residual);
        }
    }
}

/* A row's units in the thread's scratch. */
LLAMAC_KERNEL const llamac_unit *llamac_take_row(const llamac_thread *th, const float *x, size_t k, int type) {
    llamac_unit *units = (llamac_unit *)th->scratch;
    for (size_t at = 0; at < k; at += 16) llamac_take_units(units + llamac_units(at, type), x, at, k, type);
    return units;
}

/* One row against several panels at once, which hides the latency of the chains: their outputs. The memory that lies
 * `ahead` of each panel is fetched on the way. */
LLAMAC_KERNEL void llamac_dense_row_panels(f32x16 out[LLAMAC_DENSE_GEMV_PANELS], const llamac_unit *inputs,
                                    const uint8_t *const panel[LLAMAC_DENSE_GEMV_PANELS], size_t ahead, size_t k,
                                    int type) {
    const size_t bytes = llamac_unit_bytes(type), units = llamac_units(k, type), together = bytes < 64 ? 64 / bytes : 1;
    if (llamac_in_tiles(type)) {
        llamac_row_as_tiles(LLAMAC_DENSE_GEMV_PANELS, out, inputs, panel, ahead, units, type);
        LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++)
            out[i] = llamac_scale_units(out[i], panel[i], k, type);
        return;
    }
    LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++) out[i] = llamac_splat(0.0f);
    for (size_t j = 0; j < units; j++) {
        LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++) {
            if (j % together == 0) __builtin_prefetch(panel[i] + ahead + j * bytes, 0, 3);
            const llamac_unit_weights w = llamac_load_unit(panel[i] + j * bytes, type);
            out[i] = llamac_dot_unit(out[i], &w, inputs[j], type);
        }
    }
    LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++)
        out[i] = llamac_scale_units(out[i], panel[i], k, type);
}

/* One row of a linear. Threads take contiguous ranges of panels. */
LLAMAC_KERNEL void llamac_dense_gemv(const llamac_thread *th, float *y, const float *x, const uint8_t *w, size_t n,
                                     size_t k, int type, const float *bias, const float *residual) {
    const size_t panel_bytes = llamac_dense_panel_bytes(k, type);
    const llamac_unit *inputs = llamac_take_row(th, x, k, type);
    size_t low, high;
    llamac_share(th, (n + 15) / 16, &low, &high);
    for (size_t p = low; p < high; p += LLAMAC_DENSE_GEMV_PANELS) {
        const uint8_t *panel[LLAMAC_DENSE_GEMV_PANELS];
        f32x16 out[LLAMAC_DENSE_GEMV_PANELS];
        LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++)
            panel[i] = w + llamac_smaller(p + i, high - 1) * panel_bytes;
        llamac_dense_row_panels(out, inputs, panel, p + LLAMAC_DENSE_GEMV_PANELS < high ? LLAMAC_DENSE_GEMV_PANELS * panel_bytes : 0,
                         k, type);
        LLAMAC_UNROLL for (size_t i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++) {
            const size_t at = (p + i) * 16;
            if (p + i < high)
                llamac_store_outputs(y + at, out[i], bias ? bias + at : bias, residual ? residual + at : residual, p + i,
                                     n);
        }
    }
}

/* y[row*ldy + j] = (residual[row*ldy + j] +) sum over k of x[row*ldx + k] W[j][k] (+ bias[j]), j < n. bias may be NULL,
 * residual NULL or y. n, k, type are literals. Threads take contiguous panel ranges. */
LLAMAC_KERNEL void llamac_linear_biased(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                        uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k, int type,
                                        const float *bias, const float *residual) {
    if (rows == 1)
        llamac_dense_gemv(th, y, x, w, n, k, type, bias, residual);
    else
        llamac_dense_gemm(th, y, ldy, x, ldx, rows, w, n, k, type, bias, residual);
}

/* The same without a bias. */
LLAMAC_KERNEL void llamac_linear_dense(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                       uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k, int type,
                                       const float *residual) {
    llamac_linear_biased(th, y, ldy, x, ldx, rows, w, n, k, type, NULL, residual);
}

#endif
