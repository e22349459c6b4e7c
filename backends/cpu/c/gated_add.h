/* residual + tanh(gate) x: what layers that attend to pictures add to the hidden state. */
#ifndef LLAMAC_GATED_ADD_H
#define LLAMAC_GATED_ADD_H

#include "pool.h"
#include "types.h"

/* tanh in double arithmetic alone, so that it has the same bits everywhere: Lambert's continued fraction of a sixteenth,
 * then tanh(2 t) = 2 t / (1 + t^2) four times. Exact to the last bit of a float. */
LLAMAC_KERNEL float llamac_tanh(float value) {
    const double x = value > 16.0f ? 1.0 : value < -16.0f ? -1.0 : (double)value / 16.0, square = x * x;
    double denominator = 21.0;
    for (int odd = 19; odd > 0; odd -= 2) denominator = odd + square / denominator;
    double t = x / denominator;
    for (int doubled = 0; doubled < 4; doubled++) t = 2.0 * t / (1.0 + t * t);
    return (float)t;
}

/* y[row] = residual[row] + tanh(*gate) x[row], `width` columns; y may be residual. With `ranges` (a literal), a row whose
 * range start..stop is empty is the residual alone; no row has one when start is NULL. Threads take ranges of (row, chunk). */
LLAMAC_KERNEL void llamac_gated_add(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                    const float *residual, size_t ldr, uint32_t rows, uint32_t width, const float *gate,
                                    const int ranges, const int32_t *start, const int32_t *stop) {
    const size_t chunks = ((size_t)width + 15) / 16;
    const f32x16 factor = llamac_splat(llamac_tanh(*gate));
    size_t low, high;
    llamac_share(th, rows * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, at = unit % chunks * 16, lanes = at + 16 <= width ? 16 : width % 16;
        f32x16 sum = llamac_load_part(residual + row * ldr + at, lanes);
        if (!ranges || (start && start[row] < stop[row]))
            sum = sum + llamac_load_part(x + row * ldx + at, lanes) * factor;
        llamac_store_part(y + row * ldy + at, sum, lanes);
    }
}

#endif
