"""Linear kernels in Triton's interpreter against the IR's meanings: every format, odd sizes, splits, row lists."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meanings import FORMATS, Weight, meaning, random_weight
from triton_interpreted import Array, Interpreter

EPS = 1e-5
ALL = (*FORMATS, "e4m3fn bits")
ON_A_GPU = os.environ.get("LLAMAC_GPU_KERNELS", "").startswith("run ")
TOLERANCE = {"f32": 3e-6, "bf16": 6e-3, "f16": 8e-4, "e4m3fn": 1e-3 if ON_A_GPU else 3e-6}
"""Error by the type that is multiplied, relative to the largest result: weights are exact in every format but products
of 16-bit tiles round the activations, and quants become 16-bit values first. Hopper's 8-bit products are added with
about 14 bits."""


def poisoned(*shape: int, dtype: Any = np.float32) -> Array:
    """Memory that nobody has written: NaN, so that whatever is read too early or left out shows."""
    return np.full(shape, np.nan, dtype)


def close(actual: Array, expected: Array, kind: str = "f32") -> None:
    """Within the tolerance of `kind` of the largest value."""
    assert not np.isnan(actual.astype(np.float32)).any(), "something was not written, or read before it was"
    error = np.abs(actual.astype(np.float64) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE[kind], f"relative error {error:.2g}"


def activations(rng: np.random.Generator, rows: int, columns: int) -> tuple[Array, Array]:
    """x [rows, columns] of different row sizes, and norm weights."""
    x = rng.standard_normal((rows, columns)) * rng.uniform(0.2, 5, (rows, 1))
    return x.astype(np.float32), rng.uniform(0.5, 1.5, columns).astype(np.float32)


def decode_linear(interpreter: Interpreter, weight: Weight, x: Array, tokens: int, **changes: Any) -> Array:
    """The result of `decode_linear` for the first `tokens` rows of x, two rows of output more than tokens say."""
    rows, columns = weight.layout.rows, weight.layout.columns
    block, splits, width = changes.pop("BK", 64), changes.pop("SPLITS", 1), changes.pop("BN", 8)
    padded = 1 << (tokens - 1).bit_length()
    tiles = -(-rows // width)
    counter = np.zeros(tiles, np.int32)
    y = poisoned(tokens + 2, rows)
    given = {"row_ptr": None, "norm_ptr": None, "residual_ptr": None} | changes
    interpreter.launch(
        "linear.decode_linear", (tiles, splits), x_ptr=x, y_ptr=y, tokens=tokens, N=rows, K=columns,
        X_STRIDE=x.shape[1], partial_ptr=poisoned(splits, padded, rows), counter_ptr=counter, EPS=EPS,
        M=padded, BN=width, BK=block, SPLITS=splits, PDL=False, **weight.arguments(), **given,
    )  # fmt: skip
    assert np.isnan(y[tokens:]).all(), "rows behind the tokens were written"
    assert not counter.any(), "a counter is not zero again"
    return y[:tokens]


def prefill_linear(interpreter: Interpreter, weight: Weight, x: Array, tokens: int, dot: str, **changes: Any) -> Array:
    """The result of `prefill_linear` for the first `tokens` rows of x."""
    rows, columns = weight.layout.rows, weight.layout.columns
    sizes = {"BN": 32, "BM": 16, "BK": 64}
    grid = -(-rows // sizes["BN"]) * -(-tokens // sizes["BM"])
    y = poisoned(tokens + 2, rows)
    given = {"row_ptr": None, "norm_ptr": None, "residual_ptr": None, "x_scale_ptr": None} | changes
    interpreter.launch(
        "linear.prefill_linear", (grid,), x_ptr=x, y_ptr=y, tokens=tokens, N=rows, K=columns, X_STRIDE=x.shape[1],
        EPS=EPS, BAND=2, DOT=dot, PDL=False, **sizes, **weight.arguments(), **given,
    )  # fmt: skip
    assert np.isnan(y[tokens:]).all(), "rows behind the tokens were written"
    return y[:tokens]


@pytest.mark.parametrize("format", ALL)
def test_decode_with_norm_and_residual(interpreter: Interpreter, format: str) -> None:
    rng = np.random.default_rng(2)
    weight = random_weight(rng, format, 21, 200)
    x, norm = activations(rng, 3, 200)
    residual = rng.standard_normal((3, 21)).astype(np.float32)
    expected = meaning("rms_norm", x, norm, eps=EPS)[0] @ weight.values.T.astype(np.float64) + residual
    close(decode_linear(interpreter, weight, x, 3, norm_ptr=norm, residual_ptr=residual), expected)


@pytest.mark.parametrize("format", ["bf16", "e4m3fn", "u4g32s16m16", "i8g32s16"])
@pytest.mark.parametrize("splits", [2, 3, 4])
def test_decode_split_over_columns(interpreter: Interpreter, format: str, splits: int) -> None:
    """Five blocks of columns: parts of different length, with four an empty one."""
    rng = np.random.default_rng(3)
    weight = random_weight(rng, format, 12, 300)
    x, norm = activations(rng, 2, 300)
    expected = meaning("rms_norm", x, norm, eps=EPS)[0] @ weight.values.T.astype(np.float64)
    close(decode_linear(interpreter, weight, x, 2, norm_ptr=norm, SPLITS=splits), expected)


def test_decode_of_listed_rows_in_bf16(interpreter: Interpreter) -> None:
    """The head: rows of a wider buffer in any order, and 16-bit activations."""
    rng = np.random.default_rng(4)
    weight = random_weight(rng, "bf16", 19, 64)
    x = rng.standard_normal((6, 64)).astype(ml_dtypes.bfloat16)
    rows = np.array([5, 0, 3], np.int32)
    expected = x[rows].astype(np.float64) @ weight.values.T
    close(decode_linear(interpreter, weight, x, 3, row_ptr=rows), expected)


@pytest.mark.parametrize("format", ALL)
def test_prefill_in_f32(interpreter: Interpreter, format: str) -> None:
    rng = np.random.default_rng(5)
    weight = random_weight(rng, format, 45, 130)
    x, norm = activations(rng, 19, 130)
    residual = rng.standard_normal((19, 45)).astype(np.float32)
    expected = meaning("rms_norm", x, norm, eps=EPS)[0] @ weight.values.T.astype(np.float64) + residual
    close(prefill_linear(interpreter, weight, x, 19, "f32", norm_ptr=norm, residual_ptr=residual), expected)


@pytest.mark.parametrize("format", ["bf16", "f16", "e4m3fn", "i4g128s16", "i8g64s16"])
@pytest.mark.parametrize("dot", ["bf16", "f16"])
def test_prefill_in_16_bits(interpreter: Interpreter, format: str, dot: str) -> None:
    rng = np.random.default_rng(6)
    weight = random_weight(rng, format, 33, 256)
    x = rng.standard_normal((17, 256)).astype(ml_dtypes.bfloat16)
    expected = x.astype(np.float64) @ weight.values.T
    close(prefill_linear(interpreter, weight, x, 17, dot), expected, dot)


def test_prefill_of_8_bit_activations(interpreter: Interpreter) -> None:
    """Rows quantized by `norm_rows` with a scale each, times e4m3fn weights with a scale a row."""
    rng = np.random.default_rng(7)
    weight = random_weight(rng, "e4m3fn", 33, 96)
    x, norm = activations(rng, 18, 96)
    quants, scale = poisoned(18, 96, dtype=ml_dtypes.float8_e4m3fn), poisoned(18)
    interpreter.launch(
        "linear.norm_rows", (18,), x_ptr=x, norm_ptr=norm, y_ptr=quants, scale_ptr=scale, K=96, EPS=EPS, LARGEST=448.0,
        BLOCK=128, PDL=False,
    )  # fmt: skip
    normal = meaning("rms_norm", x, norm, eps=EPS)[0]
    np.testing.assert_allclose(scale, np.abs(normal).max(1) / 448, rtol=1e-5)
    held = quants.astype(np.float64) * scale[:, None]
    assert np.abs(held - normal).max() <= np.abs(normal).max() / 16
    expected = held @ weight.values.T.astype(np.float64)
    close(prefill_linear(interpreter, weight, quants, 18, "e4m3fn", x_scale_ptr=scale), expected, "e4m3fn")


@pytest.mark.parametrize("format", ["f32", "bf16", "e4m3fn bits", "u4g32s16m16"])
@pytest.mark.parametrize("many", [False, True])
def test_gate_up(interpreter: Interpreter, format: str, many: bool) -> None:
    rng = np.random.default_rng(8)
    inner, columns, tokens = 27, 96, 3
    weight = random_weight(rng, format, 2 * inner, columns)
    x, norm = activations(rng, tokens, columns)
    joined = meaning("rms_norm", x, norm, eps=EPS)[0] @ weight.values.T.astype(np.float64)
    y = poisoned(tokens + 1, inner)
    given = {"x_ptr": x, "norm_ptr": norm, "y_ptr": y, "tokens": tokens, "N": inner, "K": columns, "X_STRIDE": columns}
    given |= {"EPS": EPS, "PDL": False} | weight.arguments()
    if many:
        given |= {"x_scale_ptr": None, "BN": 16, "BM": 16, "BK": 32, "BAND": 1, "DOT": "f32"}
        interpreter.launch("linear.prefill_gate_up", (2,), **given)
    else:
        interpreter.launch("linear.decode_gate_up", (4,), M=4, BN=8, BK=32, **given)
    close(y[:tokens], meaning("swiglu", joined)[0])
    assert np.isnan(y[tokens:]).all()


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 300), tokens=st.integers(1, 5), format=st.sampled_from(ALL),
    splits=st.integers(1, 3), many=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(
    interpreter: Interpreter, rows: int, columns: int, tokens: int, format: str, splits: int, many: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = random_weight(rng, format, rows, columns)
    x, _ = activations(rng, tokens, columns)
    expected = x.astype(np.float64) @ weight.values.T
    if many:
        close(prefill_linear(interpreter, weight, x, tokens, "f32"), expected)
    else:
        close(decode_linear(interpreter, weight, x, tokens, SPLITS=splits), expected)


def test_every_e4m3_byte_is_decoded_and_encoded(interpreter: Interpreter) -> None:
    """A row of each byte times one-hot activations is the byte's value, in software as in numpy."""
    from llamac.ir.layouts import format_of
    from llamac.ir.row_layouts import RowLayout, pack_rows

    finite = np.array([b for b in range(256) if b & 0x7F != 0x7F], np.uint8)
    layout = RowLayout(format_of("e4m3fn"), finite.size, 1)
    values = finite.view(ml_dtypes.float8_e4m3fn)[:, None]
    weight = Weight(layout, pack_rows(layout, values, np.ones((finite.size, 1), np.float32)), True)
    y = decode_linear(interpreter, weight, np.ones((1, 1), np.float32), 1, BK=16)
    np.testing.assert_array_equal(y[0], values[:, 0].astype(np.float32))
