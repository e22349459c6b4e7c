/* What tiles of a grouped matrix product have in common: their sizes, their inputs' order, and a section of weights.
 *
 * Inputs of a tile, in a block: [k / 4][rows] of 4, or where an instruction takes more of a row at once, [k / 8][rows]
 * of 8 (NEON's i8mm) or [rows][block] (full tiles with AMX). */
#ifndef LLAMAC_GROUPED_INPUTS_H
#define LLAMAC_GROUPED_INPUTS_H

#include "linear_grouped.h"
#include "types.h"

/* Rows and panels of a tile: its integer sums, float sums and weights fit the vector registers (float sums stay in
 * memory where registers are few). Counts of rows that are no multiple end in tiles of fewer rows. */
#if defined(__AMX_INT8__)
#define LLAMAC_GEMM_ROWS 16
#define LLAMAC_GEMM_FEW_ROWS 6
#define LLAMAC_GEMM_PANELS 2
#elif defined(__AVX512F__) || defined(__AVX2__)
#define LLAMAC_GEMM_ROWS 6
#define LLAMAC_GEMM_FEW_ROWS 4
#if defined(__AVX512F__)
#define LLAMAC_GEMM_PANELS 2
#else
#define LLAMAC_GEMM_PANELS 1
#endif
#else
#define LLAMAC_GEMM_ROWS 4
#define LLAMAC_GEMM_FEW_ROWS 2
#define LLAMAC_GEMM_PANELS 1
#endif
#if defined(__AVX512F__)
#define LLAMAC_IN_REGISTER(inputs) __asm__("" : "+v"(inputs)) /* one load for both panels */
#else
#define LLAMAC_IN_REGISTER(inputs) (void)(inputs)
#endif

LLAMAC_KERNEL size_t llamac_packed_block_bytes(llamac_grouped format) {
    return llamac_block(format.group) + (format.min_bits ? 12 : 8);
}

typedef int32_t llamac_i32x8 __attribute__((ext_vector_type(8)));
typedef int32_t llamac_i32x32 __attribute__((ext_vector_type(32)));

/* 32 inputs of each of four rows, one row after the other. */
LLAMAC_KERNEL llamac_i32x32 llamac_four_rows(const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d) {
    const int8_t *const row[4] = {a, b, c, d};
    llamac_i32x32 all;
    LLAMAC_UNROLL for (int r = 0; r < 4; r++) memcpy((int8_t *)&all + 32 * r, row[r], 32);
    return all;
}

/* [8][6] and [8][4] from whole rows by shuffles: packing costs a small matrix a tenth of its time otherwise. */
LLAMAC_KERNEL void llamac_turn_six(uint8_t *to, const int8_t *const q[]) {
    const llamac_i32x32 a = llamac_four_rows(q[0], q[1], q[2], q[3]), b = llamac_four_rows(q[4], q[5], q[4], q[5]);
    const i32x16 turned[3] = {
        __builtin_shufflevector(a, b, 0, 8, 16, 24, 32, 40, 1, 9, 17, 25, 33, 41, 2, 10, 18, 26),
        __builtin_shufflevector(a, b, 34, 42, 3, 11, 19, 27, 35, 43, 4, 12, 20, 28, 36, 44, 5, 13),
        __builtin_shufflevector(a, b, 21, 29, 37, 45, 6, 14, 22, 30, 38, 46, 7, 15, 23, 31, 39, 47),
    };
    memcpy(to, turned, sizeof turned);
}
LLAMAC_KERNEL void llamac_turn_four(uint8_t *to, const int8_t *const q[]) {
    const llamac_i32x32 a = llamac_four_rows(q[0], q[1], q[2], q[3]);
    const i32x16 turned[2] = {
        __builtin_shufflevector(a, a, 0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27),
        __builtin_shufflevector(a, a, 4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31),
    };
    memcpy(to, turned, sizeof turned);
}

/* How many inputs of a row lie together in a tile of `row_count` rows. */
LLAMAC_KERNEL size_t llamac_inputs_together(const int row_count, size_t block) {
#if defined(__AMX_INT8__)
    if (row_count == LLAMAC_GEMM_ROWS) return block;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return 8;
#endif
    (void)row_count, (void)block;
    return 4;
}

/* The inputs of a block in a tile's order; q[r] are the rows' inputs. */
LLAMAC_KERNEL void llamac_pack_inputs(const int row_count, uint8_t *to, const int8_t *const q[], size_t block) {
    const size_t together = llamac_inputs_together(row_count, block);
    if (together == 4 && block == 32 && row_count == 6) {
        llamac_turn_six(to, q);
    } else if (together == 4 && block == 32 && row_count == 4) {
        llamac_turn_four(to, q);
    } else {
        LLAMAC_UNROLL for (int r = 0; r < row_count; r++)
            LLAMAC_UNROLL for (size_t j = 0; j < block / together; j++)
                memcpy(to + (j * row_count + r) * together, q[r] + together * j, together);
    }
}

/* A section of a pair of panels, and the one that follows it, to be fetched: `lines` cache lines of each panel in a
 * block of inputs until `next` has reached `next_end`, with them the scales. */
typedef struct {
    const uint8_t *quants, *scales, *mins; /* of the first panel; those of the second lie `apart` bytes on */
    size_t apart, blocks, lines;
    const uint8_t *next, *next_end, *next_scales;
    size_t next_apart;
} llamac_section;


#endif
