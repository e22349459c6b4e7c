/* Blocks of rows cut into tiles for the matrix kernels, and what becomes of the sums of a pair of panels.
 *
 * A tile has `size` rows; the rest goes into tiles of `few` rows, the last of which may repeat its last row. */
#ifndef LLAMAC_ROW_TILES_H
#define LLAMAC_ROW_TILES_H

#include "panels.h"
#include "types.h"

/* A block of `count` rows: `tiles` of `size` rows, then `few_tiles` of `few`, packed one after the other. */
typedef struct {
    size_t count, tiles, few_tiles, size, few;
    const uint8_t *packed;
} llamac_row_tiles;

LLAMAC_KERNEL llamac_row_tiles llamac_cut_rows(size_t count, size_t size, size_t few, const uint8_t *packed) {
    size_t tiles = count / size, rest = count % size, few_tiles = rest != 0;
    if (rest > few) {
        tiles++;
        few_tiles = 0;
    } else if (rest && tiles && rest + size <= 2 * few) {
        tiles--; /* two of few rows instead of a full one and one with little in it */
        few_tiles = 2;
    }
    return (llamac_row_tiles){count, tiles, few_tiles, size, few, packed};
}

/* Rows of a block: those whose `row_bytes` fit in `wanted` bytes, no fewer than `fewest` while the scratch holds them
 * beside their sums; whole tiles. */
LLAMAC_KERNEL size_t llamac_block_rows(size_t row_bytes, size_t wanted, size_t fewest, size_t size) {
    /* Sums lie before the packed rows, with one tile's more than rows: twice where gate and up have some each. */
    const size_t most = (LLAMAC_SCRATCH_BYTES - 4 * size * sizeof(f32x16)) / (row_bytes + 2 * sizeof(f32x16));
    size_t rows = wanted / row_bytes;
    if (rows < fewest) rows = fewest;
    return llamac_smaller(rows, most) / size * size;
}

/* How many rows each block takes when `rows` (possibly none) are cut into blocks of about equal size. */
LLAMAC_KERNEL size_t llamac_even_step(size_t rows, size_t most, size_t size) {
    const size_t cuts = rows ? (rows + most - 1) / most : 1;
    return llamac_round_up((rows + cuts - 1) / cuts, size);
}

/* Where a thread's packed rows lie in its scratch: behind the sums. */
LLAMAC_KERNEL uint8_t *llamac_packed_rows(const llamac_thread *th, size_t most_rows, size_t size) {
    return th->scratch + (most_rows + size) * 2 * sizeof(f32x16);
}

/* Writes the sums [rows][2][16] of panels `panel` and `panel` + 1 of n outputs, with bias and residual. */
LLAMAC_KERNEL void llamac_store_pair(float *y, size_t ldy, const float *sums, size_t rows, size_t panel, size_t n,
                                     const float *bias, const float *residual) {
    const size_t column = panel * 16, panels = column + 16 < n ? 2 : 1;
    for (size_t row = 0; row < rows; row++)
        for (size_t p = 0; p < panels; p++) {
            const size_t at = column + p * 16;
            llamac_store_outputs(y + row * ldy + at, llamac_load(sums + (row * 2 + p) * 16), bias ? bias + at : bias,
                                 residual ? residual + row * ldy + at : residual, panel + p, n);
        }
}

#endif
