"""Attention of single rows, whose pages the threads share, and the int8 cache: against numpy, always the same bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from every_way import same_bits
from kernel_driver import Case, Emulated, Runner, build_runners
from panel16 import Array

SHAPES = [
    (9, 3, 64, "f16"),
    (4, 1, 128, "bf16"),
    (16, 1, 256, "f16"),
    (34, 2, 32, "f32"),
    (24, 2, 40, "i8"),
    (2, 2, 20, "i8"),
]
"""Query heads, KV heads, width and cache: groups of 3, 4, 16, 1 (17 is prime), 12 and 1 heads."""

PAGES = 5
CONTEXT = 61
"""Pages of the long sequence: more than one round of one thread where parts are largest. They lie in PAGES pages."""

POSITIONS = np.array([256 * CONTEXT - 3, 511, 0, 300], np.int32)
SEQUENCES = np.arange(4, dtype=np.int32)
ELEMENTS: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i8": np.int8}
C_NAMES = {"f32": "LLAMAC_F32", "f16": "LLAMAC_F16", "bf16": "LLAMAC_BF16", "i8": "LLAMAC_KV_I8"}
RANGES = (16, 1, 256, "f16")
"""The shape that is tried with ranges of its rows, too."""


def shape_name(shape: tuple[int, int, int, str]) -> str:
    return "-".join(map(str, shape))


def all_cases() -> list[Case]:
    cases = []
    for shape in SHAPES:
        heads, kv_heads, dim, kind = shape
        kv = f"((llamac_kv){{B(uint8_t, 0), S(1), B(int32_t, 1), {CONTEXT}}})"
        row, literal = kv_heads * dim, C_NAMES[kind]
        append = f"{kv}, 0, {kv_heads}, {dim}, {literal}, B(float, 4), {row}, B(float, 5), {row}, S(0), "
        append += "B(int32_t, 2), B(int32_t, 3), NULL, NULL"
        attend = f"B(float, 4), {heads * dim}, B(float, 5), {heads * dim}, S(0), {kv}, 0, {heads}, {kv_heads}, {dim}, "
        attend += f"{literal}, {dim**-0.5!r}f, "
        ranged = f"llamac_attention_range(th, {attend}B(int32_t, 6), B(int32_t, 2), B(int32_t, 3));"
        cases += [
            Case(f"append-{shape_name(shape)}", f"llamac_kv_append(th, {append});"),
            Case(f"attend-{shape_name(shape)}", f"llamac_attention(th, {attend}0, B(int32_t, 2), B(int32_t, 3));"),
            *([Case(f"range-{shape_name(shape)}", ranged)] if shape == RANGES else []),
        ]
    return cases


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory, left_out: tuple[str, ...]) -> dict[str, Runner]:
    """The cases compiled for every instruction set that runs here, the oldest first."""
    return build_runners(all_cases(), tmp_path_factory.mktemp("long-attention"), left_out)


def page_tables() -> Array:
    """Every sequence begins at another page and goes round."""
    return ((np.arange(CONTEXT)[None] + np.arange(4)[:, None]) % PAGES).astype(np.int32)


class Stored:
    """Keys and values [PAGES * 256, kv_heads, dim] as the cache holds them, and the memory that should hold them."""

    def __init__(self, k: Array, v: Array, kind: str) -> None:
        tokens, kv_heads, dim = k.shape
        parts = []
        self.keys, self.values = (held(x, kind) for x in (k, v))
        for page in range(tokens // 256):
            rows = slice(256 * page, 256 * (page + 1))
            for head in range(kv_heads):
                (keys, ks), (values, vs) = (quantized(x[rows, head], kind) for x in (k, v))
                pair = 2 if kind == "i8" else 1
                panels = keys.reshape(16, 16, dim // pair, pair).transpose(0, 2, 1, 3)
                rows_of_pairs = values.reshape(256 // pair, pair, dim).transpose(0, 2, 1)
                parts += [x.tobytes() for x in (*([ks, vs] if kind == "i8" else []), panels, rows_of_pairs)]
        self.memory = np.frombuffer(b"".join(parts), np.uint8).copy()


def quantized(x: Array, kind: str) -> tuple[Array, Array]:
    """Elements as the cache holds them, and the f16 scale of each row (int8 only)."""
    if kind != "i8":
        return x.astype(ELEMENTS[kind]), np.zeros(0)
    with np.errstate(over="ignore"):
        scales = (np.abs(x).max(axis=1) / np.float32(127)).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    return np.rint(np.clip(x * inverse[:, None], -127, 127)).astype(np.int8), scales


def held(x: Array, kind: str) -> Array:
    """The values that x has in the cache, in f64."""
    q, scales = quantized(x.reshape(-1, x.shape[2]), kind)
    wide = q.astype(np.float64) * (scales.astype(np.float64)[:, None] if kind == "i8" else 1)
    return wide.reshape(x.shape)


def stored(shape: tuple[int, int, int, str]) -> Stored:
    heads, kv_heads, dim, kind = shape
    k, v = np.random.default_rng(heads).standard_normal((2, PAGES * 256, kv_heads, dim)).astype(np.float32)
    k[3, 0], v[5, 0] = 0, 0
    k[4, 0, 0] = 1000
    return Stored(k, v, kind)


def attended(shape: tuple[int, int, int, str], cache: Stored, q: Array, row: int, first: int = 0) -> Array:
    """Plain attention in f64 of one row, [heads, dim]."""
    heads, kv_heads, dim, _ = shape
    seen = np.arange(first, POSITIONS[row] + 1)
    tokens = page_tables()[SEQUENCES[row], seen // 256] * 256 + seen % 256
    out = np.zeros((heads, dim))
    for head in range(heads):
        k, v = cache.keys[tokens, head * kv_heads // heads], cache.values[tokens, head * kv_heads // heads]
        scores = k @ q[row].reshape(heads, dim)[head].astype(np.float64) * dim**-0.5
        weights = np.exp(scores - scores.max())
        out[head] = weights @ v / weights.sum()
    return out.reshape(-1)


def run_rows(
    runner: Runner, case: str, shape: tuple[int, int, int, str], threads: int, cache: Stored, rows: Any, q: Array,
    starts: Array | None = None,
) -> Array:  # fmt: skip
    heads, _, dim, _ = shape
    positions, sequences = np.asarray([r[0] for r in rows], np.int32), np.asarray([r[1] for r in rows], np.int32)
    out = np.full((len(rows), heads * dim), np.nan, np.float32)
    arrays = [cache.memory, page_tables(), positions, sequences, out, q, *([] if starts is None else [starts])]
    runner.run(case, threads, [len(rows), cache.memory.size // PAGES], arrays)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
def test_threads_share_the_pages_of_a_row(runners: dict[str, Runner], shape: tuple[int, int, int, str]) -> None:
    """The same bits for every number of threads, alone or in a batch, and beside a row of its own sequence."""
    heads, _, dim, _ = shape
    cache = stored(shape)
    q = np.random.default_rng(1).standard_normal((4, heads * dim)).astype(np.float32)
    rows, case = list(zip(POSITIONS, SEQUENCES, strict=True)), f"attend-{shape_name(shape)}"
    first = run_rows(next(iter(runners.values())), case, shape, 1, cache, rows, q)
    exact = np.stack([attended(shape, cache, q, row) for row in range(4)])
    # Of int8, weights and queries are rounded to 16 bits: half a unit of the last place, 2^-16, moves a mean that much.
    tolerance = {"rtol": 1e-4, "atol": 3e-5} if shape[3] == "i8" else {"rtol": 3e-5, "atol": 3e-6}
    np.testing.assert_allclose(first, exact, **tolerance)
    for cpu, runner in runners.items():
        if isinstance(runner, Emulated):  # the long row would take minutes
            found = run_rows(runner, case, shape, 2, cache, rows[1:], q[1:].copy())
            same_bits(found, first[1:], f"{cpu}, 2 threads")
            continue
        for threads in (1, 2, 3, 7):
            same_bits(run_rows(runner, case, shape, threads, cache, rows, q), first, f"{cpu}, {threads} threads")
        for row in range(4):
            alone = run_rows(runner, case, shape, 3, cache, [rows[row]], q[row : row + 1].copy())
            same_bits(alone, first[row : row + 1], f"{cpu}, row {row} alone")
        both = run_rows(runner, case, shape, 2, cache, [(POSITIONS[1] - 1, 1), rows[1]], q[[0, 1]].copy())
        same_bits(both[1:], first[1:2], f"{cpu}, after another row of its sequence")


def test_ranges_of_single_rows(runners: dict[str, Runner]) -> None:
    """Rows that see from inside a page on, and one that sees nothing, with more pages than one round takes."""
    heads, _, dim, _ = RANGES
    cache, starts = stored(RANGES), np.array([77, 300, 5, 256], np.int32)
    q = np.random.default_rng(2).standard_normal((4, heads * dim)).astype(np.float32)
    stops = list(zip(POSITIONS + 1, SEQUENCES, strict=True))
    exact = np.stack([attended(RANGES, cache, q, row, starts[row]) if row != 2 else np.zeros(heads * dim)
                      for row in range(4)])  # fmt: skip
    first: Array | None = None
    for cpu, runner in runners.items():
        for threads in () if isinstance(runner, Emulated) else (1, 2, 5):
            found = run_rows(runner, f"range-{shape_name(RANGES)}", RANGES, threads, cache, stops, q, starts)
            first = found if first is None else first
            same_bits(found, first, f"{cpu}, {threads} threads")
    assert first is not None
    np.testing.assert_allclose(first, exact, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4]], ids=shape_name)
def test_many_tiles_go_through_the_pages_together(runners: dict[str, Runner], shape: tuple[int, int, int, str]) -> None:
    """A prompt of more tiles than a band holds, beside rows of another sequence: the bits of each row alone."""
    heads, _, dim, _ = shape
    cache, case = stored(shape), f"attend-{shape_name(shape)}"
    rows = [(position, 3) for position in range(220, 520)] + [(700 + i, 1) for i in range(3)]
    q = np.random.default_rng(3).standard_normal((len(rows), heads * dim)).astype(np.float32)
    for cpu, runner in runners.items():
        if isinstance(runner, Emulated):
            continue
        whole = run_rows(runner, case, shape, 1, cache, rows, q)
        for threads in (2, 5):
            same_bits(run_rows(runner, case, shape, threads, cache, rows, q), whole, f"{cpu}, {threads} threads")
        for row in (0, 35, 36, 199, 299, 300, 302):
            alone = run_rows(runner, case, shape, 2, cache, [rows[row]], q[row : row + 1].copy())
            same_bits(alone, whole[row : row + 1], f"{cpu}, row {row} alone")


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
def test_append_fills_the_pages(runners: dict[str, Runner], shape: tuple[int, int, int, str]) -> None:
    """Every byte of the pages, scales and all."""
    heads, kv_heads, dim, kind = shape
    k, v = np.random.default_rng(heads).standard_normal((2, PAGES * 256, kv_heads, dim)).astype(np.float32)
    k[3, 0], v[5, 0] = 0, 0
    k[4, 0, 0] = 1000
    expected = Stored(k, v, kind).memory
    positions, tables = np.arange(PAGES * 256, dtype=np.int32), np.zeros((1, CONTEXT), np.int32)
    tables[0, :PAGES] = np.arange(PAGES)
    for cpu, runner in runners.items():
        memory = np.full_like(expected, 0x7F)
        arrays = [memory, tables, positions, np.zeros_like(positions), k.copy(), v.copy()]
        runner.run(f"append-{shape_name(shape)}", 2, [positions.size, memory.size // PAGES], arrays)
        same_bits(memory, expected, cpu)


def test_int8_shows_what_is_no_number(runners: dict[str, Runner]) -> None:
    """A NaN or an infinity in a key makes the scale one: the output shows it."""
    shape = (2, 2, 20, "i8")
    cache, q = stored(shape), np.ones((1, 40), np.float32)
    k, v = np.ones((2, 2, 40), np.float32)
    k[0, 3], v[1, 25] = np.nan, np.inf
    positions, sequences = np.array([0, 1], np.int32), np.zeros(2, np.int32)
    for cpu, runner in runners.items():
        arrays = [cache.memory, page_tables(), positions, sequences, k, v]
        runner.run(f"append-{shape_name(shape)}", 1, [2, cache.memory.size // PAGES], arrays)
        scales = cache.memory[: 2 * 2 * 256].view(np.float16)
        assert np.isnan(scales[0]) and np.isfinite(scales[1]), cpu
        out = run_rows(runner, f"attend-{shape_name(shape)}", shape, 1, cache, [(1, 0)], q)
        assert np.isnan(out[0, :20]).all() and not np.isfinite(out[0, 20:]).all(), cpu
