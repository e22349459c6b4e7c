"""The ops of image encoders, against torch's own or a definition written out in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from running import run

from llamac.ir.dtypes import F16, F32, I32, U8, DType
from llamac.ir.layouts import format_of, pack
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.types import CacheType, tensor

RANDOM = np.random.default_rng(12)
Array = np.ndarray
HEADS: dict[str, Any] = {"heads": 2, "head_dim": 4}


def _t(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _heads(x: Array) -> Array:
    """Joined rows [tokens, 3 H h] as q, k, v [3, H, tokens, h]."""
    return x.reshape(len(x), 3, 2, 4).transpose(1, 2, 0, 3)


@pytest.mark.parametrize("exact", [True, False])
def test_layer_norm(exact: bool) -> None:
    x, weight, bias = RANDOM.standard_normal((3, 5)) * 9 + 4, RANDOM.standard_normal(5), RANDOM.standard_normal(5)
    (found,) = run("layer_norm", [x, weight, bias], exact, eps=1e-3)
    assert np.allclose(found, F.layer_norm(_t(x), (5,), _t(weight), _t(bias), 1e-3), atol=1e-12 if exact else 1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_gelu(exact: bool) -> None:
    x = np.concatenate([RANDOM.standard_normal((2, 50)) * 3, np.linspace(-40, 40, 50)[None]])
    (found,) = run("gelu", [x], exact)
    assert np.allclose(found, F.gelu(_t(x)), atol=1e-14 if exact else 1e-5, rtol=1e-12 if exact else 1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_tables_of_fixed_angles_are_f32_in_both_modes(exact: bool) -> None:
    angles = RANDOM.uniform(0, 30, (3, 4)).astype(np.float32)
    for found, expected in zip(run("cos_sin", [angles], exact), (np.cos, np.sin), strict=True):
        assert (found == expected(angles)).all() and np.allclose(found, expected(angles.astype(np.float64)), atol=1e-7)


PADDING = np.array([False, True, False, False, True])


def _seen() -> torch.Tensor:
    return torch.from_numpy(~(PADDING[:, None] & PADDING[None, :]))


def test_attention_hides_padding_from_padding_only() -> None:
    q, k, v = RANDOM.standard_normal((3, 2, 5, 4))
    (found,) = run("full_attention", [q, k, v], scale=0.3)
    assert np.allclose(found, F.scaled_dot_product_attention(*map(_t, (q, k, v)), scale=0.3), atol=1e-12)
    (found,) = run("full_attention", [q, k, v, PADDING], scale=0.3)
    expected = F.scaled_dot_product_attention(*map(_t, (q, k, v)), attn_mask=_seen(), scale=0.3)
    assert np.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("tokens", [5, 256, 300])
def test_pages_hold_what_attention_reads(tokens: int) -> None:
    qkv = RANDOM.standard_normal((tokens, 24))
    (pages,) = run("token_pages", [qkv], **HEADS)
    _, k, v = _heads(qkv)
    held = pages.reshape(-1, 2, 2, 4 * 256)
    assert (held[0, 1, 0].reshape(16, 4, 16)[0, :, 3] == k[1, 3]).all()
    assert (held[(tokens - 1) // 256, 0, 1].reshape(256, 4)[(tokens - 1) % 256] == v[0, -1]).all()
    (found,) = run("attend_tokens", [qkv, pages], **HEADS, scale=0.5)
    expected = F.scaled_dot_product_attention(*map(_t, _heads(qkv)), scale=0.5)
    assert np.allclose(found, expected.numpy().transpose(1, 0, 2).reshape(tokens, 8), atol=1e-12)


def test_attention_in_an_order_with_padding_last() -> None:
    """Two tiles of which the second has no slot, of two tokens and one of padding each."""
    slots = np.array([3, -1], np.int32)
    order, real = run("order_tokens", [slots], tokens=2, padded=3)
    (padding,) = run("tile_padding", [slots], tokens=2, padded=3)
    assert order.tolist() == [0, 1, 2, 3, 4, 5] and real.tolist() == [2]
    assert padding.tolist() == [False, False, True, True, True, True]
    order, real = run("order_tokens", [np.array([0, 1], np.int32)], tokens=2, padded=3)
    assert order.tolist() == [0, 1, 3, 4, 2, 5] and real.tolist() == [4]
    qkv = RANDOM.standard_normal((6, 24))
    (pages,) = run("token_pages", [qkv, order], **HEADS)
    (found,) = run("attend_tokens", [qkv, pages, order, real], **HEADS, scale=0.5)
    (expected,) = run("full_attention", [*_heads(qkv), np.arange(6) % 3 == 2], scale=0.5)
    assert np.allclose(found, expected.transpose(1, 0, 2).reshape(6, 8), atol=1e-12)


def test_rotation_of_joined_rows_leaves_the_values() -> None:
    qkv, angles = RANDOM.standard_normal((3, 24)), RANDOM.uniform(0, 3, (3, 2)).astype(np.float32)
    tables = run("cos_sin", [angles])
    (found,) = run("rope_pairs", [qkv, *tables], **HEADS)
    q, k, v = _heads(qkv)
    for part, expected in zip(_heads(found), (q, k), strict=False):
        assert np.allclose(part, run("rope", [expected, *tables], style="interleaved")[0], atol=1e-14)
    assert (_heads(found)[2] == v).all()


@pytest.mark.parametrize("residual", [False, True])
def test_linear_with_a_bias(residual: bool) -> None:
    x, weight, bias, base = (RANDOM.standard_normal(s).astype(np.float32) for s in ((4, 6), (18, 6), (18,), (4, 18)))
    packed = pack(format_of("f32"), weight, None, None)
    inputs = [x, packed, bias, *([base] if residual else [])]
    types = [tensor(4, 6, F32), tensor(*packed.shape, U8), tensor(18, F32), *([tensor(4, 18, F32)] if residual else [])]
    (found,) = run("linear_biased", inputs, types=types, format="f32", rows=18, columns=6)
    expected = F.linear(*(_t(v.astype(np.float64)) for v in (x, weight, bias))).numpy() + (base if residual else 0)
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_rearrange_is_a_view_of_the_elements() -> None:
    x = RANDOM.standard_normal((2, 6, 4))
    attributes = {"offset": 4, "shape": (2, 3, 4), "strides": (24, 4, 1), "columns": 4}
    (found,) = run("rearrange", [x], **attributes)
    assert (found == x[:, 1:4].reshape(6, 4)).all()
    unfolded = F.unfold(_t(x[:, None]), (2, 2), stride=2).swapaxes(1, 2).reshape(-1, 4).numpy()
    (found,) = run("rearrange", [x], offset=0, shape=(2, 3, 2, 2, 2), strides=(24, 8, 2, 4, 1), columns=4)
    assert (found == unfolded).all()


@pytest.mark.parametrize("place", ["first", "last"])
def test_class_tokens(place: str) -> None:
    x, token = RANDOM.standard_normal((6, 4)), RANDOM.standard_normal(4)
    (found,) = run("add_class_token", [x, token], tiles=2, place=place)
    rows = found.reshape(2, 4, 4)
    at, rest = (0, slice(1, 4)) if place == "first" else (3, slice(0, 3))
    assert (rows[:, at] == token).all() and (rows[:, rest] == x.reshape(2, 3, 4)).all()


def test_what_tiles_add_by_their_place() -> None:
    x, gate = RANDOM.standard_normal((6, 4)), np.array([0.7])
    each, whole = RANDOM.standard_normal((5, 4)), RANDOM.standard_normal((2, 12))
    index = np.array([3, -1], np.int32)
    (found,) = run("add_places", [x, each, gate, index], tiles=2, each=4, complement=False)
    assert np.allclose(found[:3], x[:3] + np.tanh(0.7) * each[3]) and (found[3:] == x[3:]).all()
    (found,) = run("add_places", [x, whole, gate], tiles=2, each=12, complement=True)
    assert np.allclose(found, x + (1 - np.tanh(0.7)) * np.tile(whole[0].reshape(3, 4), (2, 1)))
    (rows,) = run("tile_rows", [np.array([3], np.int32)], tiles=4)
    assert rows.tolist() == [12, 13, 14, 15]
    (row,) = run("lookup_row", [np.arange(6, dtype=np.int32).reshape(3, 2), np.array([1], np.int32)])
    assert row.tolist() == [2, 3]


def test_tiles_are_padded_with_zeros_and_taken_from_the_front() -> None:
    x = RANDOM.standard_normal((4, 3))
    (found,) = run("pad_tiles", [x], tiles=2, padded=5)
    assert (found.reshape(2, 5, 3)[:, :2] == x.reshape(2, 2, 3)).all() and not found.reshape(2, 5, 3)[:, 2:].any()
    (found,) = run("take_rows", [x, np.zeros(3, np.int32)])
    assert (found == x[:3]).all()


@pytest.mark.parametrize("dtype", [F32, F16])
def test_vision_tokens_go_to_their_pages(dtype: DType) -> None:
    kind = CacheType(2, 2, 4, 3, dtype, cross=True)
    state, kv = CacheState.empty(kind, 3, False), RANDOM.standard_normal((4, 16))
    types = [kind, tensor(4, 16, F32), tensor(4, I32), tensor(1, 3, I32)]
    inputs = [state, kv, np.arange(2, 6), np.array([[2, 0, 1]])]
    (found,) = run("append_tokens", inputs, False, types=types, layer=1)
    held = kv.astype(np.float32).astype(dtype.storage).astype(np.float32).reshape(4, 2, 2, 4)
    assert (found.keys[2, 1, :, 2] == held[0, 0]).all() and (found.values[0, 1, :, 2] == held[3, 1]).all()
    assert not found.keys[:, 0].any() and not found.keys[1].any() and not state.keys.any()


def test_columns_part_by_part() -> None:
    weight = np.arange(14, dtype=np.float64).reshape(2, 7)
    (found,) = run("columns_to_parts", [weight], first=1, parts=3)
    assert found.tolist() == [[0, 1, 4, 2, 5, 3, 6], [7, 8, 11, 9, 12, 10, 13]]
