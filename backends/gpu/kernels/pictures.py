"""What stands between the products of an image encoder: gathers, norms, rotation, what tiles add, the vision cache.

Also the rows of pictures among those of a step. Sizes are constants but for the rows of a step and of a picture, which
grids give. Rows are row-major f32 unless a pointer says otherwise; sums are made in f32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cache import head_offset, page_start, to_cache
from .products import wait


@triton.jit
def copy_strided(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    COUNT: tl.constexpr,
    OFFSET: tl.constexpr,
    S1: tl.constexpr,
    S2: tl.constexpr,
    S3: tl.constexpr,
    S4: tl.constexpr,
    S5: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    D3: tl.constexpr,
    D4: tl.constexpr,
    D5: tl.constexpr,
    COLUMNS: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    Y_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y = the COUNT elements x[OFFSET + i . D] for i over [.., S1 .. S5], as rows of COLUMNS.

    Rows of y lie Y_STRIDE apart and are written from column Y_FIRST on. grid (blocks of BLOCK elements,).
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < COUNT
    place = OFFSET + i % S5 * D5
    rest = i // S5
    place += rest % S4 * D4
    rest = rest // S4
    place += rest % S3 * D3
    rest = rest // S3
    place += rest % S2 * D2
    rest = rest // S2
    place += rest % S1 * D1 + rest // S1 * D0
    wait(PDL)
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    to = (i // COLUMNS).to(tl.int64) * Y_STRIDE + Y_FIRST + i % COLUMNS
    tl.store(y_ptr + to, x.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def only_if(condition: tl.tensor, columns: tl.tensor) -> tl.tensor:
    """One condition for all columns, as a mask: the interpreter joins no single number with a block."""
    return tl.where(condition, columns, -1) >= 0


@triton.jit
def class_token_rows(
    x_ptr: tl.tensor,
    token_ptr: tl.tensor,
    y_ptr: tl.tensor,
    EACH: tl.constexpr,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """The EACH rows of every tile with the class token before them (FIRST) or behind; grid (rows of y, blocks)."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    tile, own = row // (EACH + 1), row % (EACH + 1)
    token = tl.load(token_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    wait(PDL)
    PLACE: tl.constexpr = 0 if FIRST else EACH
    BEFORE: tl.constexpr = 1 if FIRST else 0
    source = (tile * EACH + own - BEFORE).to(tl.int64) * WIDTH
    x = tl.load(x_ptr + source + columns, mask=inside & only_if(own != PLACE, columns), other=0.0).to(tl.float32)
    tl.store(y_ptr + row.to(tl.int64) * WIDTH + columns, tl.where(own == PLACE, token, x), mask=inside)


@triton.jit
def add_table(
    x_ptr: tl.tensor,
    table_ptr: tl.tensor,
    y_ptr: tl.tensor,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y = x + a table of the same shape; grid (blocks of BLOCK elements,)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < COUNT
    table = tl.load(table_ptr + i, mask=inside, other=0.0).to(tl.float32)
    wait(PDL)
    x = tl.load(x_ptr + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + i, x + table, mask=inside)


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """tanh of f32 values by the exponential, which is there on every target."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def add_places(
    x_ptr: tl.tensor,
    table_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    index_ptr: tl.tensor,
    y_ptr: tl.tensor,
    EACH: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPLEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y = x + tanh(gate) (COMPLEMENT: 1 less that) times row index[tile] of a table of EACH values; none for -1.

    A tile has TOKENS rows; a row of the table has a value for each channel, or for each of the tile's elements. Without
    index every tile takes row 0. grid (rows, blocks of BLOCK columns).
    """
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    factor = tanh(tl.load(gate_ptr).to(tl.float32))
    if COMPLEMENT:
        factor = 1.0 - factor
    wait(PDL)
    place = row * 0
    if index_ptr is not None:
        place = tl.load(index_ptr + row // TOKENS)
    from_row = tl.maximum(place, 0).to(tl.int64) * EACH
    if EACH != WIDTH:
        from_row += row % TOKENS * WIDTH
    added = tl.load(table_ptr + from_row + columns, mask=inside & only_if(place >= 0, columns), other=0.0)
    to = row.to(tl.int64) * WIDTH + columns
    x = tl.load(x_ptr + to, mask=inside, other=0.0)
    tl.store(y_ptr + to, x + factor * added.to(tl.float32), mask=inside)


@triton.jit
def pad_tiles(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    EACH: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """The EACH rows of every tile, and zeros up to PADDED of them; grid (rows of y, blocks of BLOCK columns)."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    wait(PDL)
    source = (row // PADDED * EACH + row % PADDED).to(tl.int64) * WIDTH
    x = tl.load(x_ptr + source + columns, mask=inside & only_if(row % PADDED < EACH, columns), other=0.0)
    tl.store(y_ptr + row.to(tl.int64) * WIDTH + columns, x, mask=inside)


@triton.jit
def layer_norm(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    K: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y = (x - mean) / sqrt(variance + EPS) * norm + bias, row by row; grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    norm = tl.load(norm_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    wait(PDL)
    x = tl.load(x_ptr + row * K + columns, mask=inside, other=0.0)
    centered = tl.where(inside, x - tl.sum(x, 0) / K, 0.0)
    y = centered * tl.rsqrt(tl.sum(centered * centered, 0) / K + EPS) * norm + bias
    tl.store(y_ptr + row * K + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def cos_sin(
    angles_ptr: tl.tensor, cos_ptr: tl.tensor, sin_ptr: tl.tensor, COUNT: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """cos and sin of fixed angles; grid (blocks of BLOCK,)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    angle = tl.load(angles_ptr + i, mask=i < COUNT, other=0.0)
    tl.store(cos_ptr + i, tl.cos(angle), mask=i < COUNT)
    tl.store(sin_ptr + i, tl.sin(angle), mask=i < COUNT)


@triton.jit
def rope_pairs(
    qkv_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    y_ptr: tl.tensor,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """q and k of joined rows [3 HEADS HEAD] turned in adjacent pairs, v as it is; grid (rows, blocks of pairs)."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    pair = first + tl.arange(0, BLOCK)
    both = 2 * first + tl.arange(0, 2 * BLOCK)
    WIDTH: tl.constexpr = 3 * HEADS * HEAD
    HALF: tl.constexpr = HEAD // 2
    wait(PDL)
    x = tl.load(qkv_ptr + row * WIDTH + both, mask=both < WIDTH, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (BLOCK, 2)))
    turned = pair < 2 * HEADS * HALF
    cos = tl.load(cos_ptr + row * HALF + pair % HALF, mask=turned, other=1.0)
    sin = tl.load(sin_ptr + row * HALF + pair % HALF, mask=turned, other=0.0)
    y = tl.interleave(even * cos - odd * sin, odd * cos + even * sin)
    tl.store(y_ptr + row * WIDTH + both, y.to(y_ptr.dtype.element_ty), mask=both < WIDTH)


@triton.jit
def lookup_row(
    table_ptr: tl.tensor,
    index_ptr: tl.tensor,
    y_ptr: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """One row of a table of integers; grid (1,)."""
    i = tl.arange(0, BLOCK)
    wait(PDL)
    found = tl.load(table_ptr + tl.load(index_ptr) * COLUMNS + i, mask=i < COLUMNS, other=0)
    tl.store(y_ptr + i, found, mask=i < COLUMNS)


@triton.jit
def tile_rows(
    shape_ptr: tl.tensor, y_ptr: tl.tensor, TILES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
) -> None:
    """The rows that hold what each tile adds, in a table of TILES rows for each shape; grid (1,)."""
    i = tl.arange(0, BLOCK)
    wait(PDL)
    tl.store(y_ptr + i, tl.load(shape_ptr) * TILES + i, mask=i < TILES)


@triton.jit
def gated_add(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    start_ptr: tl.tensor,
    stop_ptr: tl.tensor,
    y_ptr: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """y = residual + tanh(gate) x; with ranges the residual alone where one is empty; grid (rows, blocks)."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    places = row.to(tl.int64) * WIDTH + columns
    factor = tanh(tl.load(gate_ptr).to(tl.float32))
    wait(PDL)
    added = tl.load(x_ptr + places, mask=inside, other=0.0) * factor
    if start_ptr is not None:
        added = tl.where(tl.load(start_ptr + row) < tl.load(stop_ptr + row), added, 0.0)
    tl.store(y_ptr + places, tl.load(residual_ptr + places, mask=inside, other=0.0) + added, mask=inside)


@triton.jit
def append_tokens(
    kv_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    cache_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    table_ptr: tl.tensor,
    layer: tl.tensor,
    EPS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    LAYERS: tl.constexpr,
    PAGE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """k, normed head by head, and v of vision tokens [2 KV_HEADS HEAD] into the pages of one sequence.

    grid (tokens, 2 KV_HEADS).
    """
    token, own = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, HEAD)
    norm = tl.load(norm_ptr + d).to(tl.float32)
    wait(PDL)
    x = tl.load(kv_ptr + (token.to(tl.int64) * (2 * KV_HEADS) + own) * HEAD + d)
    head, is_value = own % KV_HEADS, own // KV_HEADS
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / HEAD + EPS) * norm
    position = tl.load(positions_ptr + token)
    inner, to_values = head_offset(layer, head, LAYERS, KV_HEADS, PAGE, HEAD)
    base = cache_ptr + page_start(tl.load(table_ptr + position // PAGE), LAYERS, KV_HEADS, PAGE, HEAD) + inner
    places = base + is_value * to_values + position % PAGE * HEAD + d
    tl.store(places, to_cache(tl.where(is_value == 0, normed, x), 1.0, cache_ptr, False))


@triton.jit
def place_rows(
    rows_ptr: tl.tensor,
    images_ptr: tl.tensor,
    y_ptr: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """Row t of y becomes row rows[t] of the pictures where that is one (not -1); grid (T, blocks of BLOCK columns)."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait(PDL)
    source = tl.load(rows_ptr + row)
    if source >= 0:
        inside = columns < WIDTH
        x = tl.load(images_ptr + source.to(tl.int64) * WIDTH + columns, mask=inside, other=0.0)
        tl.store(y_ptr + row.to(tl.int64) * WIDTH + columns, x, mask=inside)
