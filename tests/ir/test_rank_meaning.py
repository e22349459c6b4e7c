"""What ranks make together: sums, joins and parts of weights; and what happens when they do not come together."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.ir.interpreter import Interpreter
from llamac.ir.parser import parse_module
from llamac.ir.ranks import Ranks

TEXT = """module @m at model {
  weight @w : tensor<6 x 5 x f32> = file {tensor = "w", encoding = "f32"}
  weight @w.rows : tensor<2 x 5 x f32> = part @w {axis = 0, start = 3, stop = 5}
  weight @w.columns : tensor<6 x 2 x f32> = part @w {axis = 1, start = 1, stop = 3}
  graph @step(%x: tensor<T x 5 x f32>, %r: tensor<T x 2 x f32>) -> (tensor<T x 2 x f32>, tensor<T x 6 x f32>) {
    %0 = linear %x, @w.rows : tensor<T x 2 x f32> in a
    %1 = all_reduce %0, %r {ranks = 3} : tensor<T x 2 x f32> in a
    %2 = all_gather %0 {ranks = 3} : tensor<T x 6 x f32> in a
    return %1, %2
  }
}
"""
W = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
X = np.random.default_rng(2).standard_normal((3, 4, 5))
R = np.ones((4, 2))


def read(name: str, lo: int, hi: int) -> np.ndarray:
    return W[lo:hi].view(np.uint8)


def test_sums_and_joins() -> None:
    """Every rank with rows of its own: the sum has the residual once, the join keeps the order of the ranks."""
    ranks, module = Ranks(3), parse_module(TEXT)
    views = [Interpreter(module, read, True, exchange=ranks.exchange(rank)) for rank in range(3)]
    found = ranks.run([partial(view.run, {"x": x, "r": R}) for view, x in zip(views, X, strict=True)])
    products = [x @ W[3:5].T.astype(np.float64) for x in X]
    for total, joined in found:
        np.testing.assert_allclose(total, sum(products) + R, rtol=1e-12)
        np.testing.assert_array_equal(joined, np.concatenate(products, axis=1))


def test_parts_of_a_weight() -> None:
    interpreter = Interpreter(parse_module(TEXT), read)
    found = {name: interpreter._value(interpreter.module.weights[name], {}) for name in ("w.rows", "w.columns")}
    np.testing.assert_array_equal(found["w.rows"], W[3:5])
    np.testing.assert_array_equal(found["w.columns"], W[:, 1:3])


def test_ranks_that_part_ways() -> None:
    """Other collectives, or a rank that fails: one error, and nobody waits."""
    ranks = Ranks(2)

    def meet(rank: int, kind: str, size: int) -> object:
        return ranks.exchange(rank)(kind, np.zeros(size))

    with pytest.raises(LlamacError, match="LLC0406"):
        ranks.run([partial(meet, 0, "all_reduce", 2), partial(meet, 1, "all_gather", 2)])
    with pytest.raises(ZeroDivisionError):
        ranks.run([partial(meet, 0, "all_reduce", 2), lambda: 1 // 0])
    assert len(ranks.run([partial(meet, r, "all_reduce", 2) for r in range(2)])) == 2
