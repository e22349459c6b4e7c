/* The head: logits = x W^T and, found while they are computed, the best logits of every row and a sum over all of them.
 *
 * The vocabulary is cut into strips of LLAMAC_HEAD_STRIP outputs at fixed places; threads take contiguous ranges of
 * strips. A strip's logits are computed by the same kernels as those of any linear, so their bits are the same, then
 * ranked while they lie in the cache; they go to memory only when the caller wants them. Each thread keeps a list of its
 * best, and the lists are merged in the order of the threads: larger values first, the lower id among equals. The sum of
 * exp((logit - peak) * inverse temperature) is kept a strip and added up in the order of the strips. So nothing depends
 * on the number of threads. */
#ifndef LLAMAC_HEAD_H
#define LLAMAC_HEAD_H

#include "grouped_gemm.h"
#include "linear_dense.h"
#include "linear_grouped.h"
#include "panels.h"
#include "pool.h"
#include "types.h"

#define LLAMAC_MOST_TOP 64     /* entries of a list */
#define LLAMAC_HEAD_STRIP 512  /* outputs; a multiple of the panel */
#define LLAMAC_HEAD_ROWS 32    /* rows that are ranked at a time */
#define LLAMAC_MOST_THREADS 256

/* Where the results go: `count` (1..LLAMAC_MOST_TOP) best logits of each row, [rows][count] each; entries that a row has
 * no finite or +inf logit for are id -1, value -inf. A row that holds a NaN has NaN as its first value. Unless `sums` is
 * NULL it gets, for each row, the sum of exp((logit - largest) * inverse_temperature[row]). */
typedef struct {
    uint32_t count;
    int32_t *ids;
    float *values;
    const float *inverse_temperature;
    float *sums;
} llamac_best;

/* What one thread has found so far, and the logits of its strip. */
typedef struct {
    _Alignas(64) float strip[LLAMAC_HEAD_ROWS * LLAMAC_HEAD_STRIP];
    float values[LLAMAC_HEAD_ROWS][LLAMAC_MOST_TOP];
    int32_t ids[LLAMAC_HEAD_ROWS][LLAMAC_MOST_TOP];
    int32_t has_nan[LLAMAC_HEAD_ROWS];
} llamac_ranking;

/* A ranking a thread; the peak and the sum of each strip of each row, [strips][LLAMAC_HEAD_ROWS]. */
typedef struct {
    llamac_ranking *rankings;
    float *peaks, *sums;
} llamac_head_memory;

LLAMAC_KERNEL size_t llamac_head_strips(size_t n) { return (n + LLAMAC_HEAD_STRIP - 1) / LLAMAC_HEAD_STRIP; }

/* Memory for a head of n outputs; 0 when there is none. Freed by free(memory->rankings). */
static inline int llamac_head_create(llamac_head_memory *memory, uint32_t threads, size_t n) {
    const size_t cells = llamac_head_strips(n) * LLAMAC_HEAD_ROWS;
    const size_t bytes = threads * sizeof *memory->rankings + 2 * cells * sizeof(float);
    memory->rankings = aligned_alloc(64, llamac_round_up(bytes, 64));
    if (!memory->rankings) return 0;
    memory->peaks = (float *)(memory->rankings + threads);
    memory->sums = memory->peaks + cells;
    return 1;
}

/* 16 logits from `from` on; lanes beyond the `left` (1 or more) that there are hold -inf. */
LLAMAC_KERNEL f32x16 llamac_load_logits(const float *from, size_t left) {
    if (left >= 16) return llamac_load(from);
    float lane[16];
    llamac_store(lane, llamac_splat(-__builtin_inff()));
    memcpy(lane, from, left * sizeof *from);
    return llamac_load(lane);
}

/* Puts one logit into a descending list where it belongs, behind its equals; the last entry falls off. */
static inline void llamac_insert(float *values, int32_t *ids, uint32_t count, float value, int32_t id) {
    uint32_t at = count - 1;
    for (; at > 0 && values[at - 1] < value; at--) {
        values[at] = values[at - 1];
        ids[at] = ids[at - 1];
    }
    values[at] = value;
    ids[at] = id;
}

/* Takes `width` logits of a row, of ids from `first` on, into the row's list. */
static inline void llamac_rank(llamac_ranking *own, size_t row, const float *logits, size_t first, size_t width,
                               uint32_t count) {
    float *values = own->values[row], least = values[count - 1];
    int32_t *ids = own->ids[row];
    i32x16 odd = {0};
    for (size_t at = 0; at < width; at += 16) {
        const f32x16 v = llamac_load_logits(logits + at, width - at);
        odd |= v != v;
        if (!__builtin_reduce_or(v > least)) continue;
        for (size_t lane = 0; lane < 16; lane++) {
            if (!(v[lane] > least)) continue;
            llamac_insert(values, ids, count, v[lane], (int32_t)(first + at + lane));
            least = values[count - 1];
        }
    }
    own->has_nan[row] |= __builtin_reduce_or(odd) != 0;
}

/* The largest of `width` logits, and the sum of exp((logit - largest) * inverse): 0 where none is finite. */
static inline void llamac_sum_strip(float *peak, float *sum, const float *logits, size_t width, float inverse) {
    f32x16 largest = llamac_splat(-__builtin_inff()), total = llamac_splat(0.0f);
    for (size_t at = 0; at < width; at += 16) {
        const f32x16 v = llamac_load_logits(logits + at, width - at);
        largest = v > largest ? v : largest;
    }
    *peak = llamac_max(largest);
    *sum = 0.0f;
    if (!(*peak > -__builtin_inff())) return;
    for (size_t at = 0; at < width; at += 16)
        total += llamac_exp((llamac_load_logits(logits + at, width - at) - *peak) * inverse);
    *sum = llamac_sum(total);
}

static inline void llamac_clear_ranking(llamac_ranking *own, size_t rows, uint32_t count) {
    for (size_t row = 0; row < rows; row++) {
        own->has_nan[row] = 0;
        for (uint32_t i = 0; i < count; i++) {
            own->values[row][i] = -__builtin_inff();
            own->ids[row][i] = -1;
        }
    }
}

/* Merges the threads' lists of one row (`row` of those ranked now, `out` of the step). */
static inline void llamac_merge_lists(llamac_best best, const llamac_ranking *rankings, uint32_t threads, size_t row,
                                      size_t out) {
    uint32_t next[LLAMAC_MOST_THREADS] = {0};
    int32_t has_nan = 0;
    for (uint32_t t = 0; t < threads; t++) has_nan |= rankings[t].has_nan[row];
    for (uint32_t i = 0; i < best.count; i++) {
        float value = -__builtin_inff();
        int32_t id = -1;
        uint32_t from = 0;
        for (uint32_t t = 0; t < threads; t++) {
            if (next[t] == best.count || !(rankings[t].values[row][next[t]] > value)) continue;
            value = rankings[t].values[row][next[t]];
            id = rankings[t].ids[row][next[t]];
            from = t;
        }
        next[from] += id >= 0;
        best.values[out * best.count + i] = value;
        best.ids[out * best.count + i] = id;
    }
    if (has_nan) best.values[out * best.count] = __builtin_nanf("");
}

static inline float llamac_merge_sums(const llamac_head_memory *memory, size_t strips, size_t row, float inverse) {
    float peak = -__builtin_inff();
    double total = 0.0;
    for (size_t s = 0; s < strips; s++) {
        const float here = memory->peaks[s * LLAMAC_HEAD_ROWS + row];
        peak = here > peak ? here : peak;
    }
    for (size_t s = 0; s < strips; s++) {
        const float sum = memory->sums[s * LLAMAC_HEAD_ROWS + row], here = memory->peaks[s * LLAMAC_HEAD_ROWS + row];
        if (sum > 0.0f) total += (double)(sum * llamac_exp(llamac_splat((here - peak) * inverse))[0]);
    }
    return (float)total;
}

/* Activations of a head: f32 rows, or quantized ones. */
typedef struct {
    const float *rows;
    size_t ld;
    llamac_quantized quantized;
} llamac_head_input;

/* Logits of `width` outputs from `column` on, for `count` rows from `first` on, by the calling thread alone. */
LLAMAC_KERNEL void llamac_head_strip(const llamac_thread *th, float *y, size_t ldy, llamac_head_input x, size_t first,
                                     size_t count, const uint8_t *w, size_t column, size_t width, uint32_t k,
                                     const int is_dense, int type, llamac_grouped format) {
    llamac_thread alone = *th;
    alone.id = 0;
    alone.count = 1;
    if (is_dense) {
        const uint8_t *panels = w + column / LLAMAC_PANEL * llamac_dense_panel_bytes(k, type);
        llamac_linear_dense(&alone, y, ldy, x.rows + first * x.ld, x.ld, (uint32_t)count, panels, (uint32_t)width, k,
                            type, NULL);
        return;
    }
    const size_t padded = llamac_padded_k(k, format.group), blocks = padded / llamac_block(format.group);
    const uint8_t *panels = w + column / LLAMAC_PANEL * llamac_grouped_panel_bytes(k, format);
    llamac_quantized part = {x.quantized.q + first * padded, x.quantized.scale + first * blocks,
                             x.quantized.sum + first * blocks};
    llamac_linear_grouped(&alone, y, ldy, part, (uint32_t)count, panels, (uint32_t)width, k, format, NULL);
}

/* All of it. `logits` [rows][n] may be NULL: not wanted. n, k, is_dense and the type or format are literals. */
LLAMAC_KERNEL void llamac_head(const llamac_thread *th, float *logits, llamac_best best, llamac_head_memory memory,
                               llamac_head_input x, size_t rows, const uint8_t *w, uint32_t n, uint32_t k,
                               const int is_dense, int type, llamac_grouped format) {
    const size_t strips = llamac_head_strips(n);
    llamac_ranking *own = memory.rankings + th->id;
    size_t low, high;
    llamac_share(th, strips, &low, &high);
    for (size_t first = 0; first < rows; first += LLAMAC_HEAD_ROWS) {
        const size_t count = llamac_smaller(rows - first, LLAMAC_HEAD_ROWS), ld = logits ? n : LLAMAC_HEAD_STRIP;
        llamac_clear_ranking(own, count, best.count);
        for (size_t s = low; s < high; s++) {
            const size_t column = s * LLAMAC_HEAD_STRIP, width = llamac_smaller(n - column, LLAMAC_HEAD_STRIP);
            float *y = logits ? logits + first * n + column : own->strip;
            llamac_head_strip(th, y, ld, x, first, count, w, column, width, k, is_dense, type, format);
            for (size_t row = 0; row < count; row++) {
                llamac_rank(own, row, y + row * ld, column, width, best.count);
                if (best.sums)
                    llamac_sum_strip(&memory.peaks[s * LLAMAC_HEAD_ROWS + row], &memory.sums[s * LLAMAC_HEAD_ROWS + row],
                                     y + row * ld, width, best.inverse_temperature[first + row]);
            }
        }
        llamac_barrier(th);
        for (size_t row = th->id; row < count; row += th->count) {
            llamac_merge_lists(best, memory.rankings, th->count, row, first + row);
            if (best.sums)
                best.sums[first + row] = llamac_merge_sums(&memory, strips, row, best.inverse_temperature[first + row]);
        }
        if (first + count < rows) llamac_barrier(th);
    }
}

#endif
