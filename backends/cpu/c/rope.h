/* Rotary position embedding in the half-split form: pairs (i, i + head_dim / 2) of a head are rotated.
 *
 * angle = (float)position * inv_freq in f32, as the references have it; then y1 = x1 * cos - x2 * sin and
 * y2 = x2 * cos + x1 * sin, every product and sum rounded on its own, which are the references' bits too. */
#ifndef LLAMAC_ROPE_H
#define LLAMAC_ROPE_H

#include "pool.h"
#include "types.h"

/* cos, sin [rows][half] of positions [rows] times inv_freq [half]. Threads take contiguous ranges of angles. */
LLAMAC_KERNEL void llamac_rope_angles(const llamac_thread *th, float *cosines, float *sines, const int32_t *positions,
                                      uint32_t rows, const float *inv_freq, uint32_t half) {
    size_t low, high;
    llamac_share(th, (size_t)rows * half, &low, &high);
    for (size_t unit = low; unit < high; unit++)
        llamac_sincos((float)positions[unit / half] * inv_freq[unit % half], &sines[unit], &cosines[unit]);
}

/* One head: y[head_dim] from x[head_dim]; y may be x. */
LLAMAC_KERNEL void llamac_rope_head(float *y, const float *x, uint32_t head_dim, const float *cosines,
                                    const float *sines) {
    const size_t half = head_dim / 2;
    for (size_t i = 0; i < half; i += 16) {
        const size_t lanes = half - i < 16 ? half % 16 : 16;
        const f32x16 c = llamac_load_part(cosines + i, lanes), s = llamac_load_part(sines + i, lanes);
        const f32x16 a = llamac_load_part(x + i, lanes), b = llamac_load_part(x + half + i, lanes);
        const f32x16 ac = a * c, bs = b * s, bc = b * c, as = a * s;
        llamac_store_part(y + i, ac - bs, lanes);
        llamac_store_part(y + half + i, bc + as, lanes);
    }
}

/* x [rows][heads * head_dim] (stride ldx) in place; cos, sin [rows][head_dim / 2]. Threads take (row, head) ranges. */
LLAMAC_KERNEL void llamac_rope_rows(const llamac_thread *th, float *x, size_t ldx, uint32_t rows, uint32_t heads,
                                    uint32_t head_dim, const float *cosines, const float *sines) {
    const size_t half = head_dim / 2;
    size_t low, high;
    llamac_share(th, (size_t)rows * heads, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / heads;
        float *head = x + row * ldx + unit % heads * head_dim;
        llamac_rope_head(head, head, head_dim, cosines + row * half, sines + row * half);
    }
}

#endif
