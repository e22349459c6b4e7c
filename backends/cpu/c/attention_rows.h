/* One call of attention: its rows of queries, and which keys each of them sees. */
#ifndef LLAMAC_ATTENTION_ROWS_H
#define LLAMAC_ATTENTION_ROWS_H

#include "kv_pages.h"
#include "types.h"

/* The first position that a row at `position` sees: that of its chunk, 0 without chunks. */
LLAMAC_KERNEL size_t llamac_first_visible(int32_t position, uint32_t chunk) {
    return chunk ? (size_t)position / chunk * chunk : 0;
}

/* What each row sees: with `start`, the positions start[row]..stop[row] - 1; else those of its chunk up to its own. */
typedef struct {
    const int32_t *positions, *start, *stop;
    uint32_t chunk;
} llamac_seen;

LLAMAC_KERNEL size_t llamac_seen_first(llamac_seen seen, size_t row) {
    return seen.start ? (size_t)seen.start[row] : llamac_first_visible(seen.positions[row], seen.chunk);
}

LLAMAC_KERNEL int32_t llamac_seen_last(llamac_seen seen, size_t row) {
    return seen.start ? seen.stop[row] - 1 : seen.positions[row];
}

LLAMAC_KERNEL int llamac_sees_nothing(llamac_seen seen, size_t row) {
    return seen.start && seen.start[row] >= seen.stop[row];
}

/* out [rows][heads * head_dim] (stride ld_out) from q (stride ldq) and the cache, for what each row sees. heads,
 * kv_heads, head_dim, type, scale and `hides` (whether a first page may begin with keys that its rows do not see) are
 * literals; layer may be a variable. */
typedef struct {
    float *out;
    size_t ld_out;
    const float *q;
    size_t ldq, rows;
    llamac_kv kv;
    size_t layer, heads, kv_heads, head_dim;
    int type;
    float scale;
    llamac_seen seen;
    const int32_t *sequence_of_token;
    int hides;
} llamac_attention_call;

LLAMAC_KERNEL const uint8_t *llamac_call_page(const llamac_attention_call *call, size_t row, size_t kv_head,
                                              size_t number) {
    return llamac_kv_head(call->kv, (size_t)call->sequence_of_token[row], number, call->layer, call->kv_heads, kv_head,
                          call->head_dim, call->type);
}

#endif
