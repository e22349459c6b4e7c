"""Rounding to every float type, against torch and against a definition by search."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llamac.ir.dtypes import BF16, DTYPES, E4M3FN, E4M3FNUZ, E5M2, F16, F32, DType, round_to, widen

TORCH = {BF16: torch.bfloat16, F16: torch.float16, E4M3FN: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
FLOATS = [t for t in DTYPES.values() if t.is_float]


def _bit_patterns(count: int = 200_000) -> np.ndarray:
    """Random f32 bit patterns: every exponent, subnormals, infinities and NaNs among them."""
    bits = np.random.default_rng(7).integers(0, 1 << 32, count, dtype=np.uint32)
    return bits.view(np.float32)


def _same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    assert (np.isnan(found) == nan).all()
    assert (found.view(np.uint32)[~nan] == expected.view(np.uint32)[~nan]).all()


def _stored_values(dtype: DType) -> np.ndarray:
    """Every finite value that `dtype` holds, ascending, as f64."""
    bits = np.arange(1 << dtype.bits, dtype=np.uint32).astype(f"u{dtype.bits // 8}")
    values = bits.view(dtype.storage).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_rounding_agrees_with_torch(dtype: DType) -> None:
    values = _bit_patterns()
    if dtype is E4M3FN:
        # torch and ml_dtypes agree inside the range; beyond it one saturates nowhere and the other gives NaN alike.
        values = values[np.abs(values) < 464]
    expected = torch.from_numpy(values).to(TORCH[dtype]).to(torch.float32).numpy()
    _same(round_to(values, dtype), expected)


@pytest.mark.parametrize("dtype", [t for t in FLOATS if t is not F32], ids=str)
def test_ties_go_to_even_and_neighbours_to_the_nearest(dtype: DType) -> None:
    stored = _stored_values(dtype)
    low, high = stored[:-1], stored[1:]
    middle = (low + high) / 2
    exact = middle.astype(np.float32).astype(np.float64) == middle
    low, high, middle = low[exact], high[exact], middle[exact].astype(np.float32)
    assert len(middle) > 100
    above, below = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))
    assert (round_to(above, dtype) == high.astype(np.float32)).all()
    assert (round_to(below, dtype) == low.astype(np.float32)).all()
    tied = round_to(middle, dtype).astype(dtype.storage).view(f"u{dtype.bits // 8}")
    assert (tied % 2 == 0).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_a_type_holds_stays_as_it_is(dtype: DType) -> None:
    values = _stored_values(dtype).astype(np.float32) if dtype is not F32 else _bit_patterns(1000)
    _same(round_to(values, dtype), values)
    _same(widen(values.astype(dtype.storage)), values)


def test_e4m3fn_has_subnormals_no_infinity_and_ends_at_448() -> None:
    stored = _stored_values(E4M3FN)
    assert stored.max() == 448 and np.diff(stored[stored > 0])[0] == 2.0**-9 and stored[stored > 0].min() == 2.0**-9
    rounded = round_to(np.array([2.0**-9, 2.0**-10, 2.0**-10 * 1.5, 463.9, 1e9, np.inf, np.nan], np.float32), E4M3FN)
    assert rounded[:4].tolist() == [2.0**-9, 0, 2.0**-9, 448]
    assert np.isnan(rounded[4:]).all()


def test_nan_survives_bf16_whatever_its_payload() -> None:
    bits = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0x7FFFFFFF, 0x7F80FFFF], np.uint32)
    assert np.isnan(round_to(bits.view(np.float32), BF16)).all()
    infinities = np.array([np.inf, -np.inf], np.float32)
    assert (round_to(infinities, BF16) == infinities).all()
    assert np.isinf(round_to(np.array([3.4e38], np.float32), BF16)).all()


def test_integers_and_wider_types_are_left_alone() -> None:
    values = np.array([1.5, 2.5], np.float32)
    assert round_to(values, F32) is values
    assert round_to(values, DTYPES["i8"]) is values
    assert round_to(values.astype(np.float64), F16).dtype == np.float64


def test_names_and_widths() -> None:
    assert [(t.name, t.bits) for t in (E4M3FNUZ, E5M2)] == [("e4m3fnuz", 8), ("e5m2", 8)]
    assert all(str(t) == name and t.storage.itemsize * 8 == max(t.bits, 8) for name, t in DTYPES.items())
