/* Peaks of the arithmetic units that this code was compiled for: independent chains of one instruction, in registers,
 * on every thread at once. They are the limits that a profile compares operations with. */
#ifndef LLAMAC_PEAKS_H
#define LLAMAC_PEAKS_H

#include "dense_tile_amx.h"
#include "pool.h"

enum { LLAMAC_NO_UNIT, LLAMAC_INT8_UNIT, LLAMAC_BF16_UNIT, LLAMAC_F32_UNIT };

#define LLAMAC_PEAK_CHAINS 12
#define LLAMAC_PEAK_ROUNDS 100000

/* Rounds of CHAINS independent `operation`s on vectors of `type`; `constraint` names their registers. */
#define LLAMAC_CHAINS(type, first, constraint, operation)                                                              \
    type a[LLAMAC_PEAK_CHAINS];                                                                                        \
    for (int i = 0; i < LLAMAC_PEAK_CHAINS; i++) a[i] = first;                                                         \
    for (uint32_t round = 0; round < rounds; round++) LLAMAC_UNROLL for (int i = 0; i < LLAMAC_PEAK_CHAINS; i++) {     \
            a[i] = operation;                                                                                          \
            __asm__ volatile("" : "+" constraint(a[i]));                                                               \
        }

/* Each returns the operations (a multiplication and an addition are two) of one round. */
static __attribute__((noinline)) uint64_t llamac_f32_rounds(uint32_t rounds) {
#if defined(__AVX512F__)
    const __m512 x = _mm512_set1_ps(0.999f);
    LLAMAC_CHAINS(__m512, _mm512_setzero_ps(), "v", _mm512_fmadd_ps(a[i], x, x))
    return LLAMAC_PEAK_CHAINS * 32;
#elif defined(__AVX2__) && defined(__FMA__)
    const __m256 x = _mm256_set1_ps(0.999f);
    LLAMAC_CHAINS(__m256, _mm256_setzero_ps(), "x", _mm256_fmadd_ps(a[i], x, x))
    return LLAMAC_PEAK_CHAINS * 16;
#elif defined(__aarch64__)
    const float32x4_t x = vdupq_n_f32(0.999f);
    LLAMAC_CHAINS(float32x4_t, vdupq_n_f32(0), "w", vfmaq_f32(a[i], x, x))
    return LLAMAC_PEAK_CHAINS * 8;
#else
    (void)rounds;
    return 0;
#endif
}

static __attribute__((noinline)) uint64_t llamac_int8_rounds(uint32_t rounds) {
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
    llamac_begin_pair_tiles();
    for (uint32_t round = 0; round < rounds; round++) {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    llamac_end_pair_tiles();
    return 4 * 2 * 16 * 16 * 64;
#elif defined(__AVX512VNNI__)
    const __m512i x = _mm512_set1_epi8(3);
    LLAMAC_CHAINS(__m512i, _mm512_setzero_si512(), "v", _mm512_dpbusd_epi32(a[i], x, x))
    return LLAMAC_PEAK_CHAINS * 128;
#elif defined(__AVX512BW__)
    const __m512i x = _mm512_set1_epi8(3), one = _mm512_set1_epi16(1);
    LLAMAC_CHAINS(__m512i, x, "v", _mm512_add_epi32(a[i], _mm512_madd_epi16(_mm512_maddubs_epi16(a[i], x), one)))
    return LLAMAC_PEAK_CHAINS * 128;
#elif defined(__AVX2__)
    const __m256i x = _mm256_set1_epi8(3), one = _mm256_set1_epi16(1);
    LLAMAC_CHAINS(__m256i, x, "x", _mm256_add_epi32(a[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a[i], x), one)))
    return LLAMAC_PEAK_CHAINS * 64;
#elif defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t x = vdupq_n_s8(3);
    LLAMAC_CHAINS(int32x4_t, vdupq_n_s32(0), "w", vdotq_s32(a[i], x, x))
    return LLAMAC_PEAK_CHAINS * 32;
#else
    (void)rounds;
    return 0;
#endif
}

static __attribute__((noinline)) uint64_t llamac_bf16_rounds(uint32_t rounds) {
#if defined(__AMX_BF16__)
    llamac_begin_pair_tiles();
    for (uint32_t round = 0; round < rounds; round++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    llamac_end_pair_tiles();
    return 4 * 2 * 16 * 16 * 32;
#elif defined(__AVX512BF16__)
    const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f00);
    LLAMAC_CHAINS(__m512, _mm512_setzero_ps(), "v", _mm512_dpbf16_ps(a[i], x, x))
    return LLAMAC_PEAK_CHAINS * 64;
#else
    return llamac_f32_rounds(rounds); /* no unit of its own: the values are widened */
#endif
}

typedef struct {
    uint64_t (*rounds)(uint32_t rounds);
    double operations_per_second;
} llamac_peak_run;

/* The fastest of a few runs: whatever else uses the processors can only make it slower. */
static void llamac_measure_peak(const llamac_thread *th, void *argument) {
    llamac_peak_run *run = argument;
    for (int turn = 0; turn < 6; turn++) {
        llamac_barrier(th);
        const uint64_t started = llamac_nanoseconds();
        const uint64_t operations = run->rounds(LLAMAC_PEAK_ROUNDS) * LLAMAC_PEAK_ROUNDS;
        llamac_barrier(th);
        if (th->id != 0 || turn == 0) continue;
        const double rate = 1e9 * (double)operations * th->count / (double)(llamac_nanoseconds() - started + 1);
        if (rate > run->operations_per_second) run->operations_per_second = rate;
    }
}

/* Operations a second of all threads together; 0 for no unit. Takes a few milliseconds. */
static double llamac_peak_of(llamac_pool *pool, uint32_t unit) {
    static uint64_t (*const kinds[])(uint32_t) = {NULL, llamac_int8_rounds, llamac_bf16_rounds, llamac_f32_rounds};
    if (unit == LLAMAC_NO_UNIT || unit > LLAMAC_F32_UNIT) return 0;
    llamac_peak_run run = {kinds[unit], 0};
    llamac_pool_run(pool, llamac_measure_peak, &run);
    return run.operations_per_second;
}

#endif
