/* What image encoders add, row by row: LayerNorm, GELU, class tokens, fixed rotation tables, and copies by strides. */
#ifndef LLAMAC_ENCODER_H
#define LLAMAC_ENCODER_H

#include "linear_grouped.h"
#include "pool.h"
#include "quantize_rows.h"
#include "types.h"

/* Sum of (x - center)^power of one row, power 1 or 2: 4 x 16 lanes, as llamac_rms_factor has it. */
LLAMAC_KERNEL float llamac_row_sum(const float *x, uint32_t width, float center, const int power) {
    f32x16 sum[4] = {llamac_splat(0.0f), llamac_splat(0.0f), llamac_splat(0.0f), llamac_splat(0.0f)};
    for (size_t at = 0; at < width; at += 64) LLAMAC_UNROLL for (size_t lane = 0; lane < 4; lane++) {
            const size_t first = at + 16 * lane, left = first < width ? width - first : 0;
            if (left == 0) continue;
            f32x16 v = llamac_load_part(x + first, left) - center;
            if (left < 16) {
                float kept[16] = {0};
                memcpy(kept, &v, left * sizeof *kept);
                v = llamac_load(kept);
            }
            sum[lane] = power == 2 ? llamac_fma(v, v, sum[lane]) : sum[lane] + v;
        }
    return llamac_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias, per row; y may be x. Threads take row ranges. */
LLAMAC_KERNEL void llamac_layer_norm(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                     uint32_t rows, uint32_t width, const float *weight, const float *bias, float eps) {
    size_t low, high;
    llamac_share(th, rows, &low, &high);
    for (size_t row = low; row < high; row++) {
        const float *from = x + row * ldx;
        const float mean = llamac_row_sum(from, width, 0.0f, 1) / (float)width;
        const float factor = 1.0f / __builtin_sqrtf(llamac_row_sum(from, width, mean, 2) / (float)width + eps);
        for (size_t at = 0; at < width; at += 16) {
            const size_t lanes = width - at < 16 ? width % 16 : 16;
            const f32x16 normal = (llamac_load_part(from + at, lanes) - mean) * factor;
            const f32x16 scaled = llamac_fma(normal, llamac_load_part(weight + at, lanes),
                                             llamac_load_part(bias + at, lanes));
            llamac_store_part(y + row * ldy + at, scaled, lanes);
        }
    }
}

/* 1 - erf(a / sqrt(2)) for a >= 0 as exp(-a q(a)): q is a polynomial fitted on [0, 6], which leaves an error of 4e-8;
 * beyond, where the value is below 2e-9, it is 0. So the lower tail keeps its relative precision too. */
LLAMAC_KERNEL f32x16 llamac_both_tails(f32x16 a) {
    f32x16 q = llamac_splat(-1.891964140909863e-09f);
    q = llamac_fma(q, a, llamac_splat(7.024355852536246e-08f));
    q = llamac_fma(q, a, llamac_splat(-1.1553229342098348e-06f));
    q = llamac_fma(q, a, llamac_splat(1.100361259886995e-05f));
    q = llamac_fma(q, a, llamac_splat(-6.52555245324038e-05f));
    q = llamac_fma(q, a, llamac_splat(0.00022063055075705051f));
    q = llamac_fma(q, a, llamac_splat(-3.487417779979296e-05f));
    q = llamac_fma(q, a, llamac_splat(-0.004789519123733044f));
    q = llamac_fma(q, a, llamac_splat(0.03633984178304672f));
    q = llamac_fma(q, a, llamac_splat(0.31830912828445435f));
    q = llamac_fma(q, a, llamac_splat(0.7978845834732056f));
    return a > 6.0f ? llamac_splat(0.0f) : llamac_exp(-(a * q));
}

/* x (1 + erf(x / sqrt(2))) / 2; NaN stays NaN. */
LLAMAC_KERNEL f32x16 llamac_gelu_of(f32x16 x) {
    const f32x16 tails = llamac_both_tails(x < 0.0f ? -x : x);
    return x * 0.5f * (x < 0.0f ? tails : 2.0f - tails);
}

/* y = gelu(x), rows x width; y may be x. Threads take ranges of (row, chunk). */
LLAMAC_KERNEL void llamac_gelu(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx, uint32_t rows,
                               uint32_t width) {
    const size_t chunks = ((size_t)width + 15) / 16;
    size_t low, high;
    llamac_share(th, rows * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, at = unit % chunks * 16, lanes = at + 16 <= width ? 16 : width % 16;
        llamac_store_part(y + row * ldy + at, llamac_gelu_of(llamac_load_part(x + row * ldx + at, lanes)), lanes);
    }
}

/* y [tiles * (count + 1)][width]: the `count` rows of x of each tile and `token`, before them (first) or after. */
LLAMAC_KERNEL void llamac_class_token(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                      const float *token, uint32_t tiles, uint32_t count, uint32_t width,
                                      const int first) {
    size_t low, high;
    llamac_share(th, (size_t)tiles * (count + 1), &low, &high);
    for (size_t row = low; row < high; row++) {
        const size_t tile = row / (count + 1), place = row % (count + 1);
        const int is_token = place == (first ? 0 : count);
        memcpy(y + row * ldy, is_token ? token : x + (tile * count + place - (first ? 1 : 0)) * ldx, width * sizeof *y);
    }
}

/* Cosines and sines of `count` angles. Threads take ranges. */
LLAMAC_KERNEL void llamac_cos_sin(const llamac_thread *th, float *cosines, float *sines, const float *angles,
                                  uint32_t count) {
    size_t low, high;
    llamac_share(th, count, &low, &high);
    for (size_t i = low; i < high; i++) llamac_sincos(angles[i], &sines[i], &cosines[i]);
}

#define LLAMAC_MOST_AXES 8

/* Elements i . stride for every index i of `length`, in row-major order. */
typedef struct {
    uint32_t axes, length[LLAMAC_MOST_AXES], stride[LLAMAC_MOST_AXES];
} llamac_view;

/* y, rows of `columns` (stride ldy), = the elements of a view of x; the last axis is a divisor of columns. Threads take
 * ranges of runs along the last axis. */
LLAMAC_KERNEL void llamac_rearrange(const llamac_thread *th, float *y, size_t ldy, uint32_t columns, const float *x,
                                    llamac_view view) {
    const uint32_t last = view.axes - 1, run = view.length[last];
    size_t runs = 1, low, high;
    LLAMAC_UNROLL for (uint32_t axis = 0; axis < last; axis++) runs *= view.length[axis];
    llamac_share(th, runs, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        size_t rest = unit, at = 0;
        LLAMAC_UNROLL for (uint32_t axis = last; axis-- > 0;) {
            at += rest % view.length[axis] * view.stride[axis];
            rest /= view.length[axis];
        }
        float *to = y + unit * run / columns * ldy + unit * run % columns;
        if (view.stride[last] == 1)
            memcpy(to, x + at, run * sizeof *to);
        else
            for (size_t i = 0; i < run; i++) to[i] = x[at + i * view.stride[last]];
    }
}

#endif
