/* AMX's 8-bit and bf16 tiles in plain C, so that kernels written for them run on any AVX-512 machine. It stops the program where
 * the processor would raise an exception. Included before the kernels, it takes the place of the intrinsics. */
#define _GNU_SOURCE 1
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __AMX_INT8__ 1
#define __AMX_BF16__ 1

typedef struct {
    uint16_t row_bytes;
    uint8_t rows, bytes[16][64];
} tile_model;
static _Thread_local tile_model tile_models[8];
static _Thread_local int tile_models_configured;

static inline void model_loadconfig(const void *from) {
    uint8_t config[64];
    memcpy(config, from, sizeof config);
    if (config[0] != 1 || config[1] != 0) abort();
    for (int t = 0; t < 8; t++) {
        memcpy(&tile_models[t].row_bytes, config + 16 + 2 * t, 2);
        tile_models[t].rows = config[48 + t];
        if (tile_models[t].row_bytes > 64 || tile_models[t].rows > 16) abort();
        if (!tile_models[t].row_bytes != !tile_models[t].rows) abort();
        memset(tile_models[t].bytes, 0, sizeof tile_models[t].bytes);
    }
    tile_models_configured = 1;
}
static inline void model_release(void) { tile_models_configured = 0; }
static inline tile_model *model_tile(int t) {
    if (!tile_models_configured || !tile_models[t].rows) abort();
    return &tile_models[t];
}
static inline void model_zero(int t) { memset(model_tile(t)->bytes, 0, sizeof tile_models[t].bytes); }
static inline void model_load(int t, const void *from, size_t stride) {
    tile_model *tile = model_tile(t);
    for (int r = 0; r < tile->rows; r++) memcpy(tile->bytes[r], (const char *)from + r * stride, tile->row_bytes);
}
static inline void model_store(int t, void *to, size_t stride) {
    const tile_model *tile = model_tile(t);
    for (int r = 0; r < tile->rows; r++) memcpy((char *)to + r * stride, tile->bytes[r], tile->row_bytes);
}
/* to[m][n] += the sum of a[m][k] (signed) times b[k / 4][4n + k % 4] (unsigned). */
static inline void model_dpbsud(int to, int a, int b) {
    tile_model *sums = model_tile(to), *left = model_tile(a), *right = model_tile(b);
    if (left->rows != sums->rows || right->row_bytes != sums->row_bytes || left->row_bytes != right->rows * 4) abort();
    for (int m = 0; m < sums->rows; m++)
        for (int n = 0; n < sums->row_bytes / 4; n++) {
            int32_t sum;
            memcpy(&sum, sums->bytes[m] + 4 * n, 4);
            for (int k = 0; k < left->row_bytes; k++)
                sum += (int8_t)left->bytes[m][k] * (int)right->bytes[k / 4][4 * n + k % 4];
            memcpy(sums->bytes[m] + 4 * n, &sum, 4);
        }
}
static inline float model_bf16(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
/* to[m][n] += the sum of a[m][2k] times b[k][2n], from zero on, plus that of a[m][2k + 1] times b[k][2n + 1]: fused
 * multiply-adds to nearest, with subnormal numbers taken for zero, whatever the state of the processor says. */
static __attribute__((noinline)) void model_dpbf16ps(int to, int a, int b) {
    tile_model *sums = model_tile(to), *left = model_tile(a), *right = model_tile(b);
    if (left->rows != sums->rows || right->row_bytes != sums->row_bytes || left->row_bytes != right->rows * 4) abort();
    const unsigned int before = _mm_getcsr();
    _mm_setcsr(0x9fc0);
    for (int m = 0; m < sums->rows; m++)
        for (int n = 0; n < sums->row_bytes / 4; n++) {
            volatile float even = 0, odd = 0, sum;
            for (int k = 0; k < left->row_bytes / 4; k++) {
                even = __builtin_fmaf(model_bf16(left->bytes[m] + 4 * k), model_bf16(right->bytes[k] + 4 * n), even);
                odd = __builtin_fmaf(model_bf16(left->bytes[m] + 4 * k + 2), model_bf16(right->bytes[k] + 4 * n + 2), odd);
            }
            memcpy((void *)&sum, sums->bytes[m] + 4 * n, 4);
            even = even + odd;
            sum = sum + even;
            memcpy(sums->bytes[m] + 4 * n, (void *)&sum, 4);
        }
    _mm_setcsr(before);
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_loadconfig model_loadconfig
#define _tile_release model_release
#define _tile_zero model_zero
#define _tile_loadd model_load
#define _tile_stored model_store
#define _tile_dpbsud model_dpbsud
#define _tile_dpbf16ps model_dpbf16ps
