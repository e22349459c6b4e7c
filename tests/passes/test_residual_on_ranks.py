"""The residual goes into the products of all ranks, or of none: each runs the pass over a module of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from ir_cases import reader

from llamac.ir.graph import Module
from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.ranks import Ranks
from llamac.passes.fuse_row_residual import FuseRowResidual
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pass

TEXT = """module @m at lowering {
  weight @w : tensor<8 x 8 x f32> = file {tensor = "w", encoding = "f32"}
  weight @w.rows : tensor<8 x 32 x u8> = pack_rows @w {format = "f32"}
  graph @step(%x: tensor<T x 8 x f32>, %r: tensor<T x 8 x f32>) -> (tensor<T x 8 x f32>RESULTS) {
    %0 = linear_rows16 %x, @w.rows {columns = 8, format = "f32", operands = "x weight", rows = 8} : tensor<T x 8 x f32>
    %1 = all_reduce %0 {ranks = 2} : tensor<T x 8 x f32>
    %2 = add %r, %1 : tensor<T x 8 x f32>
    return %2RETURNED
  }
}
"""
ALONE = TEXT.replace("RESULTS", "").replace("RETURNED", "")
RETURNED_TOO = TEXT.replace("RESULTS", ", tensor<T x 8 x f32>").replace("RETURNED", ", %0")
SUM_RETURNED_TOO = TEXT.replace("RESULTS", ", tensor<T x 8 x f32>").replace("RETURNED", ", %1")


def _together(modules: list[Module], text: str) -> list[list[Any]]:
    rows, ranks, random = reader(parse_module(text)), Ranks(len(modules)), np.random.default_rng(3)
    inputs = {name: random.standard_normal((4, 8)) for name in ("x", "r")}
    runs = [Interpreter(m, rows, True, exchange=ranks.exchange(n)).run for n, m in enumerate(modules)]
    return ranks.run([partial(run, inputs) for run in runs])


@pytest.mark.parametrize(
    ("text", "fused"), [(ALONE, 1), (RETURNED_TOO, 0), (SUM_RETURNED_TOO, 0)], ids=["alone", "product", "sum"]
)
def test_all_ranks_do_the_same(text: str, fused: int) -> None:
    before, modules = [parse_module(text) for _ in range(2)], [parse_module(text) for _ in range(2)]
    results = [run_pass(m, FuseRowResidual(rank), PassContext()) for rank, m in enumerate(modules)]
    assert [r.counts["residual"] for r in results] == [fused, fused]
    for found, expected in zip(_together(modules, text), _together(before, text), strict=True):
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
