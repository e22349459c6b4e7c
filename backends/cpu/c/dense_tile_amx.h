/* bf16 weights with AMX's bf16 tiles: tdpbf16ps multiplies 16 rows of 32 inputs with 16 outputs, whose layout in a panel
 * of pairs is that of its second operand.
 *
 * It has a chain of its own. Of every 16 pairs, even = fma(x[2i], w[2i], even) and odd = fma(x[2i+1], w[2i+1], odd) from
 * zero on, i ascending; then acc = acc + (even + odd). Subnormal numbers are zero before and after each operation. So a
 * single row, which gains nothing from a tile, goes through the same chain in vector registers: the bits of a row do not
 * depend on what else is in the batch. They are not those of other instruction sets. e4m3fn becomes bf16 before. */
#ifndef LLAMAC_DENSE_TILE_AMX_H
#define LLAMAC_DENSE_TILE_AMX_H

#include "dense_units.h"
#include "types.h"

#define LLAMAC_TILE_ROWS 16
#define LLAMAC_TILE_UNITS 16
#define LLAMAC_TILE_SECTION 128 /* units: those of a section of linear_dense.h */

/* Weights of a section, [unit][16][2] of bf16 in two panels: where they lie, or taken apart behind. */
typedef struct {
    const uint8_t *panel;
    size_t apart, blocks;
#if defined(__AMX_BF16__)
    _Alignas(64) uint8_t bytes[2][LLAMAC_TILE_SECTION * 64];
#endif
} llamac_tile_section;

/* Whether weights of this type are multiplied in tiles. */
LLAMAC_KERNEL int llamac_in_tiles(int type) {
#if defined(__AMX_BF16__)
    return llamac_is_pairs(type);
#else
    (void)type;
    return 0;
#endif
}

#if defined(__AMX_BF16__)
/* Tiles 0 to 3: sums of two times 16 rows and two panels. Tiles 4 and 5: the rows' inputs. Tiles 6 and 7: the weights. */
LLAMAC_KERNEL void llamac_begin_pair_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) config.row_bytes[tile] = 64, config.rows[tile] = 16;
    _tile_loadconfig(&config);
}
LLAMAC_KERNEL void llamac_end_pair_tiles(void) { _tile_release(); }

/* `count` units of a row from unit `first` on, into a tile of `rows` rows; the last ones of a row are followed by zeros. */
LLAMAC_KERNEL void llamac_pack_tile_units(llamac_unit *to, size_t rows, const llamac_unit *units, size_t first,
                                          size_t count, int is_last) {
    llamac_unit *block = to + first / LLAMAC_TILE_UNITS * rows * LLAMAC_TILE_UNITS;
    const size_t at = first % LLAMAC_TILE_UNITS;
    for (size_t i = 0; i < count; i++) block[at + i] = units[i];
    if (is_last)
        for (size_t i = at + count; i < LLAMAC_TILE_UNITS; i++) block[i] = 0;
}

/* The weights of `units` units of two panels, the second `apart` bytes on. */
LLAMAC_KERNEL void llamac_take_section(llamac_tile_section *s, const uint8_t *panel, size_t apart, size_t units,
                                       int type) {
    s->panel = panel;
    s->apart = apart;
    s->blocks = llamac_round_up(units, LLAMAC_TILE_UNITS) / LLAMAC_TILE_UNITS;
    if (type != LLAMAC_E4M3FN_PAIRS && units % LLAMAC_TILE_UNITS == 0) return;
    for (size_t p = 0; p < 2; p++) {
        for (size_t i = 0; i < units; i++) {
            llamac_unit_weights w;
            llamac_load_pairs(&w, panel + p * apart + i * llamac_unit_bytes(type), type);
            memcpy(s->bytes[p] + 64 * i, &w.pairs, 64);
        }
        memset(s->bytes[p] + 64 * units, 0, (s->blocks * LLAMAC_TILE_UNITS - units) * 64);
    }
    s->panel = s->bytes[0];
    s->apart = sizeof s->bytes[0];
}

/* `halves` (a literal, 1 or 2) times 16 rows, packed at x, times a section of two panels: sums[row][2][16] grows by it.
 * The lines [next, next_end) of the panel to follow are fetched meanwhile, with those `next_apart` bytes on. */
LLAMAC_KERNEL void llamac_pair_tiles(const int halves, float *sums, const llamac_unit *x, const llamac_tile_section *s,
                                     int is_first, const uint8_t *next, const uint8_t *next_end, size_t next_apart) {
    enum { STRIDE = 2 * 16 * sizeof(float), HALF = 16 * 32, TILE = LLAMAC_TILE_ROWS * LLAMAC_TILE_UNITS };
    const size_t lines = next < next_end ? ((size_t)(next_end - next) / 64 + s->blocks - 1) / s->blocks : 0;
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        if (halves == 2) _tile_zero(2);
        if (halves == 2) _tile_zero(3);
    } else {
        _tile_loadd(0, sums, STRIDE);
        _tile_loadd(1, sums + 16, STRIDE);
        if (halves == 2) _tile_loadd(2, sums + HALF, STRIDE);
        if (halves == 2) _tile_loadd(3, sums + HALF + 16, STRIDE);
    }
    for (size_t b = 0; b < s->blocks; b++, x += halves * TILE) {
        const uint8_t *panel = s->panel + b * LLAMAC_TILE_UNITS * 64;
        for (size_t line = 0; line < lines && next < next_end; line++, next += 64) {
            __builtin_prefetch(next, 0, 3);
            __builtin_prefetch(next + next_apart, 0, 3);
        }
        _tile_loadd(4, x, 64);
        _tile_loadd(6, panel, 64);
        _tile_loadd(7, panel + s->apart, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (halves == 2) {
            _tile_loadd(5, x + TILE, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, STRIDE);
    _tile_stored(1, sums + 16, STRIDE);
    if (halves == 2) _tile_stored(2, sums + HALF, STRIDE);
    if (halves == 2) _tile_stored(3, sums + HALF + 16, STRIDE);
}

/* One row times `panel_count` (a literal) panels, by the chain of the tiles. */
LLAMAC_KERNEL void llamac_row_as_tiles(const int panel_count, f32x16 *out, const llamac_unit *inputs,
                                       const uint8_t *const *panel, size_t ahead, size_t units, int type) {
    enum { ZERO_SUBNORMALS = 0x8040 };
    const unsigned int before = _mm_getcsr();
    _mm_setcsr(before | ZERO_SUBNORMALS);
    __asm__ volatile("" ::: "memory"); /* what is loaded from here on is computed from here on */
    LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) out[p] = llamac_splat(0.0f);
    for (size_t block = 0; block < units; block += LLAMAC_TILE_UNITS) {
        f32x16 even[8], odd[8];
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) even[p] = odd[p] = llamac_splat(0.0f);
        for (size_t i = block; i < units && i < block + LLAMAC_TILE_UNITS; i++) {
            const f32x16 low = llamac_as_floats((u32x16)(inputs[i] << 16));
            const f32x16 high = llamac_as_floats((u32x16)(inputs[i] & 0xffff0000u));
            LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) {
                llamac_unit_weights w;
                u32x16 pairs;
                const uint8_t *from = panel[p] + i * llamac_unit_bytes(type);
                if (i % (64 / llamac_unit_bytes(type)) == 0) __builtin_prefetch(from + ahead, 0, 3);
                llamac_load_pairs(&w, from, type);
                memcpy(&pairs, &w.pairs, sizeof pairs);
                even[p] = llamac_fma(low, llamac_as_floats(pairs << 16), even[p]);
                odd[p] = llamac_fma(high, llamac_as_floats(pairs & 0xffff0000u), odd[p]);
            }
        }
        LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) out[p] = out[p] + (even[p] + odd[p]);
    }
    LLAMAC_UNROLL for (int p = 0; p < panel_count; p++) __asm__ volatile("" : "+v"(out[p]));
    _mm_setcsr(before);
}
#else
LLAMAC_KERNEL void llamac_begin_pair_tiles(void) {}
LLAMAC_KERNEL void llamac_end_pair_tiles(void) {}
LLAMAC_KERNEL void llamac_pack_tile_units(llamac_unit *to, size_t rows, const llamac_unit *units, size_t first,
                                          size_t count, int is_last) {
    (void)to, (void)rows, (void)units, (void)first, (void)count, (void)is_last;
}
LLAMAC_KERNEL void llamac_take_section(llamac_tile_section *s, const uint8_t *panel, size_t apart, size_t units,
                                       int type) {
    (void)s, (void)panel, (void)apart, (void)units, (void)type;
}
LLAMAC_KERNEL void llamac_pair_tiles(const int halves, float *sums, const llamac_unit *x, const llamac_tile_section *s,
                                     int is_first, const uint8_t *next, const uint8_t *next_end, size_t next_apart) {
    (void)halves, (void)sums, (void)x, (void)s, (void)is_first, (void)next, (void)next_end, (void)next_apart;
}
LLAMAC_KERNEL void llamac_row_as_tiles(const int panel_count, f32x16 *out, const llamac_unit *inputs,
                                       const uint8_t *const *panel, size_t ahead, size_t units, int type) {
    (void)panel_count, (void)out, (void)inputs, (void)panel, (void)ahead, (void)units, (void)type;
}
#endif

#endif
