"""What kernels over rows of pictures compute, and the scales of a cache, against loops over heads in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from running import run

from llamac.ir.dtypes import BF16, F16, F32, I32, DType
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.types import CacheType, tensor

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(21)
HEADS: dict[str, Any] = {"heads": 2, "head_dim": 4}
MODES = [(True, F16), (False, F32), (False, F16), (False, BF16)]
"""Exact, whatever the next kernel reads; and rounded to what it reads."""


def same(found: Array, wanted: Array, exact: bool, dtype: DType) -> None:
    """`found` is `wanted` but for rounding to `dtype`, which exact mode leaves out."""
    if exact:
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
        return
    step = {F32: 2.0**-20, F16: 2.0**-10, BF16: 2.0**-7}[dtype]
    assert found.dtype == np.float32 and (found == found.astype(dtype.storage).astype(np.float32)).all()
    np.testing.assert_allclose(found, wanted, rtol=step, atol=2.0**-18)


def parts(qkv: Array) -> dict[tuple[str, int], Array]:
    """The columns [tokens, 4] of q, k and v of each of two heads: all of q, all of k, all of v."""
    at = {("q", 0): 0, ("q", 1): 4, ("k", 0): 8, ("k", 1): 12, ("v", 0): 16, ("v", 1): 20}
    return {name: qkv[:, first : first + 4] for name, first in at.items()}


def weighted(query: Array, keys: Array, values: Array, scale: float) -> Array:
    """The mean of the values by the exponentials of the keys' products with one query."""
    likely = np.exp(scale * (keys @ query))
    return np.asarray((likely[:, None] * values).sum(0) / likely.sum())


@pytest.mark.parametrize(("exact", "dtype"), MODES)
def test_layer_norm_rows(exact: bool, dtype: DType) -> None:
    x, weight, bias = RANDOM.standard_normal((3, 6)) * 5 + 2, RANDOM.standard_normal(6), RANDOM.standard_normal(6)
    x[1] *= 1e-3  # where eps tells
    (found,) = run("layer_norm_rows", [x, weight, bias], exact, eps=1e-3, dtype=dtype)
    mean = x.sum(1, keepdims=True) / 6
    variance = ((x - mean) ** 2).sum(1, keepdims=True) / 6
    same(found, weight * (x - mean) / np.sqrt(variance + 1e-3) + bias, exact, dtype)


@pytest.mark.parametrize(("exact", "dtype"), MODES)
def test_rope_image_rows(exact: bool, dtype: DType) -> None:
    """Neighbours of each head of q and k are complex numbers, turned by the row's angles; v stays."""
    qkv, angles = RANDOM.standard_normal((3, 24)), RANDOM.uniform(-3, 3, (3, 2))
    (found,) = run("rope_image_rows", [qkv, np.cos(angles), np.sin(angles)], exact, **HEADS, dtype=dtype)
    wanted = qkv.copy()
    for (name, _), part in parts(wanted).items():
        if name != "v":
            turned = (part[:, 0::2] + 1j * part[:, 1::2]) * np.exp(1j * angles)
            part[:, 0::2], part[:, 1::2] = turned.real, turned.imag
    same(found, wanted, exact, dtype)


def attended_rows(qkv: Array, padding: Array) -> Array:
    """Attention of each row, head by head: padding sees what is no padding, the rest sees everything."""
    given, out = parts(qkv), np.empty((len(qkv), 8))
    for row in range(len(qkv)):
        seen = ~padding if padding[row] else np.ones(len(qkv), bool)
        for head in (0, 1):
            keys, values = given["k", head][seen], given["v", head][seen]
            out[row, 4 * head : 4 * head + 4] = weighted(given["q", head][row], keys, values, 0.5)
    return out


@pytest.mark.parametrize(("exact", "dtype"), MODES)
@pytest.mark.parametrize(
    ("slots", "tokens", "padding"),
    [
        (None, None, [0, 0, 0, 0, 0, 0]),
        ([3, 0], 3, [0, 0, 0, 0, 0, 0]),
        ([3, 0], 2, [0, 0, 1, 0, 0, 1]),
        ([0, -1], 2, [0, 0, 1, 1, 1, 1]),
        ([-1, 5], 3, [1, 1, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_attend_image_rows(
    slots: list[int] | None, tokens: int | None, padding: list[int], exact: bool, dtype: DType
) -> None:
    """Two tiles of three rows each: without padding, with rows past their tokens, with a tile that has no slot."""
    qkv, attributes = RANDOM.standard_normal((6, 24)), {**HEADS, "scale": 0.5, "dtype": dtype}
    inputs: list[Array] = [qkv]
    if slots is not None:
        inputs.append(np.array(slots, np.int32))
        attributes |= {"tokens": tokens, "padded": 3}
    (found,) = run("attend_image_rows", inputs, exact, **attributes)
    same(found, attended_rows(qkv, np.array(padding, bool)), exact, dtype)


@pytest.mark.parametrize(("exact", "dtype"), MODES)
def test_attend_vision_rows(exact: bool, dtype: DType) -> None:
    """Two sequences of 7 vision tokens in scattered pages of 3, beside layers and pages full of NaN."""
    start, stop = np.array([0, 2, 3, 6, 1, 3], np.int32), np.array([7, 5, 3, 2, 2, 6], np.int32)
    sequences, tables = np.array([0, 1, 0, 1, 0, 1], np.int32), np.array([[5, 0, 3], [1, 7, 2]], np.int32)
    kind = CacheType(2, 2, 4, 3, F32, cross=True)
    state = CacheState.empty(kind, 8, exact)
    state.keys[:], state.values[:] = np.nan, np.nan
    keys, values = RANDOM.standard_normal((2, 2, 7, 2, 4))  # of each sequence, token and kv head
    for sequence, table in enumerate(tables):
        for token in range(7):
            state.keys[table[token // 3], 1, :, token % 3] = keys[sequence, token]
            state.values[table[token // 3], 1, :, token % 3] = values[sequence, token]
    q, norm, gate = RANDOM.standard_normal((6, 16)) * 3, RANDOM.uniform(0.5, 1.5, 4), np.array([0.6])
    index = [tensor(6, I32)] * 3
    types = [tensor(6, 16, F32), tensor(4, F32), kind, *index, tensor(2, 3, I32), tensor(1, F32)]
    inputs = [q, norm, state, start, stop, sequences, tables, gate]
    attributes: dict[str, Any] = {"layer": 1, "heads": 4, "scale": 0.5, "eps": 1e-2, "dtype": dtype}
    (found,) = run("attend_vision_rows", inputs, exact, types, **attributes)
    wanted = np.zeros((6, 16))
    for row in (0, 1, 4, 5):  # rows 2 and 3 see nothing
        for head in range(4):
            columns, shared = slice(4 * head, 4 * head + 4), head // 2
            query = q[row, columns] * norm / np.sqrt((q[row, columns] ** 2).sum() / 4 + 1e-2)
            seen = (sequences[row], slice(start[row], stop[row]), shared)
            wanted[row, columns] = np.tanh(0.6) * weighted(query, keys[seen], values[seen], 0.5)
    same(found, wanted, exact, dtype)
    assert not found[2:4].any()


@pytest.mark.parametrize("exact", [True, False])
def test_cache_scales(exact: bool) -> None:
    """Those of the keys, then those of the values, a kv head each; f32 in both modes."""
    (found,) = run("cache_scales", [], exact, key=0.3, value=7.0, heads=3)
    assert found.dtype == np.float32
    assert found.tolist() == [float(np.float32(0.3))] * 3 + [7.0] * 3


def test_keys_and_values_are_divided_by_the_scales_of_the_cache() -> None:
    """What is cached is k / 0.5 and v / 4, and attention gives back what it gives without scales."""
    (scales,) = run("cache_scales", [], key=0.5, value=4.0, heads=2)
    kind, qkv = CacheType(1, 2, 4, 3, F32), RANDOM.standard_normal((2, 24))
    index = [np.array([0, 1]), np.array([0, 0]), np.array([[1]])]
    kinds = [tensor(2, I32), tensor(2, I32), tensor(1, 1, I32), tensor(4, F32)]
    types = [kind, tensor(2, 24, F32), *kinds]
    state = CacheState.empty(kind, 2, True)
    state, q = run("append", [state, qkv, *index, scales], types=types, layer=0, heads=2)
    given = parts(qkv)
    for head in (0, 1):
        same(state.keys[1, 0, head, :2], given["k", head] / 0.5, True, F32)
        same(state.values[1, 0, head, :2], given["v", head] / 4, True, F32)
    types = [tensor(2, 8, F32), kind, *kinds]
    (found,) = run("attend", [q, state, *index, scales], types=types, layer=0, heads=2, scale=0.5)
    for row in (0, 1):
        for head in (0, 1):
            q_, k, v = given["q", head][row], given["k", head][: row + 1], given["v", head][: row + 1]
            same(found[row, 4 * head : 4 * head + 4], weighted(q_, k, v, 0.5), True, F32)
