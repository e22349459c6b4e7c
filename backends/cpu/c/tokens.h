/* Attention of all tokens of an image to all of them, on joined rows [q | k | v] of `heads` heads each.
 *
 * Keys and values are first copied to pages of 256 tokens, in the form and order of arithmetic of attention.h; then every
 * query sees all keys. Where some tokens are padding, `order` names the row at each place, padding after the others:
 * queries of padding see the first `real` places only. */
#ifndef LLAMAC_TOKENS_H
#define LLAMAC_TOKENS_H

#include "attention.h"
#include "pool.h"
#include "types.h"

#define LLAMAC_MOST_TOKEN_PAGES 256

/* Adjacent pairs of the first `heads` heads of each row, rotated in place by cos, sin [rows][head_dim / 2]: every product
 * and sum rounded on its own. Threads take (row, head) ranges. */
LLAMAC_KERNEL void llamac_rope_pairs(const llamac_thread *th, float *x, size_t ldx, uint32_t rows, uint32_t heads,
                                     uint32_t head_dim, const float *cosines, const float *sines) {
    const size_t half = head_dim / 2;
    size_t low, high;
    llamac_share(th, (size_t)rows * heads, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / heads;
        float *head = x + row * ldx + unit % heads * head_dim;
        const float *c = cosines + row * half, *s = sines + row * half;
        for (size_t i = 0; i < half; i++) {
            const float even = head[2 * i], odd = head[2 * i + 1];
            const float ec = even * c[i], os = odd * s[i], oc = odd * c[i], es = even * s[i];
            head[2 * i] = ec - os;
            head[2 * i + 1] = oc + es;
        }
    }
}

LLAMAC_KERNEL uint8_t *llamac_token_page(float *pages, size_t page, size_t head, size_t heads, size_t head_dim) {
    return (uint8_t *)(pages + (page * heads + head) * 2 * head_dim * LLAMAC_PAGE);
}

/* pages [page][head] in the layout of kv_pages.h of the k and v of `rows` joined rows, the token order[place]
 * at each place (its own when order is NULL). Places beyond the last are zero. Threads take (page, head) ranges. */
LLAMAC_KERNEL void llamac_token_pages(const llamac_thread *th, float *pages, const float *qkv, size_t ld, uint32_t rows,
                                      uint32_t heads, uint32_t head_dim, const int32_t *order) {
    const size_t count = ((size_t)rows + LLAMAC_PAGE - 1) / LLAMAC_PAGE, width = (size_t)heads * head_dim;
    size_t low, high;
    llamac_share(th, count * heads, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t page = unit / heads, head = unit % heads;
        float *keys = (float *)llamac_token_page(pages, page, head, heads, head_dim);
        float *values = keys + (size_t)head_dim * LLAMAC_PAGE;
        for (size_t slot = 0; slot < LLAMAC_PAGE; slot++) {
            const size_t place = page * LLAMAC_PAGE + slot;
            float *value = values + slot * head_dim;
            if (place >= rows) {
                for (size_t d = 0; d < head_dim; d++) keys[llamac_key_place(slot, d, head_dim, LLAMAC_F32)] = value[d] = 0.0f;
                continue;
            }
            const float *key = qkv + (order ? (size_t)order[place] : place) * ld + width + head * head_dim;
            for (size_t d = 0; d < head_dim; d++) keys[llamac_key_place(slot, d, head_dim, LLAMAC_F32)] = key[d];
            memcpy(value, key + width, head_dim * sizeof *value);
        }
    }
}

/* The queries at `count` (1..8) places from `first` on, of one head; each sees the first `seen` places. */
LLAMAC_KERNEL void llamac_put_places(llamac_queries *tile, const llamac_attention_call *call, const int32_t *order,
                                     size_t first, size_t count, size_t seen, size_t head) {
    tile->count = count;
    for (size_t i = 0; i < count; i++) {
        const size_t row = order ? (size_t)order[first + i] : first + i;
        tile->query[i] = call->q + row * call->ldq + head * call->head_dim;
        tile->output[i] = call->out + row * call->ld_out + head * call->head_dim;
        tile->position[i] = (int32_t)seen - 1;
    }
}

/* out [rows][heads * head_dim]. `order` and `real` (one number) as above, or NULL: no padding. heads, head_dim, rows and
 * scale are literals. Threads take ranges of (head, 8 neighbouring places). */
LLAMAC_KERNEL void llamac_attend_tokens(const llamac_thread *th, float *out, size_t ld_out, const float *qkv, size_t ld,
                                        float *pages, uint32_t rows, uint32_t heads, uint32_t head_dim, float scale,
                                        const int32_t *order, const int32_t *real) {
    int32_t table[LLAMAC_MOST_TOKEN_PAGES];
    const size_t count = ((size_t)rows + LLAMAC_PAGE - 1) / LLAMAC_PAGE;
    for (size_t page = 0; page < count; page++) table[page] = (int32_t)page;
    const llamac_attention_call call = {
        .out = out, .ld_out = ld_out, .q = qkv, .ldq = ld, .rows = rows,
        .kv = {(uint8_t *)pages, sizeof(float) * heads * 2 * head_dim * LLAMAC_PAGE, table, (uint32_t)count},
        .heads = heads, .kv_heads = heads, .head_dim = head_dim, .type = LLAMAC_F32, .scale = scale};
    const size_t tokens = real ? (size_t)*real : rows;
    const size_t whole = (tokens + LLAMAC_MOST_QUERIES - 1) / LLAMAC_MOST_QUERIES;
    const size_t groups = whole + (rows - tokens + LLAMAC_MOST_QUERIES - 1) / LLAMAC_MOST_QUERIES;
    size_t low, high;
    llamac_share(th, groups * heads, &low, &high);
    llamac_band band = {0};
    for (size_t unit = low; unit < high; unit++) {
        const size_t head = unit / groups, group = unit % groups;
        const size_t first = group < whole ? group * LLAMAC_MOST_QUERIES : tokens + (group - whole) * LLAMAC_MOST_QUERIES;
        const size_t end = group < whole ? tokens : rows;
        if (band.count == LLAMAC_BAND_TILES || (band.count && band.kv_head != head)) {
            llamac_attend_band(th, &band, &call);
            band.count = 0;
        }
        band.kv_head = head;
        llamac_put_places(&band.tile[band.count++], &call, order, first,
                          llamac_smaller(end - first, LLAMAC_MOST_QUERIES), group < whole ? rows : tokens, head);
    }
    if (band.count) llamac_attend_band(th, &band, &call);
}

#endif
