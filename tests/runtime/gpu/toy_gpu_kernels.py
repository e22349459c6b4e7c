"""Kernels of the toy model on a GPU: only their parameters matter, `toy_gpu.ToyGpu` does the work in numpy."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def remember(token_ids_ptr, positions_ptr, owners_ptr, tables_ptr, cache_ptr, counter_ptr, tokens, table_width):
    """Store each token's id in its slot of its page."""
    row = tl.program_id(0)
    if row < tokens:
        owner = tl.load(owners_ptr + row)
        position = tl.load(positions_ptr + row)
        page = tl.load(tables_ptr + owner * table_width + position // 4)
        tl.store(cache_ptr + page * 16 + position % 4, tl.load(token_ids_ptr + row) + tl.load(counter_ptr))


@triton.jit
def see_tiles(tiles_ptr, scratch_ptr, tokens):
    """Look at the tiles."""
    tl.store(scratch_ptr, tl.load(tiles_ptr + tl.program_id(0) * 2) + tokens)


@triton.jit
def answer(rows_ptr, positions_ptr, owners_ptr, tables_ptr, cache_ptr, weights_ptr, logits_ptr, rows, table_width):
    """The logits of each wanted row."""
    row = tl.load(rows_ptr + tl.program_id(0))
    page = tl.load(tables_ptr + tl.load(owners_ptr + row) * table_width)
    seen = tl.load(cache_ptr + page * 16) + tl.load(positions_ptr + row) + rows + tl.load(weights_ptr)
    tl.store(logits_ptr + tl.program_id(0), seen.to(tl.float32))


@triton.jit
def best(logits_ptr, best_ptr):
    """The place of the largest logit of each row."""
    tl.store(best_ptr + tl.program_id(0), tl.load(logits_ptr + tl.program_id(0)).to(tl.int32))


@triton.jit
def draw(logits_ptr, sampling_ptr, chosen_ptr, sampled_ptr):
    """A token for each row."""
    row = tl.program_id(0)
    found = tl.load(logits_ptr + row).to(tl.int32) + tl.load(sampling_ptr + row * 8)
    tl.store(chosen_ptr + row, found)
    tl.store(sampled_ptr + row, found)
