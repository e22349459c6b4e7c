/* Changes to the first heads of joined q, k, v rows, in place: norm by root mean square, and temperature by position. */
#ifndef LLAMAC_HEADS_H
#define LLAMAC_HEADS_H

#include "pool.h"
#include "rms_norm.h"
#include "types.h"

/* x[row][h] *= 1 / sqrt(mean(x[row][h]^2) + eps), then weight (none when NULL), for the first `heads` heads of each row.
 * Threads take (row, head). */
LLAMAC_KERNEL void llamac_norm_heads(const llamac_thread *th, float *x, size_t ldx, uint32_t rows, uint32_t heads,
                                     uint32_t head_dim, const float *weight, float eps) {
    size_t low, high;
    llamac_share(th, (size_t)rows * heads, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        float *head = x + unit / heads * ldx + unit % heads * head_dim;
        const float factor = llamac_rms_factor(head, head_dim, eps);
        for (size_t d = 0; d < head_dim; d++) head[d] = weight ? head[d] * factor * weight[d] : head[d] * factor;
    }
}

/* ln(value) for value >= 1, to the last bits of a double: 2 atanh(z) of the mantissa plus the exponent's share. Plain
 * arithmetic, so that it has the same bits everywhere. */
LLAMAC_KERNEL double llamac_log(double value) {
    int exponent = 0;
    if (value - value != 0.0) return value; /* no halving ends at infinity */
    while (value > 1.4142135623730951) {
        value *= 0.5;
        exponent++;
    }
    const double z = (value - 1.0) / (value + 1.0), square = z * z;
    double sum = 0.0;
    for (int term = 23; term > 0; term -= 2) sum = sum * square + 1.0 / term;
    return 2.0 * z * sum + exponent * 0.6931471805599453;
}

/* What a row at `position` is tempered with: 1 + scale ln(1 + floor((position + 1) / floor)). */
LLAMAC_KERNEL float llamac_temperature(int32_t position, float floor, float scale) {
    const float blocks = __builtin_floorf(((float)position + 1.0f) / floor);
    return blocks < 1.0f ? 1.0f : (float)llamac_log(1.0 + (double)blocks) * scale + 1.0f;
}

/* x[row][h] *= the row's temperature for the first `heads` heads. Threads take rows. */
LLAMAC_KERNEL void llamac_temper_heads(const llamac_thread *th, float *x, size_t ldx, const int32_t *positions,
                                       uint32_t rows, uint32_t heads, uint32_t head_dim, float floor, float scale) {
    size_t low, high;
    llamac_share(th, rows, &low, &high);
    for (size_t row = low; row < high; row++) {
        const float factor = llamac_temperature(positions[row], floor, scale);
        if (factor == 1.0f) continue;
        float *first = x + row * ldx;
        for (size_t i = 0; i < (size_t)heads * head_dim; i++) first[i] *= factor;
    }
}

#endif
