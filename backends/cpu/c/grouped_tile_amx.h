/* A tile of 16 quantized rows against a section of panels with AMX's 8-bit tiles.
 *
 * tdpbsud multiplies 16 rows of activations with 16 outputs of a panel, whose layout is that of its second operand. It
 * takes up to 64 inputs at once, but scales change every block of 32, so tiles are half as deep as they could be: the
 * sums of two blocks cannot be told apart in one tile. The 16 x 16 integer sums of a block go through memory to the
 * float sums, which stay in 16 vector registers for a whole section. Counted by instructions, turning sums into floats
 * (16 each of load, convert, multiply, multiply-add) takes longer than multiplying, about 2.5 times the speed of VNNI;
 * deeper tiles would not change that. */
#ifndef LLAMAC_GROUPED_TILE_AMX_H
#define LLAMAC_GROUPED_TILE_AMX_H

#include "grouped_inputs.h"
#include "grouped_tile.h"
#include "types.h"

#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>

/* Asks the system to let all threads of this process use tiles, which Linux wants before their first use. Returns 0
 * where it refuses. */
LLAMAC_KERNEL int llamac_tiles_allowed(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* Tile 0: 16 x 16 sums. Tile 1: a block of 16 rows' inputs. Tile 2: those of 16 outputs, 4 a row. */
LLAMAC_KERNEL void llamac_begin_tiles(llamac_grouped format) {
    const uint8_t block = (uint8_t)llamac_block(format.group);
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1, .row_bytes = {64, block, 64}, .rows = {16, 16, block / 4}};
    _tile_loadconfig(&config);
}
LLAMAC_KERNEL void llamac_end_tiles(void) { _tile_release(); }

/* Weights of a block as bytes, 4 inputs of 16 outputs a row: where they lie as they are, or taken apart in `bytes`. */
LLAMAC_KERNEL const uint8_t *llamac_tile_weights(uint8_t *bytes, const uint8_t *quants, llamac_grouped format) {
    if (format.bits == 8) return quants;
    LLAMAC_UNROLL for (size_t j = 0; j < llamac_block(format.group) / 8; j++) {
        u8x64 w;
        memcpy(&w, quants + 64 * j, sizeof w);
        const u8x64 low = w & 15, high = w >> 4;
        memcpy(bytes + 128 * j, &low, sizeof low);
        memcpy(bytes + 128 * j + 64, &high, sizeof high);
    }
    return bytes;
}

/* One panel, number `p` of the section. */
LLAMAC_KERNEL void llamac_amx_panel(float *partial, const uint8_t *x, const llamac_section *s, size_t p,
                                    const uint8_t *fetched, int is_first, llamac_grouped format) {
    enum { ROWS = LLAMAC_GEMM_ROWS };
    const size_t block = llamac_block(format.group);
    const int scale_type = format.scale_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    const int min_type = format.min_bits == 16 ? LLAMAC_F16 : LLAMAC_F32;
    f32x16 acc[ROWS];
    LLAMAC_UNROLL for (int r = 0; r < ROWS; r++) acc[r] = is_first ? llamac_splat(0.0f) : llamac_load(partial + r * 32);
    for (size_t b = 0; b < s->blocks; b++, x += ROWS * llamac_packed_block_bytes(format)) {
        const size_t group = b * block / format.group;
        const float *scale = (const float *)(x + ROWS * block);
        const int32_t *correction = (const int32_t *)(scale + ROWS);
        /* Two of each, so that the next block need not wait for this one. */
        _Alignas(64) uint8_t bytes[2][512];
        _Alignas(64) int32_t sums[2][ROWS][16];
        const uint8_t *quants = s->quants + p * s->apart + b * block * 2 * format.bits;
        fetched = llamac_fetch_section(s, fetched, 1, group, format);
        _tile_zero(0);
        _tile_loadd(1, x, block);
        _tile_loadd(2, llamac_tile_weights(bytes[b % 2], quants, format), 64);
        _tile_dpbsud(0, 1, 2);
        _tile_stored(0, sums[b % 2], 64);
        const uint8_t *scales = s->scales + p * s->apart + group * 2 * format.scale_bits;
        const f32x16 weight_scale = llamac_load_type(scales, scale_type);
        LLAMAC_UNROLL for (int r = 0; r < ROWS; r++) {
            i32x16 whole;
            memcpy(&whole, sums[b % 2][r], sizeof whole);
            if (llamac_correction(format)) whole += correction[r];
            acc[r] = llamac_fma(__builtin_convertvector(whole, f32x16), weight_scale * scale[r], acc[r]);
            if (format.min_bits)
                acc[r] = llamac_fma(llamac_load_type(s->mins + p * s->apart + group * 2 * format.min_bits, min_type),
                                    llamac_splat(scale[2 * ROWS + r]), acc[r]);
        }
    }
    LLAMAC_UNROLL for (int r = 0; r < ROWS; r++) llamac_store(partial + r * 32, acc[r]);
}

/* A tile of LLAMAC_GEMM_ROWS rows: see llamac_lane_tile. */
LLAMAC_KERNEL void llamac_amx_tile(const int panel_count, float *partial, const uint8_t *x, llamac_section s,
                                   size_t number, int is_first, llamac_grouped format) {
    const size_t fetched = number * s.blocks * s.lines * 64;
    for (int p = 0; p < (s.apart ? panel_count : 1); p++) {
        llamac_section panel = s;
        panel.next += p * s.next_apart, panel.next_end += p * s.next_apart, panel.next_scales += p * s.next_apart;
        llamac_amx_panel(partial + 16 * p, x, &panel, (size_t)p, panel.next + fetched, is_first, format);
    }
}
#else
LLAMAC_KERNEL int llamac_tiles_allowed(void) { return 1; }
LLAMAC_KERNEL void llamac_begin_tiles(llamac_grouped format) { (void)format; }
LLAMAC_KERNEL void llamac_end_tiles(void) {}
#endif

#endif
