"""A kernel's result on every instruction set that runs here, for any threads and rows: always the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from kernel_driver import Emulated, Runner
from panel16 import Array

ROWS = 17
ROW_COUNTS = (1, 2, 4, 5, 12, 13, 16)
THREADS = (2, 3)


def check_every_way(runners: dict[str, Runner], expected: Array, run: Callable[[Runner, int, int], Array]) -> None:
    """`run(runner, threads, rows)` gives the bits of expected[:rows] on every instruction set, with every number of
    threads and rows.
    """
    for cpu, runner in runners.items():
        same_bits(run(runner, 1, len(expected)), expected, f"{cpu}, all rows")
        emulated = isinstance(runner, Emulated)
        for threads in THREADS[:1] if emulated else THREADS:
            same_bits(run(runner, threads, len(expected)), expected, f"{cpu}, {threads} threads")
        for rows in ROW_COUNTS[:1] if emulated else ROW_COUNTS:
            if rows < len(expected):
                same_bits(run(runner, 2, rows), expected[:rows], f"{cpu}, {rows} rows, 2 threads")


def same_bits(found: Array, expected: Array, where: str) -> None:
    """Equal bit for bit; the message says where, how many differ and the first."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    as_bits = f"u{found.dtype.itemsize}"
    different = np.argwhere(found.view(as_bits) != expected.view(as_bits))
    assert len(different) == 0, f"{where}: {len(different)} of {found.size} differ, the first at {different[0]}"


def strided(rows: Array, stride: int) -> Array:
    """Rows laid out with a longer stride; what lies between holds a marker."""
    wide = np.full((rows.shape[0], stride), 7777, rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide
