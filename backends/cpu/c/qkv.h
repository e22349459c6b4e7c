/* q, k and v in one product whose results never leave the caches of the core that made them: heads are normed, tempered
 * and rotated there, keys and values go to their places in the pages, q to its rows.
 *
 * The weight's rows are [q heads | k heads | v heads]; a head of head_dim (a multiple of 16) rows fills whole panels.
 * Threads take contiguous ranges of pairs of panels. What the rotation needs of a head lies in a pair: panel i of its
 * first half and panel i of its second. So a thread's range may begin anywhere inside a head, unless that is normed or
 * quantized as a whole, or its panels have no such halves; then the range begins with the head. Products are those of
 * llamac_linear_grouped and llamac_linear_dense, the rest that of llamac_norm_heads, llamac_temper_heads,
 * llamac_rope_rows and llamac_kv_append, bit for bit. */
#ifndef LLAMAC_QKV_H
#define LLAMAC_QKV_H

#include "grouped_gemm.h"
#include "heads.h"
#include "kv_pages.h"
#include "linear_dense.h"
#include "linear_grouped.h"
#include "pool.h"
#include "rope.h"
#include "row_tiles.h"
#include "types.h"

/* What becomes of the heads. heads, kv_heads, head_dim, type, qk_eps (negative: no norm), floor (0: no temperature) and
 * scale are literals; cosines and sines [rows][head_dim / 2] are NULL where nothing is rotated. */
typedef struct {
    float *q;
    size_t ldq;
    llamac_kv kv;
    uint32_t layer, heads, kv_heads, head_dim;
    int type;
    float qk_eps, floor, scale;
    const float *cosines, *sines;
    const int32_t *positions, *sequence_of_token;
} llamac_qkv;

/* Pairs of panels of a head: of 16, 48, ... rows the last one has one panel. */
LLAMAC_KERNEL size_t llamac_head_pairs(size_t head_dim) { return (head_dim / 16 + 1) / 2; }

/* Whether the pairs of a q head, of a k or v head have to be made by one thread. */
LLAMAC_KERNEL int llamac_keeps_heads(llamac_qkv to, int is_query) {
    return to.head_dim % 32 != 0 || to.qk_eps >= 0.0f || (!is_query && to.type == LLAMAC_KV_I8);
}

/* Where a thread's range begins that should begin with pair `pair`. */
LLAMAC_KERNEL size_t llamac_qkv_cut(llamac_qkv to, size_t pair) {
    const size_t pairs = llamac_head_pairs(to.head_dim);
    return llamac_keeps_heads(to, pair < to.heads * pairs) ? pair - pair % pairs : pair;
}
LLAMAC_KERNEL void llamac_share_heads(const llamac_thread *th, llamac_qkv to, size_t *low, size_t *high) {
    llamac_share(th, (to.heads + 2 * to.kv_heads) * llamac_head_pairs(to.head_dim), low, high);
    *low = llamac_qkv_cut(to, *low);
    *high = llamac_qkv_cut(to, *high);
}

/* A part of a head: `count` of its pairs from `first` on. Its values lie as [first halves][second halves], which for a
 * whole head is their own order. */
typedef struct {
    size_t head, first, count;
} llamac_head_part;

LLAMAC_KERNEL size_t llamac_part_panels(llamac_qkv to, llamac_head_part part) {
    return part.count == llamac_head_pairs(to.head_dim) ? to.head_dim / 16 : 2 * part.count;
}
/* The panel of the weight that gives values [16 * slot, 16 * slot + 16) of a part. */
LLAMAC_KERNEL size_t llamac_part_panel(llamac_qkv to, llamac_head_part part, size_t slot) {
    const size_t panels = to.head_dim / 16, half = slot < part.count ? 0 : panels / 2 - part.count;
    return part.head * panels + (part.count == llamac_head_pairs(to.head_dim) ? slot : part.first + half + slot);
}

/* Puts a part of a key, or of a value (is_value, a literal), into its slot of the page's part `page`. */
LLAMAC_KERNEL void llamac_put_part(const int is_value, uint8_t *page, size_t slot, llamac_qkv to,
                                   llamac_head_part part, const float *x) {
    const size_t width = 16 * part.count;
    if (part.count == llamac_head_pairs(to.head_dim)) {
        llamac_kv_put(is_value, page, slot, to.head_dim, to.type, x, 0, to.head_dim);
        return;
    }
    for (size_t half = 0; half < 2; half++)
        llamac_kv_put(is_value, page, slot, to.head_dim, to.type, x + half * width,
                      half * to.head_dim / 2 + 16 * part.first, width);
}

LLAMAC_KERNEL void llamac_cache_part(llamac_qkv to, llamac_head_part part, size_t row, const float *x) {
    const size_t kv_head = (part.head - to.heads) % to.kv_heads, slot = (size_t)to.positions[row] % LLAMAC_PAGE;
    uint8_t *page = llamac_kv_head(to.kv, (size_t)to.sequence_of_token[row], (size_t)to.positions[row] / LLAMAC_PAGE,
                                   to.layer, to.kv_heads, kv_head, to.head_dim, to.type);
    if (part.head - to.heads < to.kv_heads) llamac_put_part(0, page, slot, to, part, x);
    else llamac_put_part(1, page, slot, to, part, x);
}

/* Everything that follows the product: `x` holds a part of a row's head, and is worked on. */
LLAMAC_KERNEL void llamac_finish_part(llamac_qkv to, llamac_head_part part, size_t row, float *x) {
    const size_t half = to.head_dim / 2, width = 16 * llamac_part_panels(to, part);
    if (part.head < to.heads + to.kv_heads) {
        if (to.qk_eps >= 0.0f) {
            const float factor = llamac_rms_factor(x, to.head_dim, to.qk_eps);
            for (size_t d = 0; d < to.head_dim; d++) x[d] *= factor;
        }
        if (part.head < to.heads && to.floor > 0.0f) {
            const float factor = llamac_temperature(to.positions[row], to.floor, to.scale);
            for (size_t d = 0; d < width; d++) x[d] *= factor;
        }
        if (to.cosines)
            llamac_rope_head(x, x, (uint32_t)width, to.cosines + row * half + 16 * part.first,
                             to.sines + row * half + 16 * part.first);
    }
    if (part.head >= to.heads) {
        llamac_cache_part(to, part, row, x);
        return;
    }
    float *q = to.q + row * to.ldq + part.head * to.head_dim;
    if (part.count == llamac_head_pairs(to.head_dim)) {
        memcpy(q, x, width * sizeof(float));
    } else {
        memcpy(q + 16 * part.first, x, width / 2 * sizeof(float));
        memcpy(q + half + 16 * part.first, x + width / 2, width / 2 * sizeof(float));
    }
}

/* The part of a head that begins with pair `pair` of all and ends within [.., high). */
LLAMAC_KERNEL llamac_head_part llamac_part_at(llamac_qkv to, size_t pair, size_t high) {
    const size_t pairs = llamac_head_pairs(to.head_dim), first = pair % pairs;
    return (llamac_head_part){pair / pairs, first, llamac_smaller(pairs - first, high - pair)};
}

/* One row of quantized activations. */
LLAMAC_KERNEL void llamac_qkv_row_grouped(const llamac_thread *th, llamac_qkv to, llamac_quantized x, const uint8_t *w,
                                          size_t k, llamac_grouped format) {
    const size_t panel_bytes = llamac_grouped_panel_bytes(k, format);
    _Alignas(64) float values[LLAMAC_MOST_HEAD_DIM];
    size_t low, high;
    llamac_share_heads(th, to, &low, &high);
    for (size_t pair = low; pair < high;) {
        const llamac_head_part part = llamac_part_at(to, pair, high);
        const size_t panels = llamac_part_panels(to, part);
        const uint8_t *panel = w + llamac_part_panel(to, part, 0) * panel_bytes;
        for (size_t slot = 0; slot < panels; slot++) {
            const size_t follows = slot + 1 < panels ? llamac_part_panel(to, part, slot + 1) : (part.head + 1) * to.head_dim / 16;
            const uint8_t *next = slot + 1 < panels || pair + part.count < high ? w + follows * panel_bytes : panel;
            llamac_store(values + 16 * slot, llamac_grouped_gemv_panel(x, panel, next, k, format));
            panel = next;
        }
        llamac_finish_part(to, part, 0, values);
        pair += part.count;
    }
}

/* Several rows are multiplied with a pair of panels at a time; these are the first panel and the distance to the second
 * (0: there is none) of pair number `pair` of the range. Heads that are finished as a whole go through theirs in order. */
typedef struct {
    size_t panel, apart;
} llamac_pair_panels;

LLAMAC_KERNEL llamac_pair_panels llamac_panels_of_pair(llamac_qkv to, size_t pair, int is_whole) {
    const size_t pairs = llamac_head_pairs(to.head_dim), panels = to.head_dim / 16, first = pair % pairs;
    if (!is_whole) return (llamac_pair_panels){pair / pairs * panels + first, panels / 2};
    return (llamac_pair_panels){pair / pairs * panels + 2 * first, 2 * first + 1 < panels ? 1 : 0};
}

/* The sums [rows][2][16] of a pair: finished at once, or put into their heads [rows][head_dim] until these are complete. */
LLAMAC_KERNEL void llamac_finish_pair(llamac_qkv to, size_t pair, int is_whole, size_t first_row, size_t rows, float *sums,
                                      float *heads) {
    const size_t pairs = llamac_head_pairs(to.head_dim), number = pair % pairs, width = to.head_dim;
    if (!is_whole || pairs == 1) {
        const llamac_head_part part = {pair / pairs, number, 1};
        for (size_t row = 0; row < rows; row++) llamac_finish_part(to, part, first_row + row, sums + row * 32);
        return;
    }
    const size_t bytes = llamac_smaller(width - number * 32, 32) * sizeof(float);
    for (size_t row = 0; row < rows; row++) memcpy(heads + row * width + number * 32, sums + row * 32, bytes);
    if (number + 1 < pairs) return;
    const llamac_head_part part = {pair / pairs, 0, pairs};
    for (size_t row = 0; row < rows; row++) llamac_finish_part(to, part, first_row + row, heads + row * width);
}

/* Several rows of quantized activations. */
LLAMAC_KERNEL void llamac_qkv_rows_grouped(const llamac_thread *th, llamac_qkv to, llamac_quantized x, size_t rows,
                                           const uint8_t *w, size_t k, llamac_grouped format) {
    const size_t padded = llamac_padded_k(k, format.group), blocks = padded / llamac_block(format.group);
    const size_t panel_bytes = llamac_grouped_panel_bytes(k, format), queries = to.heads * llamac_head_pairs(to.head_dim);
    const size_t most = llamac_block_rows(llamac_packed_row_bytes(k, format) + to.head_dim * sizeof(float),
                                          LLAMAC_GEMM_BLOCK_BYTES, LLAMAC_GEMM_FEWEST_ROWS, LLAMAC_GEMM_ROWS);
    const size_t step = llamac_even_step(rows, most, LLAMAC_GEMM_ROWS);
    float *sums = (float *)th->scratch, *heads = sums + (most + LLAMAC_GEMM_ROWS) * 32;
    uint8_t *packed = (uint8_t *)(heads + most * to.head_dim);
    size_t low, high;
    llamac_share_heads(th, to, &low, &high);
    for (size_t first = 0; first < rows && low < high; first += step) {
        const llamac_row_tiles tiles = llamac_cut_rows(llamac_smaller(step, rows - first), LLAMAC_GEMM_ROWS,
                                                       LLAMAC_GEMM_FEW_ROWS, packed);
        const llamac_quantized part = {x.q + first * padded, x.scale + first * blocks, x.sum + first * blocks};
        llamac_pack_rows(tiles, packed, part, k, format);
        for (size_t pair = low; pair < high; pair++) {
            const int is_whole = llamac_keeps_heads(to, pair < queries);
            const llamac_pair_panels now = llamac_panels_of_pair(to, pair, is_whole);
            const size_t after = llamac_panels_of_pair(to, pair + 1, llamac_keeps_heads(to, pair + 1 < queries)).panel;
            llamac_gemm_pair(sums, tiles, w + now.panel * panel_bytes, now.apart * panel_bytes,
                             pair + 1 < high ? w + after * panel_bytes : NULL, k, format);
            llamac_finish_pair(to, pair, is_whole, first, tiles.count, sums, heads);
        }
    }
}

/* The rows of quantized activations x [rows][k] times q, k and v. k and the format are literals. */
LLAMAC_KERNEL void llamac_qkv_grouped(const llamac_thread *th, llamac_qkv to, llamac_quantized x, uint32_t rows,
                                      const uint8_t *w, uint32_t k, llamac_grouped format) {
    if (rows == 1)
        llamac_qkv_row_grouped(th, to, x, w, k, format);
    else
        llamac_qkv_rows_grouped(th, to, x, rows, w, k, format);
}

/* One row of floats. */
LLAMAC_KERNEL void llamac_qkv_row_dense(const llamac_thread *th, llamac_qkv to, const float *x, const uint8_t *w, size_t k,
                                        int type) {
    enum { TOGETHER = LLAMAC_DENSE_GEMV_PANELS };
    const size_t panel_bytes = llamac_dense_panel_bytes(k, type);
    const llamac_unit *inputs = llamac_take_row(th, x, k, type);
    _Alignas(64) float values[LLAMAC_MOST_HEAD_DIM + 16 * TOGETHER];
    size_t low, high;
    llamac_share_heads(th, to, &low, &high);
    for (size_t pair = low; pair < high;) {
        const llamac_head_part part = llamac_part_at(to, pair, high);
        const size_t panels = llamac_part_panels(to, part);
        pair += part.count;
        for (size_t slot = 0; slot < panels; slot += TOGETHER) {
            const uint8_t *panel[TOGETHER];
            f32x16 out[TOGETHER];
            LLAMAC_UNROLL for (size_t i = 0; i < TOGETHER; i++)
                panel[i] = w + llamac_part_panel(to, part, llamac_smaller(slot + i, panels - 1)) * panel_bytes;
            llamac_dense_row_panels(out, inputs, panel, pair < high ? TOGETHER * panel_bytes : 0, k, type);
            LLAMAC_UNROLL for (size_t i = 0; i < TOGETHER; i++) llamac_store(values + 16 * (slot + i), out[i]);
        }
        llamac_finish_part(to, part, 0, values);
    }
}

/* Several rows of floats. */
LLAMAC_KERNEL void llamac_qkv_rows_dense(const llamac_thread *th, llamac_qkv to, const float *x, size_t ldx, size_t rows,
                                         const uint8_t *w, size_t k, int type) {
    const size_t panel_bytes = llamac_dense_panel_bytes(k, type), queries = to.heads * llamac_head_pairs(to.head_dim);
    const size_t tile = llamac_dense_rows(type);
    const size_t most = llamac_block_rows(llamac_packed_units(k, type) * 4 + to.head_dim * sizeof(float),
                                          LLAMAC_DENSE_BLOCK_BYTES, LLAMAC_DENSE_FEWEST_ROWS, tile);
    const size_t step = llamac_even_step(rows, most, tile);
    float *sums = (float *)th->scratch, *heads = sums + (most + tile) * 32;
    uint8_t *packed = (uint8_t *)(heads + most * to.head_dim);
    size_t low, high;
    llamac_share_heads(th, to, &low, &high);
    for (size_t first = 0; first < rows && low < high; first += step) {
        const llamac_row_tiles tiles = llamac_cut_rows(llamac_smaller(step, rows - first), tile,
                                                       llamac_dense_few_rows(type), packed);
        llamac_pack_dense_rows(tiles, (llamac_unit *)packed, x + first * ldx, ldx, k, type);
        for (size_t pair = low; pair < high; pair++) {
            const int is_whole = llamac_keeps_heads(to, pair < queries);
            const llamac_pair_panels now = llamac_panels_of_pair(to, pair, is_whole);
            const size_t after = llamac_panels_of_pair(to, pair + 1, llamac_keeps_heads(to, pair + 1 < queries)).panel;
            llamac_dense_pair(sums, tiles, w + now.panel * panel_bytes, now.apart * panel_bytes,
                              w + (pair + 1 < high ? after : now.panel) * panel_bytes, k, type);
            llamac_finish_pair(to, pair, is_whole, first, tiles.count, sums, heads);
        }
    }
}

/* The same for rows of floats x [rows][k] and dense weights. */
LLAMAC_KERNEL void llamac_qkv_dense(const llamac_thread *th, llamac_qkv to, const float *x, size_t ldx, uint32_t rows,
                                    const uint8_t *w, uint32_t k, int type) {
    if (rows == 1)
        llamac_qkv_row_dense(th, to, x, w, k, type);
    else
        llamac_qkv_rows_dense(th, to, x, ldx, rows, w, k, type);
}

#endif
