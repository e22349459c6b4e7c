"""The C kernels that Llama 4 adds, routing, experts, norm and temperature of heads, against plain numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from every_way import ROWS, THREADS, check_every_way, same_bits, strided
from kernel_driver import Case, Emulated, Runner, build_runners
from panel16 import (
    DENSE_TYPES,
    Array,
    Grouped,
    GroupedMatrix,
    QuantizedRows,
    dense_linear,
    grouped_linear,
    pack_dense,
    quantize_rows,
)

CHOICES = [(4, 1), (4, 2), (5, 5), (16, 1), (17, 3), (128, 1), (1, 1)]
"""Experts, and how many a token chooses; of equal logits the expert with the lower number comes first."""

EXPERTS = 4
SIZES = [(ROWS, 0, 0, 0), (0, 0, 0, ROWS), (0, 5, 12, 0), (1, 7, 1, 8)]
"""Routed rows of each expert: all on one, none on some."""

DENSE = [("f32", 16, 21), ("f16", 32, 7), ("bf16", 48, 50), ("e4m3fn", 16, 37)]
GROUPED = [
    (Grouped(4, True, 32, 16, 0), 16, 100),
    (Grouped(4, False, 32, 16, 16), 32, 64),
    (Grouped(8, True, 64, 32, 0), 16, 63),
    (Grouped(8, False, 16, 16, 32), 48, 33),
]
WIDTHS = [48, 100]
HEADS = [(3, 16), (2, 20), (5, 128)]
"""Heads that are changed, and their width; another head and a gap follow in each row."""


def choice_name(case: tuple[int, int]) -> str:
    return f"{case[0]}-{case[1]}"


def expert_name(case: tuple[Any, int, int]) -> str:
    return "-".join(str(getattr(part, "name", part)) for part in case)


def all_cases() -> list[Case]:
    cases = [Case("log", "if (th->id == 0) for (int64_t i = 0; i < S(0); i++) B(double, 0)[i] = " + _LOG)]
    for experts, k in CHOICES:
        outs = "B(int32_t, 0), B(int32_t, 1), B(float, 2), B(int32_t, 3), B(uint64_t, 4)"
        call = f"llamac_route(th, {outs}, B(float, 5), {experts + 3}, S(0), {experts}, {k});"
        cases.append(Case(f"route-{experts}-{k}", call))
    for w in WIDTHS:
        gather = f"B(float, 0), {w + 1}, B(float, 1), {w + 2}, B(int32_t, 2), B(float, 3), S(0), {w}, 2"
        cases.append(Case(f"gather-{w}", f"llamac_gather_routed(th, {gather});"))
        scatter = f"B(float, 0), {w + 1}, B(float, 1), {w + 2}, B(int32_t, 2), B(float, 3), {w + 3}, S(0), {w}, S(1)"
        cases.append(Case(f"scatter-{w}", f"llamac_scatter_routed(th, {scatter});"))
        scatter = f"B(float, 0), {w + 1}, B(float, 1), {w + 2}, B(int32_t, 2), B(float, 0), {w + 1}, S(0), {w}, S(1)"
        cases.append(Case(f"scatter-in-place-{w}", f"llamac_scatter_routed(th, {scatter});"))
    for case in DENSE:
        kind, n, k = case
        x = f"B(float, 0), {n + 3}, B(float, 1), {k + 1}, B(int32_t, 2), B(uint8_t, 3)"
        call = f"llamac_expert_dense(th, {x}, {n}, {k}, {EXPERTS}, LLAMAC_{kind.upper()});"
        cases.append(Case(f"experts-{expert_name(case)}", call))
    for grouped in GROUPED:
        format, n, k = grouped
        x = f"B(float, 0), {n + 3}, QUANTIZED(1), B(int32_t, 4), B(uint8_t, 5)"
        call = f"llamac_expert_grouped(th, {x}, {n}, {k}, {EXPERTS}, {format.literal});"
        cases.append(Case(f"experts-{expert_name(grouped)}", call))
    for heads, dim in HEADS:
        row = f"B(float, 0), {(heads + 1) * dim + 5}"
        norm = f"llamac_norm_heads(th, {row}, S(0), {heads}, {dim}, S(1) ? B(float, 1) : NULL, 1e-5f);"
        temper = f"llamac_temper_heads(th, {row}, B(int32_t, 1), S(0), {heads}, {dim}, 8192.0f, 0.1f);"
        cases += [Case(f"norm-heads-{heads}-{dim}", norm), Case(f"temper-heads-{heads}-{dim}", temper)]
    return cases


_LOG = "llamac_log(B(double, 0)[i]);"


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory, left_out: tuple[str, ...]) -> dict[str, Runner]:
    """The cases compiled for every instruction set that runs here, the oldest first."""
    return build_runners(all_cases(), tmp_path_factory.mktemp("llama4-kernels"), left_out)


def every_run(runners: dict[str, Runner]) -> Iterator[tuple[str, Runner, int]]:
    """Each instruction set with each number of threads."""
    for cpu, runner in runners.items():
        for threads in (1, *(THREADS[:1] if isinstance(runner, Emulated) else THREADS)):
            yield f"{cpu}, {threads} threads", runner, threads


def logits_of(experts: int, kind: str) -> Array:
    random = np.random.default_rng(experts)
    logits = random.standard_normal((ROWS, experts)).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits)
        logits[0], logits[1] = 0.0, -0.0
    if kind == "not numbers":
        logits[random.random(logits.shape) < 0.4] = np.nan
        logits[random.random(logits.shape) < 0.1] = -np.inf
        logits[0] = np.nan
        logits[1] = -np.inf
        logits[2, -1] = np.inf
    if kind == "one for all":
        logits[:, experts // 2] += 100
    return logits


@pytest.mark.parametrize("kind", ["random", "ties", "not numbers", "one for all"])
@pytest.mark.parametrize("case", CHOICES, ids=choice_name)
def test_route(runners: dict[str, Runner], case: tuple[int, int], kind: str) -> None:
    experts, k = case
    logits = logits_of(experts, kind)
    lowest = np.where(np.isnan(logits), -np.inf, logits)
    chosen = [sorted(range(experts), key=lambda e: (-row[e], e))[:k] for row in lowest]
    scores_of: dict[tuple[int, int], bytes] = {}
    for where, runner, threads in every_run(runners):
        for rows in (ROWS, 1, 5):
            order, place = np.full((2, rows * k), -7, np.int32)
            scores, offsets = np.full(rows * k, -7, np.float32), np.full(experts + 1, -7, np.int32)
            counts = np.arange(experts, dtype=np.uint64)
            arrays = [order, place, scores, offsets, counts, strided(logits[:rows], experts + 3)]
            runner.run(f"route-{experts}-{k}", threads, [rows], arrays)
            slots = sorted((e, t * k + i) for t in range(rows) for i, e in enumerate(chosen[t]))
            assert order.tolist() == [slot for _, slot in slots], where
            assert place[order].tolist() == list(range(rows * k)), where
            assert offsets.tolist() == [sum(e < first for e, _ in slots) for first in range(experts + 1)], where
            assert (counts == np.arange(experts) + np.diff(offsets)).all(), where
            for (expert, slot), score in zip(slots, scores, strict=True):
                logit = float(logits[slot // k, expert])
                exact = 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0 if logit == logit else math.nan
                assert math.isclose(score, exact, rel_tol=5e-7, abs_tol=1e-37) or (score != score and logit != logit)
                bits = scores_of.setdefault((slot // k, expert), score.tobytes())
                assert bits == score.tobytes() or score != score, where


def routed_rows(random: Any) -> tuple[Array, Array]:
    """order and place of two choices a token."""
    order = random.permutation(2 * ROWS).astype(np.int32)
    return order, np.argsort(order).astype(np.int32)


@pytest.mark.parametrize("width", WIDTHS)
def test_gather_routed(runners: dict[str, Runner], width: int) -> None:
    random = np.random.default_rng(1)
    x, scores = random.standard_normal((ROWS, width)).astype(np.float32), random.random(2 * ROWS).astype(np.float32)
    order, _ = routed_rows(random)

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = np.full((rows, width + 1), 7777, np.float32)
        arrays = [y, strided(x, width + 2), order, scores]
        runner.run(f"gather-{width}", threads, [rows], arrays)
        assert (y[:, width:] == 7777).all(), "wrote beyond the rows"
        return np.ascontiguousarray(y[:, :width])

    check_every_way(runners, x[order // 2] * scores[:, None], run)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_scatter_routed(runners: dict[str, Runner], width: int, k: int) -> None:
    """base, then the answers in the order of the choices; into base itself, too."""
    random = np.random.default_rng(2)
    routed = (random.standard_normal((ROWS * k, width)) * 10.0 ** random.integers(-3, 4, (ROWS * k, 1))).astype("f4")
    base = random.standard_normal((ROWS, width)).astype(np.float32)
    place = random.permutation(ROWS * k).astype(np.int32)
    expected = base.copy()
    for choice in place.reshape(ROWS, k).T:
        expected += routed[choice]

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y, marked = np.full((rows, width + 1), 7777, np.float32), strided(base[:rows], width + 3)
        arrays = [y, strided(routed, width + 2), place, marked]
        runner.run(f"scatter-{width}", threads, [rows, k], arrays)
        over = strided(base[:rows], width + 1)
        runner.run(f"scatter-in-place-{width}", threads, [rows, k], [over, *arrays[1:3]])
        same_bits(over, y, "in place")
        assert (y[:, width:] == 7777).all() and (marked[:, :width] == base[:rows]).all()
        return np.ascontiguousarray(y[:, :width])

    check_every_way(runners, expected, run)


def offsets_of(sizes: tuple[int, ...]) -> Array:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


def sides(sizes: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Each expert with the rows that are its."""
    for expert, (low, high) in enumerate(zip(offsets_of(sizes), offsets_of(sizes)[1:], strict=False)):
        yield expert, slice(low, high)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("case", DENSE, ids=expert_name)
def test_expert_dense(runners: dict[str, Runner], case: tuple[str, int, int], sizes: tuple[int, ...]) -> None:
    kind, n, k = case
    random = np.random.default_rng(3)
    x = random.standard_normal((ROWS, k)).astype(np.float32)
    stack = random.standard_normal((EXPERTS * n, k)).astype(DENSE_TYPES[kind])
    scale = random.uniform(0.5, 2, EXPERTS * n).astype(np.float32) if kind == "e4m3fn" else None
    expected = np.empty((ROWS, n), np.float32)
    for expert, rows in sides(sizes):
        mine = slice(expert * n, (expert + 1) * n)
        expected[rows] = dense_linear(x[rows], stack[mine], None if scale is None else scale[mine])
    weights = pack_dense(stack, scale)
    for where, runner, threads in every_run(runners):
        y = np.full((ROWS, n + 3), 7777, np.float32)
        arrays = [y, strided(x, k + 1), offsets_of(sizes), weights]
        runner.run(f"experts-{expert_name(case)}", threads, [], arrays)
        assert (y[:, n:] == 7777).all(), "wrote beyond the outputs"
        same_bits(np.ascontiguousarray(y[:, :n]), expected, where)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("case", GROUPED, ids=expert_name)
def test_expert_grouped(runners: dict[str, Runner], case: tuple[Grouped, int, int], sizes: tuple[int, ...]) -> None:
    format, n, k = case
    random = np.random.default_rng(4)
    x = quantize_rows(random.standard_normal((ROWS, k)).astype(np.float32), format)
    stack = GroupedMatrix.random(format, EXPERTS * n, k, random)
    expected = np.empty((ROWS, n), np.float32)
    for expert, rows in sides(sizes):
        # Every row by every matrix; of the products those of the row's own expert.
        products = grouped_linear(QuantizedRows(x.q[rows], x.scale[rows], x.sum[rows]), stack)
        expected[rows] = products[:, expert * n : (expert + 1) * n]
    weights = stack.pack()
    for where, runner, threads in every_run(runners):
        y = np.full((ROWS, n + 3), 7777, np.float32)
        arrays = [y, x.q, x.scale, x.sum, offsets_of(sizes), weights]
        runner.run(f"experts-{expert_name(case)}", threads, [], arrays)
        assert (y[:, n:] == 7777).all(), "wrote beyond the outputs"
        same_bits(np.ascontiguousarray(y[:, :n]), expected, where)


def joined_rows(heads: int, dim: int) -> Array:
    """Rows of heads to be changed, one that is not, and a gap."""
    random = np.random.default_rng(5)
    x = (random.standard_normal((ROWS, (heads + 1) * dim)) * 10.0 ** random.integers(-6, 5, (ROWS, 1))).astype("f4")
    x[3, :dim] = 0
    return strided(x, (heads + 1) * dim + 5)


@pytest.mark.parametrize("weighted", [0, 1])
@pytest.mark.parametrize(("heads", "dim"), HEADS)
def test_norm_heads(runners: dict[str, Runner], heads: int, dim: int, weighted: int) -> None:
    x, width = joined_rows(heads, dim), heads * dim
    weight = np.random.default_rng(7).uniform(-2, 2, dim).astype(np.float32)
    wide = x[:, :width].reshape(ROWS, heads, dim).astype(np.float64)
    exact = wide / np.sqrt((wide * wide).mean(axis=2, keepdims=True) + 1e-5) * (weight if weighted else 1)

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = x[:rows].copy()
        runner.run(f"norm-heads-{heads}-{dim}", threads, [rows, weighted], [y, weight])
        return y

    first = run(next(iter(runners.values())), 1, ROWS)
    np.testing.assert_allclose(first[:, :width].reshape(exact.shape), exact, rtol=1e-6)
    same_bits(np.ascontiguousarray(first[:, width:]), np.ascontiguousarray(x[:, width:]), "behind the heads")
    check_every_way(runners, first, run)


POSITIONS = np.array(
    [0, 1, 8190, 8191, 8192, 16382, 16383, 24575, 32767, 65535, 131071, 262143, 1048575, 10485759, 2**31 - 2, 5, 8191],
    np.int32,
)
"""Around the steps of 8192, up to the ten million that Scout claims, and as far as positions go."""


@pytest.mark.parametrize(("heads", "dim"), HEADS)
def test_temper_heads(runners: dict[str, Runner], heads: int, dim: int) -> None:
    x, width = joined_rows(heads, dim), heads * dim
    blocks = np.floor((POSITIONS.astype(np.float32) + np.float32(1)) / np.float32(8192))
    logarithms = np.array([math.log(1 + float(b)) for b in blocks]).astype(np.float32)
    expected = x.copy()
    expected[:, :width] *= (logarithms * np.float32(0.1) + np.float32(1))[:, None]

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = x[:rows].copy()
        runner.run(f"temper-heads-{heads}-{dim}", threads, [rows], [y, POSITIONS[:rows].copy()])
        return y

    check_every_way(runners, expected, run)


def test_log(runners: dict[str, Runner]) -> None:
    """To the last bits of a double, the same everywhere; what has no logarithm of its own comes back as it is."""
    random = np.random.default_rng(6)
    values = np.concatenate([np.arange(1, 5000), 2.0 ** np.arange(1, 60), np.exp(random.uniform(0, 40, 5000)), [1e308]])
    exact = np.array([math.log(v) for v in values])
    first: Array | None = None
    for cpu, runner in runners.items():
        found, ends = values.copy(), np.array([np.inf, np.nan, 1.0])
        runner.run("log", 1, [found.size], [found])
        runner.run("log", 1, [ends.size], [ends])
        np.testing.assert_allclose(found, exact, rtol=4e-16)
        assert ends[0] == np.inf and np.isnan(ends[1]) and ends[2] == 0
        first = found if first is None else first
        same_bits(found, first, cpu)
