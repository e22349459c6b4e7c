/* Mixtures of experts: which token goes to which expert, and the products expert by expert.
 *
 * A slot is one choice of one token: slot t * k + i is token t's i-th best expert, of equal logits the lower number
 * first. Routed rows are the slots sorted by expert, in order of slots. NaN counts as the lowest logit. */
#ifndef LLAMAC_ROUTING_H
#define LLAMAC_ROUTING_H

#include "grouped_gemm.h"
#include "linear_dense.h"
#include "linear_grouped.h"
#include "panels.h"
#include "pool.h"
#include "types.h"

/* The i-th best expert of a row of logits; `taken` are the i experts before it. */
LLAMAC_KERNEL int32_t llamac_best_expert(const float *logits, uint32_t experts, const int32_t *taken, size_t i) {
    int32_t best = -1;
    float most = 0.0f;
    for (uint32_t e = 0; e < experts; e++) {
        int is_taken = 0;
        for (size_t j = 0; j < i; j++) is_taken |= taken[j] == (int32_t)e;
        if (is_taken) continue;
        const float logit = logits[e] == logits[e] ? logits[e] : -__builtin_inff();
        if (best < 0 || logit > most) {
            best = (int32_t)e;
            most = logit;
        }
    }
    return best;
}

/* order[routed row] = slot, place[slot] = routed row, scores[routed row] = sigmoid(logit), offsets[expert] = first
 * routed row of the expert, offsets[experts] = all; counts[expert] grows by the rows that it gets. One thread does it: a
 * few comparisons for each logit. */
LLAMAC_KERNEL void llamac_route(const llamac_thread *th, int32_t *order, int32_t *place, float *scores,
                                int32_t *offsets, uint64_t *counts, const float *logits, size_t ld, uint32_t rows,
                                uint32_t experts, uint32_t k) {
    if (th->id != 0) return;
    for (uint32_t e = 0; e <= experts; e++) offsets[e] = 0;
    for (size_t row = 0; row < rows; row++) {
        int32_t *chosen = place + row * k; /* holds expert numbers until the second pass */
        for (size_t i = 0; i < k; i++) {
            chosen[i] = llamac_best_expert(logits + row * ld, experts, chosen, i);
            offsets[chosen[i] + 1]++;
        }
    }
    for (uint32_t e = 0; e < experts; e++) {
        counts[e] += (uint64_t)offsets[e + 1];
        offsets[e + 1] += offsets[e];
    }
    int32_t next[experts];
    for (uint32_t e = 0; e < experts; e++) next[e] = offsets[e];
    for (size_t slot = 0; slot < (size_t)rows * k; slot++) {
        const int32_t expert = place[slot], routed = next[expert]++;
        const f32x16 negated = llamac_splat(-logits[slot / k * ld + (size_t)expert]);
        order[routed] = (int32_t)slot;
        place[slot] = routed;
        scores[routed] = 1.0f / (1.0f + llamac_exp(negated)[0]);
    }
}

/* y[routed row] = score * x[its token], `count` routed rows of `width`. Threads take contiguous ranges. */
LLAMAC_KERNEL void llamac_gather_routed(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                        const int32_t *order, const float *scores, uint32_t count, uint32_t width,
                                        uint32_t k) {
    const size_t chunks = ((size_t)width + 15) / 16;
    size_t low, high;
    llamac_share(th, count * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, at = unit % chunks * 16, lanes = at + 16 <= width ? 16 : width % 16;
        const f32x16 value = llamac_load_part(x + (size_t)order[row] / k * ldx + at, lanes) * scores[row];
        llamac_store_part(y + row * ldy + at, value, lanes);
    }
}

/* y[token] = base[token] + its routed rows, best expert first; y may be base. Threads take ranges of (row, chunk). */
LLAMAC_KERNEL void llamac_scatter_routed(const llamac_thread *th, float *y, size_t ldy, const float *routed,
                                         size_t ld, const int32_t *place, const float *base, size_t ld_base,
                                         uint32_t rows, uint32_t width, uint32_t k) {
    const size_t chunks = ((size_t)width + 15) / 16;
    size_t low, high;
    llamac_share(th, rows * chunks, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit / chunks, at = unit % chunks * 16, lanes = at + 16 <= width ? 16 : width % 16;
        f32x16 sum = llamac_load_part(base + row * ld_base + at, lanes);
        for (size_t i = 0; i < k; i++) sum += llamac_load_part(routed + (size_t)place[row * k + i] * ld + at, lanes);
        llamac_store_part(y + row * ldy + at, sum, lanes);
    }
}

/* Routed rows times the matrix of their expert: the products of llamac_linear_dense over each expert's rows. Experts of
 * n rows fill whole panels, so expert e starts at panel e * n / 16. Experts without a row cost nothing. */
LLAMAC_KERNEL void llamac_expert_dense(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                       const int32_t *offsets, const uint8_t *w, uint32_t n, uint32_t k,
                                       uint32_t experts, int type) {
    const size_t expert_bytes = (size_t)n / 16 * llamac_dense_panel_bytes(k, type);
    for (size_t e = 0; e < experts; e++) {
        const size_t first = (size_t)offsets[e], rows = (size_t)offsets[e + 1] - first;
        if (rows)
            llamac_linear_dense(th, y + first * ldy, ldy, x + first * ldx, ldx, (uint32_t)rows, w + e * expert_bytes, n,
                                k, type, NULL);
    }
}

/* The same for grouped weights and quantized rows. */
LLAMAC_KERNEL void llamac_expert_grouped(const llamac_thread *th, float *y, size_t ldy, llamac_quantized x,
                                         const int32_t *offsets, const uint8_t *w, uint32_t n, uint32_t k,
                                         uint32_t experts, llamac_grouped format) {
    const size_t expert_bytes = (size_t)n / 16 * llamac_grouped_panel_bytes(k, format);
    const size_t padded = llamac_padded_k(k, format.group), blocks = padded / llamac_block(format.group);
    for (size_t e = 0; e < experts; e++) {
        const size_t first = (size_t)offsets[e], rows = (size_t)offsets[e + 1] - first;
        const llamac_quantized part = {x.q + first * padded, x.scale + first * blocks, x.sum + first * blocks};
        if (rows)
            llamac_linear_grouped(th, y + first * ldy, ldy, part, (uint32_t)rows, w + e * expert_bytes, n, k, format,
                                  NULL);
    }
}

#endif
