/* A page of keys and values as attention reads it, and what it gives each query. */
#ifndef LLAMAC_ATTENTION_VIEW_H
#define LLAMAC_ATTENTION_VIEW_H

#include "kv_pages.h"
#include "types.h"

#define LLAMAC_LOG2_E 1.4426950408889634f

#define LLAMAC_PREFETCH_BYTES 16384 /* how far ahead of its reads a page is asked for */
#if defined(__AVX512F__)
#define LLAMAC_MOST_QUERIES 8       /* query vectors that share the loads of K and V */
#define LLAMAC_ATTENTION_VECTORS 16 /* accumulators of a tile: queries x vectors of keys or of dims */
#else
#define LLAMAC_MOST_QUERIES 4
#define LLAMAC_ATTENTION_VECTORS 4
#endif

/* What a page gives each query: scores (then weights) of its keys, their maximum and sum. No query sees the keys before
 * `from`: only the first page of a chunk hides any. */
typedef struct {
    size_t from, most; /* most: keys of this page that some query sees lie before it */
    _Alignas(64) float weight[LLAMAC_MOST_QUERIES][LLAMAC_PAGE];
    size_t valid[LLAMAC_MOST_QUERIES]; /* keys of this page up to the query's position: 0..256 */
    float maximum[LLAMAC_MOST_QUERIES], sum[LLAMAC_MOST_QUERIES];
} llamac_page_state;

/* One KV head's part of a page, and where the reads that follow it begin (NULL: nowhere). All sizes are literals. */
typedef struct {
    const uint8_t *scales, *keys, *values, *next;
    size_t head_dim, width; /* width: floats between the running values of two queries */
    int type;
    float scale;
} llamac_page;

LLAMAC_KERNEL llamac_page llamac_page_at(const uint8_t *head, const uint8_t *next, size_t head_dim, int type,
                                         float scale) {
    const uint8_t *keys = head + llamac_kv_scales(type);
    const uint8_t *values = keys + head_dim * LLAMAC_PAGE * llamac_kv_element(type);
    return (llamac_page){head, keys, values, next, head_dim, llamac_round_up(head_dim, 16), type, scale};
}

/* Asks for the cache lines of `bytes` bytes, LLAMAC_PREFETCH_BYTES after `from`; beyond the page's end for those of
 * the next. */
LLAMAC_KERNEL void llamac_prefetch_page(const llamac_page *page, const uint8_t *from, size_t bytes) {
    if (!page->next) return;
    const size_t ahead = (size_t)(from - page->scales) + LLAMAC_PREFETCH_BYTES;
    const size_t size = llamac_kv_head_bytes(page->head_dim, page->type);
    const uint8_t *start = ahead < size ? page->scales + ahead : page->next + (ahead - size);
    LLAMAC_UNROLL for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(start + at, 0, 2);
}

/* Vectors of a tile for `count` queries: a power of two, at most 8. */
LLAMAC_KERNEL int llamac_tile_vectors(int count) {
    const int most = LLAMAC_ATTENTION_VECTORS / count;
    return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

/* 16 scores of query i from key `at` on; those of keys that it does not see are -inf. `hides` (whether a page may begin
 * with keys that nobody sees) is a literal. */
LLAMAC_KERNEL void llamac_put_scores(llamac_page_state *state, size_t i, size_t at, f32x16 score, const int hides) {
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 hidden = llamac_splat(-__builtin_inff());
    score = lane < (int32_t)state->valid[i] - (int32_t)at ? score : hidden;
    if (hides) score = lane >= (int32_t)state->from - (int32_t)at ? score : hidden;
    llamac_store(&state->weight[i][at], score);
}

#endif
