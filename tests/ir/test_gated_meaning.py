"""gated_linear_dense and gated_linear_grouped: the meaning of the product followed by the gated activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llamac.ir.definition import Evaluation, OpError
from llamac.ir.dtypes import BF16, F32, I8, I32, U8
from llamac.ir.layouts import format_of, pack
from llamac.ir.registry import find_op, infer_types
from llamac.ir.types import tensor

RANDOM = np.random.default_rng(2)
TOKENS, WIDTH, COLUMNS = 3, 16, 40


def _run(opcode: str, inputs: list[Any], attributes: dict[str, Any], exact: bool) -> list[Any]:
    dtypes = {np.dtype(np.float32): F32, np.dtype(np.float64): F32, np.dtype(np.int8): I8, np.dtype(np.int32): I32}
    types = [tensor(*x.shape, dtypes.get(x.dtype, U8)) for x in inputs]
    found = infer_types(opcode, types, attributes)
    return list(find_op(opcode).evaluate(Evaluation(inputs, attributes, found, {}, exact)))


def _silu(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(x / (1 + np.exp(-x)))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16x2", "e4m3fnx2"])
def test_dense(name: str, exact: bool) -> None:
    import ml_dtypes

    stored = {"f32": np.float32, "f16": np.float16, "bf16x2": ml_dtypes.bfloat16, "e4m3fnx2": ml_dtypes.float8_e4m3fn}
    matrix = (RANDOM.standard_normal((2 * WIDTH, COLUMNS)) / 4).astype(stored[name])
    scale = (2.0 ** RANDOM.integers(-2, 2, (2 * WIDTH, 1))).astype(np.float32) if name == "e4m3fnx2" else None
    attributes = {"format": name, "rows": 2 * WIDTH, "columns": COLUMNS}
    x = RANDOM.standard_normal((TOKENS, COLUMNS)).astype(np.float64 if exact else np.float32)
    fmt = format_of(name)
    packed = pack(fmt, matrix.view(BF16.storage) if name == "bf16x2" else matrix, scale, None)
    (found,) = _run("gated_linear_dense", [x, packed], attributes, exact)
    weights = matrix.astype(np.float64) * (1 if scale is None else scale)
    seen = x if exact or not fmt.in_pairs else x.astype(ml_dtypes.bfloat16)
    product = seen.astype(np.float64) @ weights.T
    expected = _silu(product[:, :WIDTH]) * product[:, WIDTH:]
    assert np.allclose(found, expected, rtol=1e-10 if exact else 1e-5, atol=1e-12 if exact else 1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_grouped_is_the_product_the_activation_and_the_quantization(exact: bool) -> None:
    rows = 2 * WIDTH
    quants = RANDOM.integers(-8, 8, (rows, COLUMNS)).astype(np.int8)
    scale = RANDOM.uniform(0.01, 0.02, (rows, 2)).astype(np.float16)
    packed = pack(format_of("i4g32s16"), quants, scale, None)
    x = RANDOM.standard_normal((TOKENS, COLUMNS)).astype(np.float64 if exact else np.float32)
    given = _run("quantize_rows", [x], {"block": 32, "padded": 64}, exact)
    if exact:
        given = [given[0].astype(np.float64), *given[1:]]
    weight = {"format": "i4g32s16", "rows": rows, "columns": COLUMNS}
    evaluate = {name: find_op(name).evaluate for name in ("linear_grouped", "swiglu_quantized", "gated_linear_grouped")}
    after = {"block": 16, "padded": 32}
    types = [tensor(TOKENS, 64, I8), tensor(TOKENS, 2, F32), tensor(TOKENS, 2, I32), tensor(*packed.shape, U8)]
    (product,) = evaluate["linear_grouped"](
        Evaluation([*given, packed], weight, infer_types("linear_grouped", types, weight), {}, exact)
    )
    middle = infer_types("swiglu_quantized", [tensor(TOKENS, rows, F32)], after)
    expected = evaluate["swiglu_quantized"](Evaluation([product], after, middle, {}, exact))
    fused = infer_types("gated_linear_grouped", types, weight | after)
    assert fused == middle
    found = evaluate["gated_linear_grouped"](Evaluation([*given, packed], weight | after, fused, {}, exact))
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(one, other, rtol=1e-12 if exact else 1e-6)


X = tensor(TOKENS, COLUMNS, F32)


@pytest.mark.parametrize(
    ("opcode", "types", "attributes", "reason"),
    [
        ("gated_linear_dense", [X, tensor(3, 2560, U8)], {"format": "f32", "rows": 48, "columns": 40}, "whole panels"),
        (
            "gated_linear_dense",
            [X, tensor(2, 2560, U8)],
            {"format": "f32", "rows": 48, "columns": 40},
            "matrix in f32 is",
        ),
        (
            "gated_linear_dense",
            [tensor(TOKENS, 41, F32), tensor(2, 2560, U8)],
            {"format": "f32", "rows": 32, "columns": 40},
            "does not fit a dense weight",
        ),
        (
            "gated_linear_grouped",
            [tensor(TOKENS, 64, I8), tensor(TOKENS, 3, F32), tensor(TOKENS, 2, I32), tensor(2, 576, U8)],
            {"format": "i4g32s16", "rows": 32, "columns": 40, "block": 16, "padded": 32},
            "must have shape",
        ),
        (
            "gated_linear_grouped",
            [tensor(TOKENS, 40, I8), tensor(TOKENS, 2, F32), tensor(TOKENS, 2, I32), tensor(2, 576, U8)],
            {"format": "i4g32s16", "rows": 32, "columns": 40, "block": 16, "padded": 32},
            "do not fit i4g32s16",
        ),
    ],
)
def test_refusals(opcode: str, types: list[Any], attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(OpError, match=reason):
        infer_types(opcode, types, attributes)
