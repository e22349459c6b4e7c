/* The paged KV cache: where the keys and values of a position lie, and writing them.
 *
 * A page holds 256 positions: [layer][kv head][K, then V], of f32, f16, bf16 or int8. K is cut into panels of 16 keys,
 * [panel][head_dim][16], V is [256][head_dim], so that a page is read from one end to the other. int8 has a scale for
 * each key and each value of a head, f16 [K: 256, V: 256], in front of K. Position t of sequence s is in page
 * page_tables[s * pages_per_sequence + t / 256], slot t % 256. */
#ifndef LLAMAC_KV_PAGES_H
#define LLAMAC_KV_PAGES_H

#include "pool.h"
#include "rope.h"
#include "types.h"

#define LLAMAC_PAGE 256
#define LLAMAC_MOST_HEAD_DIM 256

/* A further element type of the cache: int8 times an f16 scale of its head and position. */
enum { LLAMAC_KV_I8 = 16 };

typedef int8_t llamac_kv_bytes __attribute__((ext_vector_type(16)));

typedef struct {
    uint8_t *base;
    uint64_t page_bytes;
    const int32_t *page_tables;
    uint32_t pages_per_sequence;
} llamac_kv;

LLAMAC_KERNEL size_t llamac_kv_element(int type) { return type == LLAMAC_KV_I8 ? 1 : llamac_element_bytes(type); }

/* Bytes of the scales in front of K: none but for int8. */
LLAMAC_KERNEL size_t llamac_kv_scales(int type) {
    return type == LLAMAC_KV_I8 ? 2 * LLAMAC_PAGE * sizeof(_Float16) : 0;
}

LLAMAC_KERNEL size_t llamac_kv_head_bytes(size_t head_dim, int type) {
    return llamac_kv_scales(type) + 2 * head_dim * LLAMAC_PAGE * llamac_kv_element(type);
}

/* Where the part of (sequence, page of the sequence, layer, kv head) starts. */
LLAMAC_KERNEL uint8_t *llamac_kv_head(llamac_kv kv, size_t sequence, size_t page, size_t layer, size_t kv_heads,
                                      size_t kv_head, size_t head_dim, int type) {
    const size_t physical = (size_t)kv.page_tables[sequence * kv.pages_per_sequence + page];
    return kv.base + physical * kv.page_bytes + (layer * kv_heads + kv_head) * llamac_kv_head_bytes(head_dim, type);
}

/* Where element d of a slot's key lies among the elements of K; the next d is 16 further. */
LLAMAC_KERNEL size_t llamac_key_place(size_t slot, size_t d, size_t head_dim) {
    return (slot / 16 * head_dim + d) * 16 + slot % 16;
}

/* 16 consecutive elements of K or V as f32, int8 without its scale. */
LLAMAC_KERNEL f32x16 llamac_kv_load(const uint8_t *from, int type) {
    if (type != LLAMAC_KV_I8) return llamac_load_type(from, type);
    llamac_kv_bytes q;
    memcpy(&q, from, sizeof q);
    return __builtin_convertvector(__builtin_convertvector(q, i32x16), f32x16);
}
LLAMAC_KERNEL f32x16 llamac_kv_load_part(const uint8_t *from, int type, size_t lanes) {
    if (lanes >= 16) return llamac_kv_load(from, type);
    uint8_t bytes[64] = {0};
    memcpy(bytes, from, lanes * llamac_kv_element(type));
    return llamac_kv_load(bytes, type);
}

/* 16 of the f16 scales in front of K. */
LLAMAC_KERNEL f32x16 llamac_kv_scale(const uint8_t *scales, size_t first) {
    return llamac_load_type(scales + first * sizeof(_Float16), LLAMAC_F16);
}

/* The scale of a head's x: the largest |x| over 127, rounded to f16; infinite or NaN where some x is. */
LLAMAC_KERNEL _Float16 llamac_head_scale(const float *x, size_t head_dim) {
    uint32_t most = 0; /* bits of |x|: ordered like the values, NaN above all */
    for (size_t d = 0; d < head_dim; d++) {
        uint32_t bits;
        memcpy(&bits, &x[d], sizeof bits);
        bits &= 0x7fffffffu;
        if (bits > most) most = bits;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    return (_Float16)(largest / 127.0f);
}

/* x / scale to the nearest integer within -127..127, ties to even; 0 for a NaN, which the scale shows. */
LLAMAC_KERNEL int8_t llamac_to_int8(float x, float inverse) {
    const float magic = 12582912.0f, scaled = x * inverse;
    const float within = scaled > 127.0f ? 127.0f : scaled < -127.0f ? -127.0f : scaled == scaled ? scaled : 0.0f;
    return (int8_t)(within + magic - magic);
}

/* Elements of one head into their slot, the first at `to`, `stride` elements apart; its scale too for int8. */
LLAMAC_KERNEL void llamac_kv_put(uint8_t *to, size_t stride, uint8_t *scale, int type, const float *x,
                                 size_t head_dim) {
    if (type != LLAMAC_KV_I8) {
        for (size_t d = 0; d < head_dim; d++) llamac_put(to + d * stride * llamac_element_bytes(type), type, x[d]);
        return;
    }
    const _Float16 rounded = llamac_head_scale(x, head_dim);
    const float inverse = (float)rounded > 0.0f ? 1.0f / (float)rounded : 0.0f;
    memcpy(scale, &rounded, sizeof rounded);
    for (size_t d = 0; d < head_dim; d++) to[d * stride] = (uint8_t)llamac_to_int8(x[d], inverse);
}

/* Writes k and v [rows][kv_heads * head_dim] into their slots, k rotated by cos, sin [rows][head_dim / 2] on the way
 * (as it is when cosines is NULL). All are of sequence 0 when sequence_of_token is NULL. Threads take ranges of
 * (kv head, row). */
LLAMAC_KERNEL void llamac_kv_append(const llamac_thread *th, llamac_kv kv, uint32_t layer, uint32_t kv_heads,
                                    uint32_t head_dim, int type, const float *k, size_t ldk, const float *v, size_t ldv,
                                    uint32_t rows, const int32_t *positions, const int32_t *sequence_of_token,
                                    const float *cosines, const float *sines) {
    const size_t bytes = llamac_kv_element(type), half = head_dim / 2;
    size_t low, high;
    llamac_share(th, (size_t)rows * kv_heads, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit % rows, head = unit / rows, slot = (size_t)positions[row] % LLAMAC_PAGE;
        const size_t sequence = sequence_of_token ? (size_t)sequence_of_token[row] : 0;
        uint8_t *scales = llamac_kv_head(kv, sequence, (size_t)positions[row] / LLAMAC_PAGE, layer, kv_heads, head,
                                         head_dim, type);
        uint8_t *keys = scales + llamac_kv_scales(type), *values = keys + head_dim * LLAMAC_PAGE * bytes;
        const float *key = k + row * ldk + head * head_dim, *value = v + row * ldv + head * head_dim;
        float rotated[LLAMAC_MOST_HEAD_DIM];
        if (cosines) {
            llamac_rope_head(rotated, key, head_dim, cosines + row * half, sines + row * half);
            key = rotated;
        }
        uint8_t *const key_scale = scales + slot * sizeof(_Float16);
        uint8_t *const value_scale = key_scale + LLAMAC_PAGE * sizeof(_Float16);
        llamac_kv_put(keys + llamac_key_place(slot, 0, head_dim) * bytes, 16, key_scale, type, key, head_dim);
        llamac_kv_put(values + slot * head_dim * bytes, 1, value_scale, type, value, head_dim);
    }
}

#endif
