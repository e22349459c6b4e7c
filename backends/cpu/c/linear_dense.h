/* y = x W^T (+ bias) (+ residual) for dense weights in 16-row panels.
 *
 * Single: panels of [k][16] elements, inputs in f32. Chain of one output: acc = 0; acc = fma(x[k], w[k], acc) for k
 * ascending. In pairs (bf16, e4m3fn): panels of [k / 2][16][2] elements, k padded to even with zeros, inputs rounded to
 * bf16; for pairs ascending acc = fma(x[2i+1], w[2i+1], acc), then acc = fma(x[2i], w[2i], acc). e4m3fn panels are padded
 * to 64 bytes and end in 16 f32 row scales. Then acc * row scale, + bias, residual + acc.
 *
 * The chain of pairs is what vdpbf16ps computes, bit for bit, but for subnormal numbers, which it takes for zero; so
 * instruction sets agree, and tiles and threads too, as one lane holds one output. */
#ifndef LLAMAC_LINEAR_DENSE_H
#define LLAMAC_LINEAR_DENSE_H

#include "panels.h"
#include "pool.h"
#include "row_tiles.h"
#include "types.h"

/* Rows and panels of a tile, whose sums fit the vector registers beside the weights. */
#if defined(__AVX512F__)
#define LLAMAC_DENSE_ROWS 12
#define LLAMAC_DENSE_FEW_ROWS 8
#define LLAMAC_DENSE_PANELS 2
#define LLAMAC_DENSE_GEMV_PANELS 4
#else
#define LLAMAC_DENSE_ROWS 4
#define LLAMAC_DENSE_FEW_ROWS 2
#define LLAMAC_DENSE_PANELS 1
#define LLAMAC_DENSE_GEMV_PANELS 2
#endif
#define LLAMAC_DENSE_SECTION 128             /* pairs of a panel: two panels and a tile's inputs stay in the L1 cache */
#define LLAMAC_DENSE_BLOCK_BYTES (400u << 10) /* of packed rows, which should stay in the L2 cache */
#define LLAMAC_DENSE_FEWEST_ROWS 96 /* of a block: fewer would read the weights more often than memory can */

/* What one multiplication takes of a row: two bf16, the lower input in the lower half, or one f32. */
typedef uint32_t llamac_unit;

LLAMAC_KERNEL size_t llamac_units(size_t k, int type) { return llamac_is_pairs(type) ? (k + 1) / 2 : k; }
/* Bytes of the weights that one unit is multiplied with, for 16 outputs. */
LLAMAC_KERNEL size_t llamac_unit_bytes(int type) { return (llamac_is_pairs(type) ? 32 : 16) * llamac_element_bytes(type); }

/* Weights as they are multiplied, less a factor of llamac_unit_factor: a power of two, which changes no rounding. */
typedef struct {
    f32x16 even, odd; /* single ones are even */
#if defined(__AVX512BF16__)
    __m512bh pairs;
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    bfloat16x8_t quarter[4];
#endif
} llamac_unit_weights;

LLAMAC_KERNEL f32x16 llamac_as_floats(u32x16 bits) {
    f32x16 value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#if defined(__AVX512BF16__)
/* Exponents move from a bias of 7 to one of 127; the eight subnormal values come from a table. */
LLAMAC_KERNEL __m512i llamac_bf16_of_e4m3fn(__m256i bytes) {
    const __m512i subnormal = _mm512_set4_epi32(0x3c603c40, 0x3c203c00, 0x3bc03b80, 0x3b000000); /* m * 2^-9 */
    const __m512i wide = _mm512_cvtepu8_epi16(bytes);
    const __m512i magnitude = _mm512_slli_epi16(_mm512_and_si512(wide, _mm512_set1_epi16(0x7f)), 4);
    const __mmask32 is_subnormal = _mm512_testn_epi16_mask(wide, _mm512_set1_epi16(0x78));
    const __m512i value = _mm512_mask_permutexvar_epi16(_mm512_add_epi16(magnitude, _mm512_set1_epi16(120 << 7)),
                                                        is_subnormal, wide, subnormal);
    return _mm512_or_si512(value, _mm512_slli_epi16(_mm512_and_si512(wide, _mm512_set1_epi16(0x80)), 8));
}
LLAMAC_KERNEL void llamac_load_pairs(llamac_unit_weights *w, const uint8_t *from, int type) {
    if (type == LLAMAC_E4M3FN_PAIRS)
        w->pairs = (__m512bh)llamac_bf16_of_e4m3fn(_mm256_loadu_si256((const __m256i *)from));
    else
        w->pairs = (__m512bh)_mm512_loadu_si512(from);
}
LLAMAC_KERNEL f32x16 llamac_dot_pairs(f32x16 acc, const llamac_unit_weights *w, llamac_unit x) {
    return (f32x16)_mm512_dpbf16_ps((__m512)acc, w->pairs, (__m512bh)_mm512_set1_epi32((int32_t)x));
}
LLAMAC_KERNEL float llamac_unit_factor(int type) { return type == LLAMAC_E4M3FN ? 256.0f : 1.0f; }
#else
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
/* bfmlalt and bfmlalb are fused multiply-adds of the odd and of the even elements; bfdot and bfmmla round otherwise. */
LLAMAC_KERNEL void llamac_load_pairs(llamac_unit_weights *w, const uint8_t *from, int type) {
    if (type == LLAMAC_E4M3FN_PAIRS) {
        u8x32 bytes;
        memcpy(&bytes, from, sizeof bytes);
        const f16x32 half = llamac_half_of_e4m3fn(bytes);
        const f32x16 even = __builtin_convertvector(half.even, f32x16), odd = __builtin_convertvector(half.odd, f32x16);
        u32x16 low, high;
        memcpy(&low, &even, sizeof low);
        memcpy(&high, &odd, sizeof high);
        low = (low >> 16) | (high & 0xffff0000u);
        memcpy(w->quarter, &low, sizeof low);
    } else {
        memcpy(w->quarter, from, sizeof w->quarter);
    }
}
LLAMAC_KERNEL f32x16 llamac_dot_pairs(f32x16 acc, const llamac_unit_weights *w, llamac_unit x) {
    const bfloat16x8_t inputs = vreinterpretq_bf16_u32(vdupq_n_u32(x));
    float32x4_t quarter[4];
    memcpy(quarter, &acc, sizeof quarter);
    LLAMAC_UNROLL for (int i = 0; i < 4; i++)
        quarter[i] = vbfmlalbq_f32(vbfmlaltq_f32(quarter[i], w->quarter[i], inputs), w->quarter[i], inputs);
    memcpy(&acc, quarter, sizeof acc);
    return acc;
}
#else
LLAMAC_KERNEL void llamac_load_pairs(llamac_unit_weights *w, const uint8_t *from, int type) {
    if (type == LLAMAC_E4M3FN_PAIRS) {
        u8x32 bytes;
        memcpy(&bytes, from, sizeof bytes);
        const f16x32 half = llamac_half_of_e4m3fn(bytes);
        w->even = __builtin_convertvector(half.even, f32x16);
        w->odd = __builtin_convertvector(half.odd, f32x16);
        return;
    }
    u32x16 pairs;
    memcpy(&pairs, from, sizeof pairs);
    w->even = llamac_as_floats(pairs << 16);
    w->odd = llamac_as_floats(pairs & 0xffff0000u);
}
LLAMAC_KERNEL f32x16 llamac_dot_pairs(f32x16 acc, const llamac_unit_weights *w, llamac_unit x) {
    const f32x16 even = llamac_as_floats((u32x16)(x << 16)), odd = llamac_as_floats((u32x16)(x & 0xffff0000u));
    return llamac_fma(even, w->even, llamac_fma(odd, w->odd, acc));
}
#endif
LLAMAC_KERNEL float llamac_unit_factor(int type) {
    return type == LLAMAC_E4M3FN || type == LLAMAC_E4M3FN_PAIRS ? 256.0f : 1.0f;
}
#endif

LLAMAC_KERNEL llamac_unit_weights llamac_load_unit(const uint8_t *from, int type) {
    llamac_unit_weights w;
    if (llamac_is_pairs(type)) {
        llamac_load_pairs(&w, from, type);
    } else if (type == LLAMAC_E4M3FN) {
        u8x32 bytes = {0};
        memcpy(&bytes, from, 16);
        w.even = __builtin_convertvector(llamac_half_of_e4m3fn(bytes).lo, f32x16);
    } else {
        w.even = llamac_load_type(from, type);
    }
    return w;
}
LLAMAC_KERNEL f32x16 llamac_dot_unit(f32x16 acc, const llamac_unit_weights *w, llamac_unit x, int type) {
    if (llamac_is_pairs(type)) return llamac_dot_pairs(acc, w, x);
    return llamac_fma(llamac_as_floats((u32x16)(x)), w->even, acc);
}

/* The finished sum of a panel's outputs: times what the weights lacked and the row scales. */
LLAMAC_KERNEL int llamac_has_row_scales(int type) { return type == LLAMAC_E4M3FN || type == LLAMAC_E4M3FN_PAIRS; }
LLAMAC_KERNEL f32x16 llamac_scale_units(f32x16 acc, const uint8_t *panel, size_t k, int type) {
    if (!llamac_has_row_scales(type)) return acc;
    const uint8_t *scales = panel + llamac_dense_panel_bytes(k, type) - 64;
    return acc * llamac_unit_factor(type) * llamac_load((const float *)scales);
}

/* 16 floats rounded to bf16, to nearest even; NaN stays NaN. */
LLAMAC_KERNEL u16x16 llamac_round_bf16(f32x16 value) {
    u32x16 bits;
    memcpy(&bits, &value, sizeof bits);
    const u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const u32x16 odd = (u32x16)(value != value);
    return __builtin_convertvector((odd & 0x7fc0u) | (~odd & rounded), u16x16);
}

/* The units of inputs [at, at + 16) of a row, zeros from k on; how many there are. */
LLAMAC_KERNEL size_t llamac_take_units(llamac_unit to[16], const float *x, size_t at, size_t k, int type) {
    const f32x16 value = at + 16 <= k ? llamac_load(x + at) : llamac_load_part(x + at, k - at);
    const u16x16 rounded = llamac_round_bf16(value);
    if (llamac_is_pairs(type))
        memcpy(to, &rounded, sizeof rounded);
    else
        memcpy(to, &value, sizeof value);
    return llamac_units(llamac_smaller(16, k - at), type);
}

/* One tile of `row_count` rows (a literal), of which rows after `last_row` repeat it: [unit][row]. */
LLAMAC_KERNEL void llamac_pack_units(const int row_count, llamac_unit *to, const float *x, size_t ldx, size_t last_row,
                                     size_t k, int type) {
    for (size_t r = 0; r < (size_t)row_count; r++) {
        const float *row = x + (r < last_row ? r : last_row) * ldx;
        for (size_t at = 0; at < k; at += 16) {
            llamac_unit units[16];
            const size_t count = llamac_take_units(units, row, at, k, type), first = llamac_units(at, type);
            for (size_t i = 0; i < count; i++) to[(first + i) * row_count + r] = units[i];
        }
    }
}

/* A tile of `row_count` rows times `panel_count` panels (both literals), `apart` bytes from one another, over `units`
 * units of inputs: sums[row][2][16] grows by it. The lines [next, next_end) of the first panel to follow are fetched
 * meanwhile, with those of the second. */
LLAMAC_KERNEL void llamac_dense_tile(const int row_count, const int panel_count, float *sums, const llamac_unit *x,
                                     const uint8_t *panel, size_t apart, size_t units, int is_first,
                                     const uint8_t *next, const uint8_t *next_end, int type) {
    f32x16 acc[LLAMAC_DENSE_ROWS][LLAMAC_DENSE_PANELS];
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
        acc[r][p] = is_first ? llamac_splat(0.0f) : llamac_load(sums + (r * 2 + p) * 16);
    for (size_t i = 0; i < units; i++, x += row_count) {
        llamac_unit_weights w[LLAMAC_DENSE_PANELS];
        if (next < next_end) {
            LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) __builtin_prefetch(next + p * apart, 0, 3);
            next += 64;
        }
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) 
            w[p] = llamac_load_unit(panel + p * apart + i * llamac_unit_bytes(type), type);
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++) {
            LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
                acc[r][p] = llamac_dot_unit(acc[r][p], &w[p], x[r], type);
        }
    }
    LLAMAC_UNROLL for (int r = 0; r < row_count; r++) LLAMAC_UNROLL for (int p = 0; p < panel_count; p++)
        llamac_store(sums + (r * 2 + p) * 16, acc[r][p]);
}

/* A block of rows times a pair of panels: sums[rows][2][16] becomes their products. `apart` is the distance to the second
 * panel, 0 where there is none; `next` is the pair to be fetched meanwhile, `panel` itself where there is none. */
LLAMAC_KERNEL void llamac_dense_pair(float *sums, llamac_row_tiles rows, const uint8_t *panel, size_t apart,
                                     const uint8_t *next, size_t k, int type) {
    const size_t bytes = llamac_unit_bytes(type);
    const size_t all = llamac_units(k, type), tiles = rows.tiles + rows.few_tiles;
    const size_t passes = LLAMAC_DENSE_PANELS == 2 ? 1 : apart ? 2 : 1;
    for (size_t done = 0; done < all; done += LLAMAC_DENSE_SECTION) {
        const size_t here = llamac_smaller(LLAMAC_DENSE_SECTION, all - done), after = done + here;
        const uint8_t *follows = after < all ? panel + after * bytes : next;
        const size_t left = after < all ? all - after : next == panel ? 0 : all;
        const size_t following = llamac_smaller(LLAMAC_DENSE_SECTION, left);
        for (size_t pass = 0; pass < passes; pass++) {
            const llamac_unit *x = (const llamac_unit *)rows.packed;
            float *to = sums + pass * 16;
            for (size_t t = 0; t < tiles; t++) {
                const size_t size = t < rows.tiles ? LLAMAC_DENSE_ROWS : LLAMAC_DENSE_FEW_ROWS;
                const uint8_t *fetch = follows + pass * apart + following * bytes / 64 * t / tiles * 64;
                const uint8_t *end = follows + pass * apart + following * bytes / 64 * (t + 1) / tiles * 64;
                const uint8_t *here_panel = panel + done * bytes + pass * apart;
                if (t < rows.tiles)
                    llamac_dense_tile(LLAMAC_DENSE_ROWS, LLAMAC_DENSE_PANELS, to, x + done * size, here_panel, apart,
                                      here, done == 0, fetch, end, type);
                else
                    llamac_dense_tile(LLAMAC_DENSE_FEW_ROWS, LLAMAC_DENSE_PANELS, to, x + done * size, here_panel,
                                      apart, here, done == 0, fetch, end, type);
                x += all * size;
                to += size * 32;
            }
        }
    }
    if (llamac_has_row_scales(type))
        for (size_t row = 0; row < rows.count; row++)
            for (size_t p = 0; p < (apart ? 2 : 1); p++) {
                float *sum = sums + (row * 2 + p) * 16;
                llamac_store(sum, llamac_scale_units(llamac_load(sum), panel + p * apart, k, type));
            }
}

/* Packs a block of rows into its tiles. */
LLAMAC_KERNEL void llamac_pack_dense_rows(llamac_row_tiles rows, llamac_unit *to, const float *x, size_t ldx, size_t k,
                                         int type) {
    const size_t all = llamac_units(k, type);
    size_t row = 0;
    for (size_t t = 0; t < rows.tiles + rows.few_tiles; t++) {
        const size_t size = t < rows.tiles ? rows.size : rows.few, last = llamac_smaller(rows.count - row, size) - 1;
        if (t < rows.tiles)
            llamac_pack_units(LLAMAC_DENSE_ROWS, to, x + row * ldx, ldx, last, k, type);
        else
            llamac_pack_units(LLAMAC_DENSE_FEW_ROWS, to, x + row * ldx, ldx, last, k, type);
        to += size * all;
        row += size;
    }
}

/* Several rows. Threads take contiguous ranges of pairs of panels. */
LLAMAC_KERNEL void llamac_dense_gemm(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                     size_t rows, const uint8_t *w, size_t n, size_t k, int type, const float *bias,
                                     const float *residual) {
    const size_t panels = (n + 15) / 16, panel_bytes = llamac_dense_panel_bytes(k, type);
    const size_t most = llamac_block_rows(llamac_units(k, type) * 4, LLAMAC_DENSE_BLOCK_BYTES, LLAMAC_DENSE_FEWEST_ROWS,
                                          LLAMAC_DENSE_ROWS);
    const size_t step = llamac_even_step(rows, most, LLAMAC_DENSE_ROWS);
    float *sums = (float *)th->scratch;
    uint8_t *packed = llamac_packed_rows(th, most, LLAMAC_DENSE_ROWS);
    size_t low, high;
    llamac_share(th, (panels + 1) / 2, &low, &high);
    for (size_t first = 0; first < rows && low < high; first += step) {
        const llamac_row_tiles tiles = llamac_cut_rows(llamac_smaller(step, rows - first), LLAMAC_DENSE_ROWS,
                                                       LLAMAC_DENSE_FEW_ROWS, packed);
        llamac_pack_dense_rows(tiles, (llamac_unit *)packed, x + first * ldx, ldx, k, type);
        for (size_t pair = low; pair < high; pair++) {
            const uint8_t *panel = w + pair * 2 * panel_bytes;
            llamac_dense_pair(sums, tiles, panel, pair * 2 + 1 < panels ? panel_bytes : 0,
                              pair + 1 < high ? panel + 2 * panel_bytes : panel, k, type);
            llamac_store_pair(y + first * ldy, ldy, sums, tiles.count, pair * 2, n, bias,
                              residual ? residual + first * ldy : residual);
        }
    }
}

/* A row's units in the thread's scratch. */
LLAMAC_KERNEL const llamac_unit *llamac_take_row(const llamac_thread *th, const float *x, size_t k, int type) {
    llamac_unit *units = (llamac_unit *)th->scratch;
    for (size_t at = 0; at < k; at += 16) llamac_take_units(units + llamac_units(at, type), x, at, k, type);
    return units;
}

/* One row against several panels at once, which hides the latency of the chains: their outputs. The memory that lies
 * `ahead` of each panel is fetched on the way. */
LLAMAC_KERNEL void llamac_dense_row_panels(f32x16 out[LLAMAC_DENSE_GEMV_PANELS], const llamac_unit *inputs,
                                    const uint8_t *const panel[LLAMAC_DENSE_GEMV_PANELS], size_t ahead, size_t k,
                                    int type) {
    const size_t bytes = llamac_unit_bytes(type), units = llamac_units(k, type), together = bytes < 64 ? 64 / bytes : 1;
    LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++) out[i] = llamac_splat(0.0f);
    for (size_t j = 0; j < units; j++) {
        LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++) {
            if (j % together == 0) __builtin_prefetch(panel[i] + ahead + j * bytes, 0, 3);
            const llamac_unit_weights w = llamac_load_unit(panel[i] + j * bytes, type);
            out[i] = llamac_dot_unit(out[i], &w, inputs[j], type);
        }
    }
    LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++)
        out[i] = llamac_scale_units(out[i], panel[i], k, type);
}

/* One row of a linear. Threads take contiguous ranges of panels. */
LLAMAC_KERNEL void llamac_dense_gemv(const llamac_thread *th, float *y, const float *x, const uint8_t *w, size_t n,
                                     size_t k, int type, const float *bias, const float *residual) {
    const size_t panel_bytes = llamac_dense_panel_bytes(k, type);
    const llamac_unit *inputs = llamac_take_row(th, x, k, type);
    size_t low, high;
    llamac_share(th, (n + 15) / 16, &low, &high);
    for (size_t p = low; p < high; p += LLAMAC_DENSE_GEMV_PANELS) {
        const uint8_t *panel[LLAMAC_DENSE_GEMV_PANELS];
        f32x16 out[LLAMAC_DENSE_GEMV_PANELS];
        LLAMAC_UNROLL for (int i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++)
            panel[i] = w + llamac_smaller(p + i, high - 1) * panel_bytes;
        llamac_dense_row_panels(out, inputs, panel, p + LLAMAC_DENSE_GEMV_PANELS < high ? LLAMAC_DENSE_GEMV_PANELS * panel_bytes : 0,
                         k, type);
        LLAMAC_UNROLL for (size_t i = 0; i < LLAMAC_DENSE_GEMV_PANELS; i++) {
            const size_t at = (p + i) * 16;
            if (p + i < high)
                llamac_store_outputs(y + at, out[i], bias ? bias + at : bias, residual ? residual + at : residual, p + i,
                                     n);
        }
    }
}

/* y[row*ldy + j] = (residual[row*ldy + j] +) sum over k of x[row*ldx + k] W[j][k] (+ bias[j]), j < n. bias may be NULL,
 * residual NULL or y. n, k, type are literals. Threads take contiguous panel ranges. */
LLAMAC_KERNEL void llamac_linear_biased(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                        uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k, int type,
                                        const float *bias, const float *residual) {
    if (rows == 1)
        llamac_dense_gemv(th, y, x, w, n, k, type, bias, residual);
    else
        llamac_dense_gemm(th, y, ldy, x, ldx, rows, w, n, k, type, bias, residual);
}

/* The same without a bias. */
LLAMAC_KERNEL void llamac_linear_dense(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                       uint32_t rows, const uint8_t *w, uint32_t n, uint32_t k, int type,
                                       const float *residual) {
    llamac_linear_biased(th, y, ldy, x, ldx, rows, w, n, k, type, NULL, residual);
}

#endif
