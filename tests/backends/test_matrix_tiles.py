"""Matrix kernels of rarer instruction sets against the numpy oracle: AVX-VNNI, a model of AMX tiles, NEON i8mm."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from every_way import check_every_way, strided
from kernel_driver import Case, Emulated, Library, Runner
from panel16 import (
    DENSE_TYPES,
    Array,
    Grouped,
    GroupedMatrix,
    grouped_linear,
    pack_pairs,
    pairs_linear,
    quantize_rows,
    tiles_linear,
)

from llamac.target import TARGETS

GROUPED = [
    (Grouped(4, True, 32, 16, 0), 40, 96),
    (Grouped(4, False, 64, 32, 32), 17, 65),
    (Grouped(4, True, 16, 16, 16), 33, 48),
    (Grouped(8, True, 32, 16, 0), 40, 100),
    (Grouped(8, False, 16, 32, 16), 18, 70),
    (Grouped(4, True, 32, 16, 16), 48, 1100),
    (Grouped(8, True, 128, 16, 0), 33, 1100),
]
"""Formats, outputs and inputs; the last ones have inputs of several sections."""
PAIRS = [("bf16", 40, 21), ("bf16", 50, 700), ("e4m3fn", 33, 300)]
ROWS = 39
"""Two full tiles of the largest kind, and one of few rows."""
MODEL = (Path(__file__).parent / "tile_model.h").read_text(encoding="utf-8")


def _flags() -> set[str]:
    return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split())


def _cases() -> list[Case]:
    cases = [Case("tiles-allowed", "if (th->id == 0) B(int32_t, 0)[0] = llamac_tiles_allowed();")]
    for format, n, k in GROUPED:
        call = f"llamac_linear_grouped(th, B(float, 0), {n + 3}, QUANTIZED(1), S(0), B(uint8_t, 4), {n}, {k}"
        cases.append(Case(f"{format.name}-{n}-{k}", f"{call}, {format.literal}, NULL);"))
    for kind, n, k in PAIRS:
        call = f"llamac_linear_dense(th, B(float, 0), {n + 3}, B(float, 1), {k + 1}, S(0), B(uint8_t, 2), {n}, {k}"
        cases.append(Case(f"{kind}-{n}-{k}", f"{call}, LLAMAC_{kind.upper()}_PAIRS, NULL);"))
    return cases


def _missing(name: str) -> str | None:
    """Why the kernels called `name` cannot run here."""
    if name == "aarch64-i8mm":
        return Emulated.missing()
    needs = TARGETS["znver4"].requires if name == "amx-model" else TARGETS[name].requires
    lacks = [flag for flag in needs if flag not in _flags()]
    return f"this processor lacks {', '.join(lacks)}" if lacks else None


@pytest.fixture(scope="module", params=["x86-64-v3-vnni", "amx-model", "aarch64-i8mm"])
def runners(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runner]:
    """The cases for one instruction set, under its name."""
    name, folder = request.param, tmp_path_factory.mktemp("tiles")
    reason = _missing(name)
    if reason:
        pytest.skip(reason)
    build: Callable[[], Runner] = {
        "x86-64-v3-vnni": functools.partial(Library, _cases(), TARGETS["x86-64-v3-vnni"].cpu, folder),
        "amx-model": functools.partial(Library, _cases(), "znver4", folder, MODEL),
        "aarch64-i8mm": functools.partial(Emulated, _cases(), TARGETS["aarch64-i8mm"].cpu, folder),
    }[name]
    return {name: build()}


@pytest.mark.parametrize("case", GROUPED, ids=lambda case: f"{case[0].name}-{case[1]}-{case[2]}")
def test_grouped(runners: dict[str, Runner], case: tuple[Grouped, int, int]) -> None:
    format, n, k = case
    random = np.random.default_rng(7)
    x = quantize_rows(random.standard_normal((ROWS, k)).astype(np.float32), format)
    x.q[3], x.q[4] = 127, -127  # the extremes, for sums that could saturate
    x.sum[:] = x.q.astype(np.int32).reshape(ROWS, -1, format.block).sum(axis=2)
    matrix = GroupedMatrix.random(format, n, k, random)
    matrix.stored[: n // 2, : k // 2] = 2**format.bits - 1
    weights = matrix.pack()

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = strided(np.zeros((rows, n), np.float32), n + 3)
        buffers = [y, x.q[:rows], x.scale[:rows], x.sum[:rows], weights]
        runner.run(f"{format.name}-{n}-{k}", threads, [rows], buffers)
        assert (y[:, n:] == 7777).all(), "wrote beyond the outputs"
        return np.ascontiguousarray(y[:, :n])

    check_every_way(runners, grouped_linear(x, matrix), run)


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: "-".join(map(str, case)))
def test_pairs(runners: dict[str, Runner], case: tuple[str, int, int]) -> None:
    """NEON's bf16 multiply-adds give the bits of two fused multiply-adds; AMX's tiles have a chain of their own."""
    kind, n, k = case
    random = np.random.default_rng(8)
    x = random.standard_normal((ROWS, k)).astype(np.float32)
    matrix = random.standard_normal((n, k)).astype(DENSE_TYPES[kind])
    row_scale = random.uniform(0.5, 2, n).astype(np.float32) if kind == "e4m3fn" else None
    oracle = tiles_linear if "amx-model" in runners else pairs_linear
    weights, expected = pack_pairs(matrix, row_scale), oracle(x, matrix, row_scale)

    def run(runner: Runner, threads: int, rows: int) -> Array:
        y = strided(np.zeros((rows, n), np.float32), n + 3)
        runner.run(f"{kind}-{n}-{k}", threads, [rows], [y, strided(x[:rows], k + 1), weights])
        assert (y[:, n:] == 7777).all(), "wrote beyond the outputs"
        return np.ascontiguousarray(y[:, :n])

    check_every_way(runners, expected, run)


def test_subnormal_numbers_are_the_same_alone_and_in_a_tile(runners: dict[str, Runner]) -> None:
    """tdpbf16ps takes them for zero, so one row alone, which uses no tile, has to as well."""
    kind, n, k = PAIRS[0]
    random = np.random.default_rng(9)
    x = (random.standard_normal((ROWS, k)) * 10.0 ** random.uniform(-20, 0, (ROWS, k))).astype(np.float32)
    tiny = random.standard_normal((n, k)) * 10.0 ** random.uniform(-39, -18, (n, k))
    weights = pack_pairs(tiny.astype(DENSE_TYPES[kind]), None)
    for runner in runners.values():
        whole, alone = np.zeros((ROWS, n + 3), np.float32), np.zeros((1, n + 3), np.float32)
        runner.run(f"{kind}-{n}-{k}", 1, [ROWS], [whole, strided(x, k + 1), weights])
        for row in range(0, ROWS, 10):
            runner.run(f"{kind}-{n}-{k}", 1, [1], [alone, strided(x[row : row + 1], k + 1), weights])
            assert alone[0, :n].tobytes() == whole[row, :n].tobytes()


def test_tiles_are_asked_for(runners: dict[str, Runner]) -> None:
    """Where the kernels use no tiles nothing is refused; those that do get what the kernel of this system says."""
    allowed = np.full(1, 7, np.int32)
    for name, runner in runners.items():
        runner.run("tiles-allowed", 1, [], [allowed])
        assert allowed[0] == (name != "amx-model" or "amx_tile" in _flags())
