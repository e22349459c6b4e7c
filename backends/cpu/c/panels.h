/* Panels of dense weights: their size, and the writing of what was multiplied with them. */
#ifndef LLAMAC_PANELS_H
#define LLAMAC_PANELS_H

#include "pool.h"
#include "types.h"

LLAMAC_KERNEL size_t llamac_dense_panel_bytes(size_t k, int type) {
    if (type == LLAMAC_E4M3FN) return llamac_round_up(k, 4) * 16 + 64;
    if (type == LLAMAC_BF16_PAIRS) return (k + 1) / 2 * 64;
    if (type == LLAMAC_E4M3FN_PAIRS) return llamac_round_up((k + 1) / 2 * 32, 64) + 64;
    return llamac_round_up(k * 16 * llamac_element_bytes(type), 64);
}

/* Writes one row of one panel: the lanes below n - 16 * panel, plus the bias (which begins at the
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

LLAMAC_KERNEL size_t llamac_smaller(size_t a, size_t b) { return a < b ? a : b; }

#endif
