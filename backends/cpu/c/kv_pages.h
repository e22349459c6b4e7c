/* The paged KV cache: where the keys and values of a position lie, and writing them.
 *
 * A page holds 256 positions: [layer][kv head][K, then V], of f32, f16, bf16 or int8. K is cut into panels of 16 keys,
 * [panel][head_dim][16], V is [256][head_dim], so that a page is read from one end to the other. int8 has a scale for
 * each key and each value of a head, f16 [K: 256, V: 256], in front of K, and its elements lie in the pairs that are
 * multiplied together: K [panel][head_dim / 2][16][2], V [128][head_dim][2]. Position t of sequence s is in page
 * page_tables[s * pages_per_sequence + t / 256], slot t % 256. */
#ifndef LLAMAC_KV_PAGES_H
#define LLAMAC_KV_PAGES_H

#include "pool.h"
#include "rope.h"
#include "types.h"

#define LLAMAC_PAGE 256
#define LLAMAC_MOST_HEAD_DIM 256

/* A further element type of the cache: int8 times an f16 scale of its head and position; head_dim is even. */
enum { LLAMAC_KV_I8 = 16 };

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

/* Elements that lie side by side: of a key its d and d + 1, of values those of two slots. */
LLAMAC_KERNEL size_t llamac_kv_pair(int type) { return type == LLAMAC_KV_I8 ? 2 : 1; }

/* Where element d of a slot's key lies among the elements of K, and of a slot's value among those of V. */
LLAMAC_KERNEL size_t llamac_key_place(size_t slot, size_t d, size_t head_dim, int type) {
    const size_t pair = llamac_kv_pair(type);
    return (slot / 16 * head_dim + d / pair * pair) * 16 + slot % 16 * pair + d % pair;
}
LLAMAC_KERNEL size_t llamac_value_place(size_t slot, size_t d, size_t head_dim, int type) {
    const size_t pair = llamac_kv_pair(type);
    return (slot / pair * head_dim + d) * pair + slot % pair;
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

/* Elements first..first + count - 1 of a key, or of a value (is_value, a literal), into their slot of a head's part of a
 * page; of int8 all at once, with their scale. */
LLAMAC_KERNEL void llamac_kv_put(const int is_value, uint8_t *part, size_t slot, size_t head_dim, int type,
                                 const float *x, size_t first, size_t count) {
    const size_t bytes = llamac_kv_element(type);
    uint8_t *const to = part + llamac_kv_scales(type) + (is_value ? head_dim * LLAMAC_PAGE * bytes : 0);
    float inverse = 0.0f;
    if (type == LLAMAC_KV_I8) {
        const _Float16 rounded = llamac_head_scale(x, head_dim);
        inverse = (float)rounded > 0.0f ? 1.0f / (float)rounded : 0.0f;
        memcpy(part + (is_value * LLAMAC_PAGE + slot) * sizeof rounded, &rounded, sizeof rounded);
    }
    for (size_t i = 0; i < count; i++) {
        const size_t d = first + i;
        uint8_t *const at = to + bytes * (is_value ? llamac_value_place(slot, d, head_dim, type)
                                                   : llamac_key_place(slot, d, head_dim, type));
        if (type == LLAMAC_KV_I8) *at = (uint8_t)llamac_to_int8(x[i], inverse);
        else llamac_put(at, type, x[i]);
    }
}

/* Writes k and v [rows][kv_heads * head_dim] into their slots, k rotated by cos, sin [rows][head_dim / 2] on the way
 * (as it is when cosines is NULL). All are of sequence 0 when sequence_of_token is NULL. Threads take ranges of
 * (kv head, row). */
LLAMAC_KERNEL void llamac_kv_append(const llamac_thread *th, llamac_kv kv, uint32_t layer, uint32_t kv_heads,
                                    uint32_t head_dim, int type, const float *k, size_t ldk, const float *v, size_t ldv,
                                    uint32_t rows, const int32_t *positions, const int32_t *sequence_of_token,
                                    const float *cosines, const float *sines) {
    const size_t half = head_dim / 2;
    size_t low, high;
    llamac_share(th, (size_t)rows * kv_heads, &low, &high);
    for (size_t unit = low; unit < high; unit++) {
        const size_t row = unit % rows, head = unit / rows, slot = (size_t)positions[row] % LLAMAC_PAGE;
        const size_t sequence = sequence_of_token ? (size_t)sequence_of_token[row] : 0;
        uint8_t *part = llamac_kv_head(kv, sequence, (size_t)positions[row] / LLAMAC_PAGE, layer, kv_heads, head,
                                       head_dim, type);
        const float *key = k + row * ldk + head * head_dim, *value = v + row * ldv + head * head_dim;
        float rotated[LLAMAC_MOST_HEAD_DIM];
        if (cosines) {
            llamac_rope_head(rotated, key, head_dim, cosines + row * half, sines + row * half);
            key = rotated;
        }
        llamac_kv_put(0, part, slot, head_dim, type, key, 0, head_dim);
        llamac_kv_put(1, part, slot, head_dim, type, value, 0, head_dim);
    }
}

#endif
