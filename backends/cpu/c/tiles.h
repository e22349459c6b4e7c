/* Pictures of several tiles: what a tile adds by its place, padding, and the order of tokens with padding last. */
#ifndef LLAMAC_TILES_H
#define LLAMAC_TILES_H

#include "gated_add.h"
#include "pool.h"
#include "types.h"

/* Row *index of a table of `columns` integers. */
LLAMAC_KERNEL void llamac_lookup_row(const llamac_thread *th, int32_t *row, const int32_t *table, const int32_t *index,
                                     uint32_t columns) {
    if (th->id == 0) memcpy(row, table + (size_t)*index * columns, columns * sizeof *row);
}

/* rows[i] = *shape * tiles + i. */
LLAMAC_KERNEL void llamac_tile_rows(const llamac_thread *th, int32_t *rows, const int32_t *shape, uint32_t tiles) {
    if (th->id == 0)
        for (uint32_t i = 0; i < tiles; i++) rows[i] = *shape * (int32_t)tiles + (int32_t)i;
}

/* y = x + factor table[index[tile]], on `tokens` rows of each of `tiles` tiles; factor is tanh(*gate), or 1 - that with
 * `complement`. Rows of the table have `each` values of a type: one for each channel, or that for each token of a tile.
 * Nothing is added where the index is negative; without an index every tile takes row 0. y may be x. Threads take rows. */
LLAMAC_KERNEL void llamac_add_places(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                     uint32_t tiles, uint32_t tokens, uint32_t width, const uint8_t *table, int type,
                                     uint32_t each, const float *gate, const int complement, const int32_t *index) {
    const float opened = llamac_tanh(*gate), factor = complement ? 1.0f - opened : opened;
    size_t low, high;
    llamac_share(th, (size_t)tiles * tokens, &low, &high);
    for (size_t row = low; row < high; row++) {
        const size_t tile = row / tokens, start = each == width ? 0 : row % tokens * width;
        const int32_t place = index ? index[tile] : 0;
        const uint8_t *values = table + ((size_t)(place < 0 ? 0 : place) * each + start) * llamac_element_bytes(type);
        for (size_t at = 0; at < width; at += 16) {
            const size_t lanes = width - at < 16 ? width % 16 : 16;
            f32x16 sum = llamac_load_part(x + row * ldx + at, lanes);
            if (place >= 0)
                sum = sum + llamac_load_type_part(values + at * llamac_element_bytes(type), type, lanes) * factor;
            llamac_store_part(y + row * ldy + at, sum, lanes);
        }
    }
}

/* y [tiles * padded][width]: the `tokens` rows of each tile of x, then zeros. Threads take rows. */
LLAMAC_KERNEL void llamac_pad_tiles(const llamac_thread *th, float *y, size_t ldy, const float *x, size_t ldx,
                                    uint32_t tiles, uint32_t tokens, uint32_t padded, uint32_t width) {
    size_t low, high;
    llamac_share(th, (size_t)tiles * padded, &low, &high);
    for (size_t row = low; row < high; row++) {
        const size_t tile = row / padded, place = row % padded;
        if (place < tokens)
            memcpy(y + row * ldy, x + (tile * tokens + place) * ldx, width * sizeof *y);
        else
            memset(y + row * ldy, 0, width * sizeof *y);
    }
}

/* The rows of all tiles with padding last, and in *real how many are none: the first `tokens` of tiles with a slot. */
LLAMAC_KERNEL void llamac_order_tokens(const llamac_thread *th, int32_t *order, int32_t *real, const int32_t *slots,
                                       uint32_t tiles, uint32_t tokens, uint32_t padded) {
    if (th->id != 0) return;
    size_t next = 0;
    for (int padding = 0; padding < 2; padding++) {
        for (uint32_t row = 0; row < tiles * padded; row++)
            if ((slots[row / padded] < 0 || row % padded >= tokens) == padding) order[next++] = (int32_t)row;
        if (!padding) *real = (int32_t)next;
    }
}

#endif
