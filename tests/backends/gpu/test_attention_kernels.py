"""Attention kernels in Triton's interpreter against the IR's `attend`: ragged, paged in any order, chunked, 8 bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meanings import meaning
from paged import Pages, filled_pages, rows_of
from triton_interpreted import Array, Interpreter

KEYS = 16
TOLERANCE = {"f32": 2e-6, "f16": 1e-3, "bf16": 8e-3, "e4m3fn": 8e-3, "e4m3fn bits": 1e-3}
"""Error relative to the largest result, by cache type: q and the weights of the average are rounded to the type that
the cache is multiplied in."""


def expected(q: Array, pages: Pages, positions: Array, sequences: Array, layer: int) -> Array:
    heads = q.shape[1] // pages.type.head_dim
    table = np.where(pages.table < len(pages.memory), pages.table, 0)
    return meaning("attend", q, pages.state, positions, sequences, table, layer=layer, heads=heads, scale=0.25)[0]


def common(q: Array, pages: Pages, positions: Array, sequences: Array, layer: int) -> dict[str, Any]:
    return {
        "q_ptr": q, "positions_ptr": positions, "sequences_ptr": sequences, "layer": layer, "SCALE": 0.25,
        "HEADS": q.shape[1] // pages.type.head_dim, "CHUNK": pages.type.chunk, "KEYS": KEYS, "PDL": False,
    } | pages.arguments()  # fmt: skip


def decode(interpreter: Interpreter, q: Array, pages: Pages, positions: Array, sequences: Array, splits: int) -> Array:
    """What `decode_attention` makes of each row, with poisoned scratch memory."""
    tokens, kv, rows = len(q), pages.type.kv_heads, 16
    scratch = tokens * kv * rows
    counter = np.zeros(tokens * kv, np.int32)
    out = np.full(q.shape, np.nan, np.float32)
    interpreter.launch(
        "attention.decode_attention", (tokens, kv, splits), out_ptr=out, counter_ptr=counter, ROWS=rows, SPLITS=splits,
        partial_ptr=np.full((scratch, splits, pages.type.head_dim), np.nan, np.float32),
        weight_ptr=np.full((scratch, splits), np.nan, np.float32), **common(q, pages, positions, sequences, 1),
    )  # fmt: skip
    assert not counter.any()
    return out


def prefill(interpreter: Interpreter, q: Array, pages: Pages, positions: Array, sequences: Array) -> Array:
    """What `prefill_attention` makes of all rows, in tiles as the host lists them and one of no tokens."""
    shared = q.shape[1] // pages.type.head_dim // pages.type.kv_heads
    rows, most = 16, 16 // shared
    tiles = []
    for sequence in np.unique(sequences):
        own = np.flatnonzero(sequences == sequence)
        tiles += [(own[i], min(most, len(own) - i)) for i in range(0, len(own), most)]
    tiles.append((0, 0))
    out = np.full(q.shape, np.nan, np.float32)
    interpreter.launch(
        "attention.prefill_attention", (len(tiles), pages.type.kv_heads), out_ptr=out, ROWS=rows,
        tiles_ptr=np.array(tiles, np.int32), **common(q, pages, positions, sequences, 1),
    )  # fmt: skip
    return out


def check(actual: Array, wanted: Array, storage: str) -> None:
    assert not np.isnan(actual).any(), "a hidden key or an unwritten value got in"
    error = np.abs(actual - wanted).max() / np.abs(wanted).max()
    assert error < TOLERANCE[storage], f"relative error {error:.2g}"


@pytest.mark.parametrize("storage", TOLERANCE)
@pytest.mark.parametrize("splits", [1, 4])
def test_decode(interpreter: Interpreter, storage: str, splits: int) -> None:
    """Contexts of 1, one block, one page and more; five query heads to a kv head as in Scout."""
    rng = np.random.default_rng(1)
    lengths = [1, 16, 32, 75]
    pages = filled_pages(rng, lengths, storage, kv_heads=2, head=32, page=32)
    positions, sequences = rows_of(lengths, [[0], [15], [31], [74]])
    q = rng.standard_normal((4, 10 * 32)).astype(np.float32)
    wanted = expected(q, pages, positions, sequences, 1)
    check(decode(interpreter, q, pages, positions, sequences, splits), wanted, storage)


@pytest.mark.parametrize("position", [0, 31, 32, 33, 70])
def test_decode_in_chunks(interpreter: Interpreter, position: int) -> None:
    """Llama 4: pages of earlier chunks were given back."""
    rng = np.random.default_rng(2)
    pages = filled_pages(rng, [71], "f32", kv_heads=1, head=16, page=16, chunk=32)
    positions, sequences = rows_of([71], [[position]])
    q = rng.standard_normal((1, 4 * 16)).astype(np.float32)
    wanted = expected(q, pages, positions, sequences, 1)
    pages.table[:, : position // 32 * 2] = 10**6
    check(decode(interpreter, q, pages, positions, sequences, 2), wanted, "f32")


@pytest.mark.parametrize("storage", TOLERANCE)
def test_prefill(interpreter: Interpreter, storage: str) -> None:
    """A fresh prompt, one continued in the middle of a page, a single row; three query heads to a kv head."""
    rng = np.random.default_rng(3)
    lengths = [40, 60, 18]
    pages = filled_pages(rng, lengths, storage, kv_heads=2, head=32, page=32)
    positions, sequences = rows_of(lengths, [list(range(40)), list(range(37, 60)), [17]])
    q = rng.standard_normal((len(positions), 6 * 32)).astype(np.float32)
    wanted = expected(q, pages, positions, sequences, 1)
    check(prefill(interpreter, q, pages, positions, sequences), wanted, storage)


def test_prefill_in_chunks(interpreter: Interpreter) -> None:
    """Tiles inside a chunk, at its end, and across its border."""
    rng = np.random.default_rng(4)
    pages = filled_pages(rng, [75], "f32", kv_heads=1, head=16, page=16, chunk=32)
    positions, sequences = rows_of([75], [list(range(30, 75))])
    q = rng.standard_normal((45, 2 * 16)).astype(np.float32)
    wanted = expected(q, pages, positions, sequences, 1)
    check(prefill(interpreter, q, pages, positions, sequences), wanted, "f32")


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=3), shared=st.sampled_from([1, 2, 3, 4, 8]),
    splits=st.sampled_from([1, 2, 4]), chunk=st.sampled_from([0, 16, 48]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_batch(
    interpreter: Interpreter, lengths: list[int], shared: int, splits: int, chunk: int, seed: int
) -> None:
    """The last row of each sequence by `decode_attention`, the second half of each by `prefill_attention`."""
    rng = np.random.default_rng(seed)
    pages = filled_pages(rng, lengths, "f32", kv_heads=1, head=16, page=16, chunk=chunk)
    for wanted_rows, many in (([[n - 1] for n in lengths], False), ([[*range(n // 2, n)] for n in lengths], True)):
        positions, sequences = rows_of(lengths, wanted_rows)
        q = rng.standard_normal((len(positions), shared * 16)).astype(np.float32)
        wanted = expected(q, pages, positions, sequences, 1)
        if many:
            check(prefill(interpreter, q, pages, positions, sequences), wanted, "f32")
        else:
            check(decode(interpreter, q, pages, positions, sequences, splits), wanted, "f32")


def test_a_bf16_result(interpreter: Interpreter) -> None:
    rng = np.random.default_rng(5)
    pages = filled_pages(rng, [20], "bf16", kv_heads=1, head=16, page=16)
    positions, sequences = rows_of([20], [[19]])
    q = rng.standard_normal((1, 16)).astype(ml_dtypes.bfloat16)
    wanted = expected(q.astype(np.float32), pages, positions, sequences, 1)
    check(decode(interpreter, q, pages, positions, sequences, 2), wanted, "bf16")
