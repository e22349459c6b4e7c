"""The C kernels against the numpy oracle, and against themselves: rows at a time, threads, instruction sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from every_way import ROWS, check_every_way, same_bits, strided
from kernel_driver import Case, Emulated, Runner, build_runners
from panel16 import (
    DENSE_TYPES,
    Array,
    Grouped,
    GroupedMatrix,
    dense_linear,
    grouped_linear,
    pack_dense,
    pack_pairs,
    pairs_linear,
    quantize_rows,
)

DENSE = [("f32", 40, 21), ("f32", 96, 64), ("f16", 33, 7), ("bf16", 100, 50), ("bf16", 16, 33), ("e4m3fn", 50, 37)]
PAIRS = [
    ("bf16", 40, 21),
    ("bf16", 96, 64),
    ("bf16", 17, 1),
    ("bf16", 50, 700),
    ("e4m3fn", 40, 37),
    ("e4m3fn", 33, 600),
]
GROUPED = [
    (Grouped(4, True, 32, 16, 0), 40, 100),
    (Grouped(4, True, 32, 16, 16), 33, 64),
    (Grouped(4, True, 128, 16, 0), 16, 130),
    (Grouped(4, True, 16, 32, 0), 20, 40),
    (Grouped(4, False, 32, 16, 16), 96, 96),
    (Grouped(4, False, 64, 32, 32), 17, 65),
    (Grouped(4, False, 16, 16, 32), 31, 48),
    (Grouped(8, True, 32, 16, 0), 40, 100),
    (Grouped(8, True, 64, 32, 0), 33, 63),
    (Grouped(8, True, 16, 16, 0), 50, 33),
    (Grouped(8, False, 32, 32, 16), 18, 70),
    (Grouped(8, False, 128, 16, 32), 34, 200),
    (Grouped(4, True, 32, 16, 16), 48, 1100),
    (Grouped(8, True, 128, 16, 0), 33, 1100),
]
"""The last ones have inputs of several sections."""
ATTENTION = [
    (3, 3, 16, "f32", 0),
    (9, 3, 64, "f32", 0),
    (8, 2, 80, "f16", 0),
    (4, 1, 128, "bf16", 0),
    (2, 1, 20, "f32", 0),
    (4, 2, 32, "f32", 256),
    (6, 2, 16, "f32", 300),
    (5, 1, 64, "f16", 40),
    (2, 1, 20, "bf16", 1),
]
"""Query heads, KV heads, width, dtype of the cache and chunk: 0 is none, 256 a page, 300 and 40 begin inside pages."""
WIDTHS = [48, 100, 576]
"""Row widths of the norm, quantization, and element-wise cases."""


def dense_name(case: tuple[str, int, int]) -> str:
    return "-".join(map(str, case))


def grouped_name(case: tuple[Grouped, int, int]) -> str:
    return f"{case[0].name}-{case[1]}-{case[2]}"


def _dense_cases() -> list[Case]:
    cases = []
    for case, suffix in [*((case, "") for case in DENSE), *((case, "_PAIRS") for case in PAIRS)]:
        kind, n, k = f"LLAMAC_{case[0].upper()}{suffix}", case[1], case[2]
        shape, name = f"{n}, {k}, {kind}", f"{dense_name(case)}{suffix}"
        call = f"llamac_linear_dense(th, B(float, 0), {n + 3}, B(float, 1), {k + 1}, S(0), B(uint8_t, 2), {shape}"
        cases.append(Case(f"linear-{name}", f"{call}, S(1) ? B(float, 0) : NULL);"))
        gather = f"llamac_embedding_dense(th, B(float, 0), {k}, B(int32_t, 1), S(0), B(uint8_t, 2), {shape});"
        cases.append(Case(f"embedding-{name}", gather))
    return cases


def _grouped_cases() -> list[Case]:
    cases = []
    for case in GROUPED:
        format, n, k = case
        shape = f"{n}, {k}, {format.literal}"
        call = f"llamac_linear_grouped(th, B(float, 0), {n + 3}, QUANTIZED(1), S(0), B(uint8_t, 4), {shape}"
        cases.append(Case(f"linear-{grouped_name(case)}", f"{call}, S(1) ? B(float, 0) : NULL);"))
        gather = f"llamac_embedding_grouped(th, B(float, 0), {k}, B(int32_t, 1), S(0), B(uint8_t, 2), {shape});"
        cases.append(Case(f"embedding-{grouped_name(case)}", gather))
    return cases


def _row_cases() -> list[Case]:
    cases = []
    for w in WIDTHS:
        norm = f"B(float, 1), {w + 5}, S(0), {w}, B(float, 2), 1e-5f"
        cases.append(Case(f"norm-{w}", f"llamac_rms_norm(th, B(float, 0), {w}, {norm});"))
        cases.append(Case(f"swiglu-{w}", f"llamac_swiglu(th, B(float, 0), {w}, B(float, 1), {2 * w}, S(0), {w});"))
        add = f"llamac_add(th, B(float, 0), {w}, B(float, 1), {w}, B(float, 2), {w}, S(0), {w});"
        cases.append(Case(f"add-{w}", add))
        for group in (16, 32, 128):
            quantize = f"llamac_quantize_rows(th, QUANTIZED(0), B(float, 3), {w}, S(0), {w}, {group});"
            cases.append(Case(f"quantize-{w}-{group}", quantize))
            norm = f"B(float, 3), {w + 5}, S(0), {w}, B(float, 4), 1e-5f, {group}"
            cases.append(Case(f"norm-quantize-{w}-{group}", f"llamac_rms_norm_quantize(th, QUANTIZED(0), {norm});"))
            gated = f"llamac_swiglu_quantize(th, QUANTIZED(0), B(float, 3), {2 * w}, S(0), {w}, {group});"
            cases.append(Case(f"swiglu-quantize-{w}-{group}", gated))
    return cases


def _attention_cases() -> list[Case]:
    cases = []
    for heads, kv_heads, dim, kind, chunk in ATTENTION:
        name, literal = f"{heads}-{kv_heads}-{dim}-{kind}-{chunk}", f"LLAMAC_{kind.upper()}"
        kv = "((llamac_kv){B(uint8_t, 0), S(1), B(int32_t, 1), 3})"
        row = kv_heads * dim
        append = f"{kv}, 1, {kv_heads}, {dim}, {literal}, B(float, 4), {row}, B(float, 5), {row}, S(0), "
        append += "B(int32_t, 2), B(int32_t, 3), B(float, 6), B(float, 7)"
        cases.append(Case(f"append-{name}", f"llamac_kv_append(th, {append});"))
        attend = f"B(float, 4), {heads * dim}, B(float, 5), {heads * dim}, S(0), {kv}, 1, {heads}, {kv_heads}, {dim}, "
        attend += f"{literal}, {dim**-0.5!r}f, {chunk}, B(int32_t, 2), B(int32_t, 3)"
        cases.append(Case(f"attention-{name}", f"llamac_attention(th, {attend});"))
    angles = "llamac_rope_angles(th, B(float, 0), B(float, 1), B(int32_t, 2), S(0), B(float, 3), S(1));"
    rope = "llamac_rope_rows(th, B(float, 0), 200, S(0), 3, 64, B(float, 1), B(float, 2));"
    odd = "llamac_rope_rows(th, B(float, 0), 60, S(0), 3, 20, B(float, 1), B(float, 2));"
    exp = "if (th->id == 0) for (int64_t i = 0; i < S(0); i += 16) "
    exp += "llamac_store(B(float, 0) + i, llamac_exp(llamac_load(B(float, 0) + i)));"
    return [*cases, Case("angles", angles), Case("rope", rope), Case("rope-odd", odd), Case("exp", exp)]


def all_cases() -> list[Case]:
    gather = "llamac_gather_rows(th, B(float, 0), 5, B(float, 1), 7, B(int32_t, 2), S(0), 5);"
    return [*_dense_cases(), *_grouped_cases(), *_row_cases(), *_attention_cases(), Case("gather", gather)]


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory, left_out: tuple[str, ...]) -> dict[str, Runner]:
    """The cases compiled for every instruction set that runs here, the oldest first."""
    return build_runners(all_cases(), tmp_path_factory.mktemp("kernels"), left_out)


@pytest.mark.parametrize(
    "cpu", ["x86_64_v3", pytest.param("x86_64_v4", marks=pytest.mark.slow), "znver4", "neoverse_n1"]
)
def test_instruction_sets_that_were_run(runners: dict[str, Runner], cpu: str) -> None:
    """Says by a skip which instruction sets the comparisons of this file could not cover here."""
    if cpu not in runners:
        pytest.skip(Emulated.missing() or "this processor lacks its instructions")


@pytest.mark.parametrize("case", DENSE, ids=dense_name)
def test_linear_dense(runners: dict[str, Runner], case: tuple[str, int, int]) -> None:
    _check_linear(runners, case, "", pack_dense, dense_linear)


@pytest.mark.parametrize("case", PAIRS, ids=dense_name)
def test_linear_in_pairs(runners: dict[str, Runner], case: tuple[str, int, int]) -> None:
    """The hardware's bf16 dot products give the bits of two fused multiply-adds, odd input first."""
    _check_linear(runners, case, "_PAIRS", pack_pairs, pairs_linear)


def _check_linear(
    runners: dict[str, Runner],
    case: tuple[str, int, int],
    suffix: str,
    pack: Callable[[Array, Array | None], Array],
    linear: Callable[[Array, Array, Array | None], Array],
) -> None:
    kind, n, k = case
    random = np.random.default_rng(1)
    x = random.standard_normal((ROWS, k)).astype(np.float32)
    matrix = random.standard_normal((n, k)).astype(DENSE_TYPES[kind])
    row_scale = random.uniform(0.5, 2, n).astype(np.float32) if kind == "e4m3fn" else None
    residual = random.standard_normal((ROWS, n)).astype(np.float32)
    weights, expected = pack(matrix, row_scale), linear(x, matrix, row_scale)

    for add in (0, 1):

        def run(runner: Runner, threads: int, rows: int, add: int = add) -> Array:
            y = strided(residual[:rows], n + 3)
            name = f"linear-{dense_name(case)}{suffix}"
            runner.run(name, threads, [rows, add], [y, strided(x[:rows], k + 1), weights])
            assert (y[:, n:] == 7777).all(), "wrote beyond the outputs"
            return np.ascontiguousarray(y[:, :n])

        check_every_way(runners, residual + expected if add else expected, run)


@pytest.mark.parametrize("case", GROUPED, ids=grouped_name)
def test_linear_grouped(runners: dict[str, Runner], case: tuple[Grouped, int, int]) -> None:
    format, n, k = case
    random = np.random.default_rng(2)
    x = quantize_rows(random.standard_normal((ROWS, k)).astype(np.float32), format)
    x.q[3], x.q[4] = 127, -127  # the extremes, for instruction sets that could saturate
    x.sum[:] = x.q.astype(np.int32).reshape(ROWS, -1, format.block).sum(axis=2)
    matrix = GroupedMatrix.random(format, n, k, random)
    matrix.stored[: n // 2, : k // 2] = 2**format.bits - 1
    residual = random.standard_normal((ROWS, n)).astype(np.float32)
    weights, expected = matrix.pack(), residual + grouped_linear(x, matrix)

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = strided(residual[:rows], n + 3)
        buffers = [y, x.q[:rows], x.scale[:rows], x.sum[:rows], weights]
        runner.run(f"linear-{grouped_name(case)}", threads, [rows, 1], buffers)
        assert (y[:, n:] == 7777).all(), "wrote beyond the outputs"
        return np.ascontiguousarray(y[:, :n])

    check_every_way(runners, expected, run)


@pytest.mark.parametrize("case", GROUPED, ids=grouped_name)
def test_grouped_oracle_is_near_the_real_product(case: tuple[Grouped, int, int]) -> None:
    """The oracle itself: quantized activations times the matrix that the quants stand for."""
    format, n, k = case
    random = np.random.default_rng(3)
    x = random.standard_normal((4, k)).astype(np.float32)
    matrix = GroupedMatrix.random(format, n, k, random)
    found = grouped_linear(quantize_rows(x, format), matrix)
    exact = x.astype(np.float64) @ matrix.values().astype(np.float64).T
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("case", PAIRS, ids=dense_name)
def test_embedding_in_pairs(runners: dict[str, Runner], case: tuple[str, int, int]) -> None:
    _check_embedding(runners, case, "_PAIRS", pack_pairs)


@pytest.mark.parametrize(
    "case", [*DENSE, *GROUPED], ids=lambda case: dense_name(case) if isinstance(case[0], str) else grouped_name(case)
)
def test_embedding(runners: dict[str, Runner], case: tuple[Any, int, int]) -> None:
    _check_embedding(runners, case, "", pack_dense)


def _check_embedding(
    runners: dict[str, Runner],
    case: tuple[Any, int, int],
    suffix: str,
    pack: Callable[[Array, Array | None], Array],
) -> None:
    kind, n, k = case
    random = np.random.default_rng(4)
    if isinstance(kind, Grouped):
        matrix = GroupedMatrix.random(kind, n, k, random)
        name, weights, values = grouped_name(case), matrix.pack(), matrix.values()
    else:
        dense = random.standard_normal((n, k)).astype(DENSE_TYPES[kind])
        row_scale = random.uniform(0.5, 2, n).astype(np.float32) if kind == "e4m3fn" else None
        name, weights, values = dense_name(case) + suffix, pack(dense, row_scale), dense.astype(np.float32)
        values = values if row_scale is None else values * row_scale[:, None]
    ids = random.integers(0, n, ROWS).astype(np.int32)
    ids[:2] = 0, n - 1

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = np.zeros((rows, k), np.float32)
        runner.run(f"embedding-{name}", threads, [rows], [y, ids[:rows].copy(), weights])
        return y

    check_every_way(runners, values[ids], run)


@pytest.mark.parametrize("group", [16, 32, 128])
@pytest.mark.parametrize("width", WIDTHS)
def test_quantize_rows(runners: dict[str, Runner], width: int, group: int) -> None:
    random = np.random.default_rng(5)
    x = (random.standard_normal((ROWS, width)) * 10.0 ** random.integers(-6, 6, (ROWS, 1))).astype(np.float32)
    x[2], x[3, :40] = 0, 0
    expected = quantize_rows(x, Grouped(8, True, group, 16, 0))

    def run(runner: Runner, threads: int, rows: int) -> Array:
        out = [np.zeros_like(part[:rows]) for part in (expected.q, expected.scale, expected.sum)]
        runner.run(f"quantize-{width}-{group}", threads, [rows], [*out, x[:rows]])
        return _as_bytes(out)

    check_every_way(runners, _as_bytes([expected.q, expected.scale, expected.sum]), run)


def _as_bytes(parts: list[Array]) -> Array:
    """Arrays of as many rows each, joined as bytes row by row."""
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8).reshape(len(part), -1) for part in parts], axis=1)


def test_quantize_rows_shows_infinity_and_nan(runners: dict[str, Runner]) -> None:
    x = np.ones((2, 48), np.float32)
    x[0, 3], x[1, 40] = np.inf, np.nan
    for runner in runners.values():
        q, scale, total = np.zeros((2, 64), np.int8), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32)
        runner.run("quantize-48-32", 1, [2], [q, scale, total, x])
        assert np.isinf(scale[0, 0]) and np.isnan(scale[1, 1]) and np.isfinite([scale[0, 1], scale[1, 0]]).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(runners: dict[str, Runner], width: int) -> None:
    random = np.random.default_rng(6)
    x = (random.standard_normal((ROWS, width)) * 3).astype(np.float32)
    weight = random.standard_normal(width).astype(np.float32)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide * wide).mean(axis=1, keepdims=True) + 1e-5) * weight

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = np.zeros((rows, width), np.float32)
        runner.run(f"norm-{width}", threads, [rows], [y, strided(x[:rows], width + 5), weight])
        return y

    first = run(next(iter(runners.values())), 1, ROWS)
    np.testing.assert_allclose(first, exact, rtol=1e-6)
    check_every_way(runners, first, run)
    for group in (16, 32, 128):
        expected = quantize_rows(first, Grouped(8, True, group, 16, 0))

        def fused(runner: Runner, threads: int, rows: int, group: int = group, expected: Any = expected) -> Array:
            out = [np.zeros_like(part[:rows]) for part in (expected.q, expected.scale, expected.sum)]
            arrays = [*out, strided(x[:rows], width + 5), weight]
            runner.run(f"norm-quantize-{width}-{group}", threads, [rows], arrays)
            return _as_bytes(out)

        check_every_way(runners, _as_bytes([expected.q, expected.scale, expected.sum]), fused)


@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu(runners: dict[str, Runner], width: int) -> None:
    random = np.random.default_rng(7)
    gate_up = (random.standard_normal((ROWS, 2 * width)) * 4).astype(np.float32)
    gate_up[0, :4] = -100, 100, -88, 0
    gate, up = gate_up[:, :width].astype(np.float64), gate_up[:, width:]
    exact = gate / (1 + np.exp(-gate)) * up

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = np.zeros((rows, width), np.float32)
        runner.run(f"swiglu-{width}", threads, [rows], [y, gate_up[:rows]])
        return y

    first = run(next(iter(runners.values())), 1, ROWS)
    np.testing.assert_allclose(first, exact, rtol=5e-7, atol=1e-35)
    check_every_way(runners, first, run)
    for group in (16, 32, 128):
        expected = quantize_rows(first, Grouped(8, True, group, 16, 0))

        def fused(runner: Runner, threads: int, rows: int, group: int = group, expected: Any = expected) -> Array:
            out = [np.zeros_like(part[:rows]) for part in (expected.q, expected.scale, expected.sum)]
            runner.run(f"swiglu-quantize-{width}-{group}", threads, [rows], [*out, gate_up[:rows]])
            return _as_bytes(out)

        check_every_way(runners, _as_bytes([expected.q, expected.scale, expected.sum]), fused)


def test_add_and_gather(runners: dict[str, Runner]) -> None:
    random = np.random.default_rng(8)
    a, b = random.standard_normal((2, ROWS, 100)).astype(np.float32)
    x, ids = random.standard_normal((9, 7)).astype(np.float32), random.integers(0, 9, ROWS).astype(np.int32)

    def add(runner: Runner, threads: int, rows: int) -> Array:
        y = np.zeros((rows, 100), np.float32)
        runner.run("add-100", threads, [rows], [y, a[:rows], b[:rows]])
        return y

    def gather(runner: Runner, threads: int, rows: int) -> Array:
        y = np.zeros((rows, 5), np.float32)
        runner.run("gather", threads, [rows], [y, x, ids[:rows]])
        return y

    check_every_way(runners, a + b, add)
    check_every_way(runners, np.ascontiguousarray(x[ids][:, :5]), gather)


def test_exp(runners: dict[str, Runner]) -> None:
    x = np.linspace(-87.3, 88, 100_000, dtype=np.float32)[: 16 * 6000]
    special = np.array([-np.inf, -1000, -87.4, 0, 88, -0.0, np.nan, 1e30] * 2, np.float32)
    for cpu, runner in runners.items():
        y, ends = x.copy(), special.copy()
        runner.run("exp", 1, [x.size], [y])
        runner.run("exp", 1, [special.size], [ends])
        error = np.abs(y - np.exp(x.astype(np.float64))) / np.spacing(np.exp(x.astype(np.float64)).astype(np.float32))
        assert error.max() < 1.1, cpu
        assert (ends[:3] == 0).all() and ends[3] == 1 and ends[5] == 1 and np.isnan(ends[6]) and np.isfinite(ends[7])
        if cpu == next(iter(runners)):
            first = y
        same_bits(y, first, cpu)


def test_rope_angles(runners: dict[str, Runner]) -> None:
    positions = np.array([0, 1, 2, 77, 1000, 8191, 65535, 131071, 1_000_003], np.int32)
    inv_freq = (500000.0 ** (-np.arange(0, 64, 2) / 64)).astype(np.float32)
    angles = positions.astype(np.float32)[:, None] * inv_freq[None]
    expected = np.concatenate([np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))], axis=1).astype(
        np.float32
    )

    def run(runner: Runner, threads: int, rows: int) -> Array:
        cosines, sines = np.zeros((2, rows, 32), np.float32)
        runner.run("angles", threads, [rows, 32], [cosines, sines, positions[:rows], inv_freq])
        return np.concatenate([cosines, sines], axis=1)

    check_every_way(runners, expected, run)


@pytest.mark.parametrize(("name", "dim", "stride"), [("rope", 64, 200), ("rope-odd", 20, 60)])
def test_rope_rows(runners: dict[str, Runner], name: str, dim: int, stride: int) -> None:
    random = np.random.default_rng(9)
    x = random.standard_normal((ROWS, stride)).astype(np.float32)
    cosines, sines = random.uniform(-1, 1, (2, ROWS, dim // 2)).astype(np.float32)
    expected = x.copy()
    expected[:, : 3 * dim] = rotated(x[:, : 3 * dim].reshape(ROWS, 3, dim), cosines, sines).reshape(ROWS, -1)

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = x[:rows].copy()
        runner.run(name, threads, [rows], [y, cosines[:rows], sines[:rows]])
        return y

    check_every_way(runners, expected, run)


def rotated(x: Array, cosines: Array, sines: Array) -> Array:
    """x [rows, heads, dim] rotated as transformers writes it: x * cos + rotate_half(x) * sin."""
    half = x.shape[2] // 2
    c, s = np.concatenate([cosines, cosines], axis=1)[:, None], np.concatenate([sines, sines], axis=1)[:, None]
    turned: Array = x * c + np.concatenate([-x[:, :, half:], x[:, :, :half]], axis=2) * s
    return turned


PAGES, LAYERS = 8, 2
TABLE = np.array([[5, 2, -1], [7, -1, -1], [1, 6, 3]], np.int32)
LENGTHS = (311, 1, 514)
"""Tokens of the three sequences: the first crosses into a second page, the third into a third one."""


@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: "-".join(map(str, case)))
def test_attention(runners: dict[str, Runner], case: tuple[int, int, int, str, int]) -> None:
    """Appending and attending with three sequences at once, in a cache that was full of NaN before."""
    heads, kv_heads, dim, kind, chunk = case
    name, element = "-".join(map(str, case)), {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[kind]
    random = np.random.default_rng(10)
    positions = np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32)
    sequences = np.repeat(np.arange(3), LENGTHS).astype(np.int32)
    k, v = random.standard_normal((2, positions.size, kv_heads * dim)).astype(np.float32)
    cosines, sines = random.uniform(-1, 1, (2, positions.size, dim // 2)).astype(np.float32)
    page = LAYERS * kv_heads * 2 * dim * 256
    keys = rotated(k.reshape(-1, kv_heads, dim), cosines, sines).astype(element)
    values = v.reshape(-1, kv_heads, dim).astype(element)
    expected_cache = _filled_cache(keys, values, positions, sequences)
    rows = np.array([*range(294, 311), 311, 825])  # seventeen new tokens, and one each of the other sequences
    q = random.standard_normal((rows.size, heads * dim)).astype(np.float32)
    exact = _attention(q.reshape(-1, heads, dim), keys, values, rows, positions, sequences, chunk)
    first: Array | None = None
    for cpu, runner in runners.items():
        cache = np.full((PAGES, page), np.nan, element)
        runner.run(f"append-{name}", 2, [positions.size, cache.nbytes // PAGES],
                   [cache, TABLE, positions, sequences, k, v, cosines, sines])  # fmt: skip
        same_bits(cache.reshape(expected_cache.shape), expected_cache, f"{cpu} cache")

        def run(runner: Runner, threads: int, count: int, pick: Any = slice(None), cache: Array = cache) -> Array:
            chosen = rows[pick][:count]
            out = np.zeros((chosen.size, heads * dim), np.float32)
            arrays = [
                cache,
                _seen_pages(positions[chosen], sequences[chosen], chunk),
                positions[chosen],
                sequences[chosen],
                out,
                q[pick][:count].copy(),
            ]
            runner.run(f"attention-{name}", threads, [chosen.size, cache.nbytes // PAGES], arrays)
            return out

        if first is None:
            first = run(runner, 1, rows.size)
            np.testing.assert_allclose(first, exact.reshape(rows.size, -1), rtol=2e-5, atol=2e-6)
        check_every_way({cpu: runner}, first, run)
        for row in (5, 6, 17, 18):
            same_bits(run(runner, 2, 1, slice(row, row + 1)), first[row : row + 1], f"{cpu}, row {row} alone")


def _filled_cache(keys: Array, values: Array, positions: Array, sequences: Array) -> Array:
    """[page][layer][kv head][2 * dim * 256] with layer 1 holding the tokens and NaN everywhere else."""
    _, kv_heads, dim = keys.shape
    cache = np.full((PAGES, LAYERS, kv_heads, 2, dim * 256), np.nan, keys.dtype)
    for token, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        page = cache[TABLE[sequence, position // 256], 1]
        panels = page[:, 0].reshape(kv_heads, 16, dim, 16)
        panels[:, position % 256 // 16, :, position % 16] = keys[token]
        page[:, 1].reshape(kv_heads, 256, dim)[:, position % 256] = values[token]
    return cache


def _seen_pages(positions: Array, sequences: Array, chunk: int) -> Array:
    """The page tables without the pages that none of these rows sees."""
    table = TABLE.copy()
    for sequence in range(len(TABLE)):
        mine = positions[sequences == sequence]
        table[sequence, : (mine.min() // chunk * chunk if chunk else 0) // 256 if mine.size else 3] = -1
    return table


def _attention(
    q: Array, keys: Array, values: Array, rows: Array, positions: Array, sequences: Array, chunk: int
) -> Array:
    """Plain causal attention in f64, each row within its own chunk."""
    out = np.zeros(q.shape, np.float64)
    ratio = q.shape[1] // keys.shape[1]
    for i, row in enumerate(rows):
        first = positions[row] // chunk * chunk if chunk else 0
        seen = np.flatnonzero((sequences == sequences[row]) & (positions <= positions[row]) & (positions >= first))
        for head in range(q.shape[1]):
            k, v = (part[seen, head // ratio].astype(np.float64) for part in (keys, values))
            scores = k @ q[i, head].astype(np.float64) * q.shape[2] ** -0.5
            weights = np.exp(scores - scores.max())
            out[i, head] = weights @ v / weights.sum()
    return out
