"""What a ranking head means: logits as the linear gives them, the best of them in order, and their sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from running import run

from llamac.ir.dtypes import F32, I8, I32, U8
from llamac.ir.layouts import format_of, pack
from llamac.ir.types import tensor


def inputs(kind: str, rows: int) -> tuple[list[Any], list[Any], dict[str, Any], np.ndarray]:
    """Types, values and attributes of a head over 20 outputs of 32 inputs, and its logits."""
    random = np.random.default_rng(3)
    weight, x = random.integers(-2, 3, (20, 32)), random.integers(-2, 3, (rows, 32))
    inverse = np.linspace(0.5, 2, rows).astype(np.float32)
    logits = (x @ weight.T).astype(np.float32)
    attributes: dict[str, Any] = {"rows": 20, "columns": 32, "count": 7}
    if kind == "head_dense":
        fmt = format_of("f32")
        packed = pack(fmt, weight.astype(np.float32), None, None)
        values, types = [x.astype(np.float32)], [tensor(rows, 32, F32)]
    else:
        fmt = format_of("i8g32s16")
        packed = pack(fmt, weight.astype(np.int8), np.ones((20, 1), np.float16), None)
        sums = x.sum(axis=1, keepdims=True).astype(np.int32)
        values = [x.astype(np.int8), np.ones((rows, 1), np.float32), sums]
        types = [tensor(rows, 32, I8), tensor(rows, 1, F32), tensor(rows, 1, I32)]
    types += [tensor(*packed.shape, U8), tensor(rows, F32)]
    return types, [*values, packed, inverse], {**attributes, "format": fmt.name}, logits


@pytest.mark.parametrize("kind", ["head_dense", "head_grouped"])
@pytest.mark.parametrize("exact", [False, True])
def test_the_best_in_order_and_their_sum(kind: str, exact: bool) -> None:
    types, values, attributes, expected = inputs(kind, 5)
    logits, ids, best, sums = run(kind, values, exact, types, **attributes)
    assert (logits == expected).all() and len(np.unique(expected[0])) < 20, "there are ties"
    for row in range(5):
        order = sorted(range(20), key=lambda n: (-expected[row, n], n))[:7]
        assert ids[row].tolist() == order and best[row].tolist() == expected[row, order].tolist()
        exponents = (expected[row] - expected[row].max()).astype(np.float64) * values[-1][row]
        assert np.isclose(sums[row], np.exp(exponents).sum(), rtol=1e-6)
