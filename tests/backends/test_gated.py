"""Gate, up and their activation in one kernel: the bits of the kernels it replaces, however it is run."""

from __future__ import annotations

import numpy as np
import pytest
from every_way import ROWS, check_every_way, strided
from kernel_driver import Case, Runner, build_runners
from panel16 import Array, Grouped, GroupedMatrix, pack_dense, pack_pairs, quantize_rows

DENSE = [("BF16_PAIRS", 48, 50), ("E4M3FN_PAIRS", 16, 300), ("F32", 32, 21), ("F16", 16, 70)]
"""Type, gates, inputs."""
GROUPED = [
    (Grouped(4, True, 32, 16, 0), 48, 100, 32),
    (Grouped(4, False, 32, 16, 16), 32, 1100, 16),
    (Grouped(8, True, 64, 32, 0), 80, 63, 128),
    (Grouped(4, True, 16, 16, 0), 16, 40, 64),
]
"""Format, gates, inputs, group of the weight that the result is quantized for."""


def _cases() -> list[Case]:
    cases = []
    for kind, width, k in DENSE:
        product = f"llamac_linear_dense(th, B(float, 3), {2 * width}, B(float, 1), {k}, S(0), B(uint8_t, 2), "
        product += f"{2 * width}, {k}, LLAMAC_{kind}, NULL); llamac_barrier(th);"
        gate = f"llamac_swiglu(th, B(float, 0), {width + 3}, B(float, 3), {2 * width}, S(0), {width});"
        cases.append(Case(f"apart-{kind}-{width}", f"{product} {gate}"))
        fused = (
            f"llamac_gated_dense(th, B(float, 0), {width + 3}, B(float, 1), {k}, S(0), B(uint8_t, 2), {width}, {k}, "
        )
        cases.append(Case(f"fused-{kind}-{width}", f"{fused}LLAMAC_{kind});"))
    for fmt, width, k, group in GROUPED:
        product = (
            f"llamac_linear_grouped(th, B(float, 7), {2 * width}, QUANTIZED(3), S(0), B(uint8_t, 6), {2 * width}, "
        )
        product += f"{k}, {fmt.literal}, NULL); llamac_barrier(th);"
        gate = f"llamac_swiglu_quantize(th, QUANTIZED(0), B(float, 7), {2 * width}, S(0), {width}, {group});"
        cases.append(Case(f"apart-{fmt.name}-{width}", f"{product} {gate}"))
        fused = (
            f"llamac_gated_grouped(th, QUANTIZED(0), QUANTIZED(3), S(0), B(uint8_t, 6), {width}, {k}, {fmt.literal}, "
        )
        cases.append(Case(f"fused-{fmt.name}-{width}", f"{fused}{group});"))
    return cases


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory, left_out: tuple[str, ...]) -> dict[str, Runner]:
    return build_runners(_cases(), tmp_path_factory.mktemp("gated"), left_out)


@pytest.mark.parametrize("case", DENSE, ids=lambda case: f"{case[0]}-{case[1]}")
def test_dense(runners: dict[str, Runner], case: tuple[str, int, int]) -> None:
    import ml_dtypes

    kind, width, k = case
    random = np.random.default_rng(3)
    stored = {"BF16": ml_dtypes.bfloat16, "E4M3FN": ml_dtypes.float8_e4m3fn, "F32": np.float32, "F16": np.float16}
    matrix = random.standard_normal((2 * width, k)).astype(stored[kind.removesuffix("_PAIRS")])
    scale = random.uniform(0.5, 2, 2 * width).astype(np.float32) if kind.startswith("E4M3FN") else None
    weights = (pack_pairs if kind.endswith("PAIRS") else pack_dense)(matrix, scale)
    x = random.standard_normal((ROWS, k)).astype(np.float32)

    def run(name: str, runner: Runner, threads: int, rows: int) -> Array:
        y = strided(np.zeros((rows, width), np.float32), width + 3)
        products = np.zeros((rows, 2 * width), np.float32)
        runner.run(f"{name}-{kind}-{width}", threads, [rows], [y, x[:rows].copy(), weights, products])
        assert (y[:, width:] == 7777).all(), "wrote beyond the outputs"
        return np.ascontiguousarray(y[:, :width])

    expected = run("apart", next(iter(runners.values())), 1, ROWS)
    assert np.abs(expected).max() > 1
    check_every_way(runners, expected, lambda runner, threads, rows: run("fused", runner, threads, rows))


@pytest.mark.parametrize("case", GROUPED, ids=lambda case: f"{case[0].name}-{case[1]}")
def test_grouped(runners: dict[str, Runner], case: tuple[Grouped, int, int, int]) -> None:
    fmt, width, k, group = case
    random = np.random.default_rng(5)
    matrix = GroupedMatrix.random(fmt, 2 * width, k, random)
    x = quantize_rows(random.standard_normal((ROWS, k)).astype(np.float32), fmt)
    after = Grouped(8, True, group, 16, 0)
    padded, weights = after.padded(width), matrix.pack()

    def run(name: str, runner: Runner, threads: int, rows: int) -> Array:
        q = np.full((rows, padded), 77, np.int8)
        scale = np.full((rows, padded // after.block), 7777, np.float32)
        sums = np.full(scale.shape, 7777, np.int32)
        given = [part[:rows].copy() for part in (x.q, x.scale, x.sum)]
        products = np.zeros((rows, 2 * width), np.float32)
        runner.run(f"{name}-{fmt.name}-{width}", threads, [rows], [q, scale, sums, *given, weights, products])
        return np.concatenate([q.view(np.uint8), scale.view(np.uint8), sums.view(np.uint8)], axis=1)

    expected = run("apart", next(iter(runners.values())), 1, ROWS)
    check_every_way(runners, expected, lambda runner, threads, rows: run("fused", runner, threads, rows))
