"""What every op computes, against torch's own ops in f64 or a definition written out in plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from running import run

from llamac.ir.definition import Evaluation
from llamac.ir.dims import symbol
from llamac.ir.dtypes import BF16, DTYPES, F16, F32, I8, I32, DType
from llamac.ir.graph import Attribute
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.ops.row_kernels import FORMS
from llamac.ir.registry import all_ops, find_op
from llamac.ir.types import CacheType, tensor

RANDOM = np.random.default_rng(11)
X, Y = RANDOM.standard_normal((3, 4)), RANDOM.standard_normal((3, 4))
POSITIVE = np.abs(X) + 0.1
NUMBERS = np.array([[-9, -8, -1, 0], [1, 7, 8, 2**31 - 1]], np.int32)


def _t(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


SIMPLE: dict[str, tuple[list[np.ndarray], dict[str, Attribute], Callable[..., Any]]] = {
    "add": ([X, Y[:1]], {}, torch.add),
    "sub": ([X, Y], {}, torch.sub),
    "mul": ([X, Y[:, :1]], {}, torch.mul),
    "div": ([X, Y], {}, torch.div),
    "neg": ([X], {}, torch.neg),
    "rsqrt": ([POSITIVE], {}, torch.rsqrt),
    "reciprocal": ([X], {}, torch.reciprocal),
    "pow": ([POSITIVE, Y], {}, torch.pow),
    "sin": ([X * 50], {}, torch.sin),
    "cos": ([X * 50], {}, torch.cos),
    "sigmoid": ([X * 300], {}, torch.sigmoid),
    "erf": ([X * 3], {}, torch.erf),
    "tanh": ([X * 9], {}, torch.tanh),
    "floor": ([X * 9], {}, torch.floor),
    "log1p": ([POSITIVE * 1e-3], {}, torch.log1p),
    "floor_divide": (
        [NUMBERS, np.array([[8], [-3]], np.int32)],
        {},
        lambda a, b: torch.div(a, b, rounding_mode="floor"),
    ),
    "equal": ([NUMBERS, NUMBERS[:, ::-1] * NUMBERS[:1, 2:3] ** 2], {}, torch.eq),
    "logical_and": ([X < 0, Y < 0], {}, torch.logical_and),
    "less": ([X, Y], {}, torch.lt),
    "less_equal": ([X, X], {}, torch.le),
    "select": ([X < Y, X, Y], {}, torch.where),
    "reduce_mean": ([X], {"axis": 0}, lambda x: x.mean(0, keepdim=True)),
    "reduce_sum": ([X], {"axis": -2}, lambda x: x.sum(0, keepdim=True)),
    "softmax": ([X * 9], {"axis": 0}, lambda x: torch.softmax(x, 0)),
    "reshape": ([X], {"shape": (2, 6)}, lambda x: x.reshape(2, 6)),
    "transpose": ([X.reshape(3, 2, 2)], {"permutation": (2, 0, 1)}, lambda x: x.permute(2, 0, 1)),
    "broadcast": ([X[:, :1]], {"shape": (3, 5)}, lambda x: x.expand(3, 5)),
    "slice": ([X], {"axis": -1, "start": 1, "stop": 3}, lambda x: x[:, 1:3]),
    "concat": ([X, Y, X], {"axis": -1}, lambda *x: torch.cat(x, -1)),
    "iota": ([], {"length": 5, "dtype": I32}, lambda: torch.arange(5, dtype=torch.int32)),
    "constant": ([], {"value": 0.3, "dtype": F32}, lambda: torch.tensor(0.3, dtype=torch.float64)),
    "cast": ([X * 9], {"dtype": I32}, lambda x: x.to(torch.int32)),
    "embedding": ([X, np.array([2, 0, 2])], {}, lambda x, i: F.embedding(i, x)),
    "select_rows": ([X, np.array([1])], {}, lambda x, i: x[i]),
    "matmul": ([X.reshape(3, 1, 4), Y.reshape(3, 4, 1)], {}, torch.bmm),
    "linear": ([X, Y], {}, F.linear),
    "swiglu": ([X, Y], {}, lambda g, u: F.silu(g) * u),
    "rms_norm": ([X, Y[0]], {"eps": 1e-3}, lambda x, w: F.rms_norm(x, (4,), w, 1e-3)),
    "unit_rms_norm": ([X.reshape(2, 3, 2)], {"eps": 1e-3}, lambda x: F.rms_norm(x, (2,), None, 1e-3)),
}


@pytest.mark.parametrize("opcode", SIMPLE)
def test_against_torch(opcode: str) -> None:
    inputs, attributes, oracle = SIMPLE[opcode]
    (found,) = run(opcode, inputs, **attributes)
    expected = oracle(*map(_t, inputs)).numpy()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-14, equal_nan=True)
    (rounded,) = run(opcode, inputs, exact=False, **attributes)
    assert rounded.dtype == (np.float32 if expected.dtype == np.float64 else expected.dtype)
    assert np.allclose(rounded, expected, rtol=1e-5, atol=1e-5)


def test_swiglu_of_one_operand_is_gate_then_up() -> None:
    (two,) = run("swiglu", [X, Y])
    (one,) = run("swiglu", [np.concatenate([X, Y], axis=-1)])
    assert (one == two).all()


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_results_are_rounded_to_their_dtype(dtype: DType) -> None:
    types = [tensor(3, 4, dtype), tensor(3, 4, dtype)]
    x, y = (v.astype(np.float32).astype(dtype.storage).astype(np.float32) for v in (X, Y))
    for opcode, oracle in (("add", torch.add), ("mul", torch.mul), ("div", torch.div)):
        (found,) = run(opcode, [x, y], exact=False, types=types)
        like = {BF16: torch.bfloat16, F16: torch.float16}[dtype]
        assert (found == oracle(_t(x).to(like), _t(y).to(like)).float().numpy()).all()


def test_pow_at_its_edges() -> None:
    base = np.array([0.0, 0.0, -1.5, -1.5, 2.0, 2.0, np.inf, np.nan, 1.0, 0.0])
    exponent = np.array([0.0, 2.0, 2.0, 0.5, 2000.0, -2000.0, 2.0, 0.0, np.nan, -1.0])
    (found,) = run("pow", [base, exponent])
    with np.errstate(all="ignore"):
        expected = np.power(base, exponent)
    expected[8] = np.nan  # decimal has no exception for 1**NaN
    assert np.array_equal(found, expected, equal_nan=True)


def _rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, style: str) -> torch.Tensor:
    """As transformers (half_split) and as Meta's complex product (interleaved) write it."""
    if style == "half_split":
        turned = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)
        return x * torch.cat((cos, cos), -1) + turned * torch.cat((sin, sin), -1)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


@pytest.mark.parametrize("style", ["half_split", "interleaved"])
def test_rope(style: str) -> None:
    x = RANDOM.standard_normal((3, 5, 8))
    positions, frequencies = np.array([0, 7, 3, 1000, 2]), 10000.0 ** -(np.arange(4) / 4)
    cos, sin = run("rope_angles", [positions, frequencies])
    angles = torch.outer(_t(positions).double(), _t(frequencies))
    assert np.allclose(cos, angles.cos().numpy()) and np.allclose(sin, angles.sin().numpy())
    (found,) = run("rope", [x, cos, sin], style=style)
    assert np.allclose(found, _rope(_t(x), angles.cos(), angles.sin(), style).numpy(), atol=1e-12)


def test_rope_angles_are_f32_products_in_dtype_mode() -> None:
    positions, frequencies = np.array([131071, 12345]), np.array([0.7, 1e-3], np.float32)
    cos, _ = run("rope_angles", [positions, frequencies], exact=False)
    product = positions.astype(np.float32)[:, None] * frequencies
    assert np.abs(cos - np.cos(product.astype(np.float64))).max() < 1e-7


def test_permuted_rows_turn_one_convention_into_the_other() -> None:
    weight, x = RANDOM.standard_normal((16, 6)), RANDOM.standard_normal((5, 6))
    cos, sin = run("rope_angles", [np.arange(5), np.array([1.0, 0.1, 0.01, 0.5])])
    (permuted,) = find_op("rows_to_half_split").evaluate(
        Evaluation([weight], {"head_dim": 8}, [tensor(16, 6, F32)], {}, True)
    )
    # HF's conversion: view (heads, h/2, 2, in) -> swap -> flatten.
    assert (permuted == weight.reshape(2, 4, 2, 6).swapaxes(1, 2).reshape(16, 6)).all()
    heads = {name: (x @ w.T).reshape(5, 2, 8).transpose(1, 0, 2) for name, w in (("i", weight), ("h", permuted))}
    (a,) = run("rope", [heads["i"], cos, sin], style="interleaved")
    (b,) = run("rope", [heads["h"], cos, sin], style="half_split")
    assert np.allclose(a @ a.transpose(0, 2, 1), b @ b.transpose(0, 2, 1))


def test_floor_division_by_zero_is_zero() -> None:
    (found,) = run("floor_divide", [NUMBERS, NUMBERS * 0])
    assert not found.any()


def _attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray, scale: float, chunk: int = 10**6
) -> np.ndarray:
    keys, queries = np.arange(k.shape[1])[None, :], positions[:, None]
    mask = _t((keys <= queries) & (keys // chunk == queries // chunk))
    found = F.scaled_dot_product_attention(
        _t(q)[None], _t(k)[None], _t(v)[None], attn_mask=mask, scale=scale, enable_gqa=True
    )
    return found[0].numpy()


@pytest.mark.parametrize("group", [1, 3])
def test_attention(group: int) -> None:
    q, k, v = (RANDOM.standard_normal((heads, n, 4)) for heads, n in ((2 * group, 3), (2, 7), (2, 7)))
    positions = np.array([4, 0, 6])
    (found,) = run("attention", [q, k, v, positions], scale=0.3)
    assert np.allclose(found, _attention(q, k, v, positions, 0.3), atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8])
def test_attention_within_chunks(chunk: int) -> None:
    """Queries at the first, a middle and the last position of a chunk; a chunk beyond the keys is plain attention."""
    q, k, v = (RANDOM.standard_normal((heads, n, 4)) for heads, n in ((4, 7), (2, 7), (2, 7)))
    positions = np.array([6, 0, 1, 2, 3, 4, 5])
    (found,) = run("attention", [q, k, v, positions], scale=0.3, chunk=chunk)
    assert np.allclose(found, _attention(q, k, v, positions, 0.3, chunk), atol=1e-12)
    if chunk >= 7:
        assert (found == run("attention", [q, k, v, positions], scale=0.3)[0]).all()


TEMPERED = np.array([0, 2, 3, 4, 6, 7, 8190, 8191, 8192, 16382, 16383, 1_048_575])
"""On both sides of every step for floors of 4 and 8192."""


@pytest.mark.parametrize("floor", [4.0, 8192.0])
@pytest.mark.parametrize("exact", [True, False])
def test_temperature(floor: float, exact: bool) -> None:
    """As transformers writes it (Llama4TextAttention), and on the first heads of joined rows."""
    q = RANDOM.standard_normal((3, len(TEMPERED), 4))
    (found,) = run("temper", [q, TEMPERED], exact, floor=floor, scale=0.1)
    steps = torch.floor((_t(TEMPERED).float() + 1.0) / floor)
    factors = torch.log1p(steps.double()) * 0.1 + 1.0
    expected = _t(q) * factors[None, :, None]
    assert np.allclose(found, expected.numpy(), rtol=1e-13 if exact else 1e-6)
    assert len(np.unique(factors.numpy())) > 3
    rows = np.concatenate([q.swapaxes(0, 1).reshape(len(TEMPERED), 12), np.ones((len(TEMPERED), 5))], axis=1)
    (joined,) = run("temper_heads", [rows, TEMPERED], exact, heads=3, head_dim=4, floor=floor, scale=0.1)
    assert (joined[:, :12] == found.swapaxes(0, 1).reshape(len(TEMPERED), 12)).all() and (joined[:, 12:] == 1).all()


def test_heads_of_joined_rows_are_normed_one_by_one() -> None:
    rows = RANDOM.standard_normal((5, 22))
    (found,) = run("norm_heads", [rows], heads=4, head_dim=4, eps=1e-3)
    heads = F.rms_norm(_t(rows[:, :16].reshape(5, 4, 4)), (4,), None, 1e-3).numpy()
    assert np.allclose(found[:, :16], heads.reshape(5, 16), rtol=1e-12) and (found[:, 16:] == rows[:, 16:]).all()


def test_a_norm_of_zeros_is_zero() -> None:
    (found,) = run("norm_heads", [np.zeros((1, 4))], exact=False, heads=2, head_dim=2, eps=1e-5)
    assert not found.any() and not run("unit_rms_norm", [np.zeros((1, 4))], exact=False, eps=1e-5)[0].any()


def _cache(exact: bool, dtype: DType = F32, chunk: int = 0) -> CacheState:
    return CacheState.empty(CacheType(2, 2, 4, 3, dtype, chunk), 5, exact)


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 4, 6])
def test_append_and_attend_over_scattered_pages(chunk: int) -> None:
    """Two sequences of 5 and 4 tokens in one step, against plain attention of each; pages hold 3 positions."""
    state, lengths, layer = _cache(True, chunk=chunk), (5, 4), 1
    positions = np.concatenate([np.arange(n) for n in lengths])
    sequences = np.repeat([0, 1], lengths)
    tables = np.array([[4, 0], [1, 3]], np.int32)
    qkv = RANDOM.standard_normal((9, (6 + 2 + 2) * 4))
    cos, sin = run("rope_angles", [positions, np.array([1.0, 0.25])])
    rows = [tensor(9, I32), tensor(9, I32), tensor(2, 2, I32)]
    index = [positions, sequences, tables]
    types = [state.type, tensor(9, 40, F32), *[tensor(9, 2, F32)] * 2, *rows]
    appended, q = run("rope_append", [state, qkv, cos, sin, *index], types=types, layer=layer, heads=6)
    assert not state.keys.any() and not appended.keys[:, 0].any()
    (mixed,) = run(
        "attend", [q, appended, *index], types=[tensor(9, 24, F32), state.type, *rows], layer=layer, heads=6, scale=0.5
    )
    for s, n in enumerate(lengths):
        mine = sequences == s
        raw_q, raw_k, raw_v = (x.reshape(n, -1, 4).swapaxes(0, 1) for x in np.split(qkv[mine], [24, 32], axis=1))
        c, si = _t(cos[mine]), _t(sin[mine])
        q_, k_ = (_rope(_t(x), c, si, "half_split").numpy() for x in (raw_q, raw_k))
        expected = _attention(q_, k_, np.ascontiguousarray(raw_v), positions[mine], 0.5, chunk or 9)
        assert np.allclose(mixed[mine], expected.swapaxes(0, 1).reshape(n, 24), atol=1e-12)


def test_a_chunk_does_not_look_at_the_pages_before_it() -> None:
    """Positions 4 and 5 see the chunk that begins at 4, in page 1; page 0 was given back."""
    state = _cache(True, chunk=4)
    state.keys[:], state.values[:] = np.nan, np.nan
    rows = [np.array([4, 5]), np.array([0, 0]), np.array([[-1, 2]])]
    kinds = [tensor(2, I32), tensor(2, I32), tensor(1, 2, I32)]
    qkv = RANDOM.standard_normal((2, 40))
    state, q = run("append", [state, qkv, *rows], types=[state.type, tensor(2, 40, F32), *kinds], layer=0, heads=6)
    (mixed,) = run(
        "attend", [q, state, *rows], types=[tensor(2, 24, F32), state.type, *kinds], layer=0, heads=6, scale=0.5
    )
    values = qkv[:, 32:].reshape(2, 2, 4).repeat(3, axis=1)
    assert np.isfinite(mixed).all() and np.allclose(mixed[0], values[0].reshape(-1))


def test_append_is_rope_append_by_no_angle() -> None:
    state, qkv, ones = _cache(False, F16), RANDOM.standard_normal((2, 40)), np.ones((2, 2))
    rows = [np.array([0, 4]), np.array([1, 0]), np.array([[3, 1], [2, 4]])]
    kinds = [state.type, tensor(2, 40, F32)]
    index = [tensor(2, I32), tensor(2, I32), tensor(2, 2, I32)]
    plain, q = run("append", [state, qkv, *rows], False, types=[*kinds, *index], layer=1, heads=6)
    turned, same_q = run(
        "rope_append", [state, qkv, ones, ones * 0, *rows], False, types=[*kinds, *[tensor(2, 2, F32)] * 2, *index],
        layer=1, heads=6,
    )  # fmt: skip
    assert (q == same_q).all() and (q == qkv[:, :24].astype(np.float32)).all()
    assert (plain.keys == turned.keys).all() and (plain.values == turned.values).all()
    assert plain.keys[2, 1, :, 0].any() and plain.keys[1, 1, :, 1].any() and not plain.keys[:, 0].any()


def test_the_cache_rounds_in_dtype_mode_only() -> None:
    qkv = RANDOM.standard_normal((1, 40))
    for exact in (False, True):
        state = _cache(exact, F16)
        ones = np.array([[1.0, 1.0]])
        inputs = [state, qkv, ones, ones * 0, np.array([0]), np.array([0]), np.array([[2]])]
        types = [state.type, tensor(1, 40, F32), *[tensor(1, 2, F32)] * 2, *[tensor(1, I32)] * 2, tensor(1, 1, I32)]
        appended, _ = run("rope_append", inputs, exact=exact, types=types, layer=0, heads=6)
        stored, given = appended.values[2, 0, :, 0].reshape(-1), qkv[0, 32:]
        assert (stored == (given if exact else given.astype(np.float32).astype(np.float16))).all()


@pytest.mark.parametrize("block", [16, 32])
def test_quantized_rows_by_the_contract(block: int) -> None:
    x = RANDOM.standard_normal((4, 50)).astype(np.float32)
    x[1] = 0
    x[2] *= 1e-38
    x[3, 0] = 2.5 / 127 * np.abs(x[3, 1:block]).max()
    quants, scale, total = run("quantize_rows", [x], exact=False, types=[tensor(4, 50, F32)], block=block, padded=64)
    padded = np.zeros((4, 64), np.float32)
    padded[:, :50] = x
    for row in range(4):
        for b in range(64 // block):
            part = padded[row, b * block : (b + 1) * block]
            amax = np.float32(np.abs(part).max())
            zero = amax < 2.0**-120
            expected = [0 if zero else round(float(np.float32(v * np.float32(np.float32(127) / amax)))) for v in part]
            assert quants[row, b * block : (b + 1) * block].tolist() == expected
            assert scale[row, b] == (0 if zero else amax / np.float32(127)) and total[row, b] == sum(expected)
    assert (quants.dtype, scale.dtype, total.dtype) == (np.int8, np.float32, np.int32)


def test_exact_mode_does_not_round_quantized_rows() -> None:
    x = RANDOM.standard_normal((3, 40))
    quants, scale, total = run("quantize_rows", [x], block=32, padded=64)
    assert np.allclose((quants.reshape(3, 2, 32) * scale[:, :, None]).reshape(3, 64)[:, :40], x, rtol=1e-14)
    assert np.allclose(total, quants.reshape(3, 2, 32).sum(2))


@pytest.mark.parametrize("exact", [False, True])
def test_fused_quantizers_are_compositions(exact: bool) -> None:
    x, weight = RANDOM.standard_normal((3, 40)), RANDOM.standard_normal(40)
    shape = {"block": 32, "padded": 64}
    (normal,) = run("rms_norm", [x, weight], exact, eps=1e-5)
    (gated,) = run("swiglu", [x], exact)
    for found, expected in (
        (
            run("rms_norm_quantized", [x, weight], exact, eps=1e-5, **shape),
            run("quantize_rows", [normal], exact, **shape),
        ),
        (run("swiglu_quantized", [x], exact, **shape), run("quantize_rows", [gated], exact, **shape)),
    ):
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("exact", [True, False])
def test_add_rms_norm_is_both(exact: bool) -> None:
    total, normal = run("add_rms_norm", [X, X[::-1].copy(), Y[0]], exact, eps=1e-3)
    expected = _t(X) + _t(X[::-1].copy())
    assert np.allclose(total, expected.numpy(), rtol=1e-6)
    oracle = F.rms_norm(expected, (4,), _t(Y[0]), 1e-3).numpy()
    assert np.allclose(normal, oracle, rtol=1e-12 if exact else 1e-5, atol=1e-14 if exact else 1e-6)


def test_every_op_has_a_meaning_tested_somewhere() -> None:
    here = {*SIMPLE, "rope", "rope_angles", "rows_to_half_split", "attention", "rope_append", "attend", "quantize_rows"}
    here |= {"rms_norm_quantized", "swiglu_quantized", "add_rms_norm"}
    here |= {"temper", "temper_heads", "norm_heads", "append"}
    pictures = {"cross_attention", "attend_range", "gated_add", "merge_rows"}
    encoders = {"layer_norm", "gelu", "cos_sin", "full_attention", "rearrange", "add_class_token", "linear_biased"}
    encoders |= {"rope_pairs", "token_pages", "attend_tokens", "lookup_row", "tile_rows", "add_places", "pad_tiles"}
    encoders |= {"tile_padding", "order_tokens", "take_rows", "append_tokens", "columns_to_parts"}
    routing = {"top_k_mask", "moe", "route", "gather_routed", "expert_linear", "scatter_routed"}
    routing |= {"expert_linear_dense", "expert_linear_grouped"}
    packed = {"unpack_columns", "unpack_rows", "center_quants", "zero_minimum", "spread_columns", "spread_rows"}
    evaluator = {"block_quants", "block_scales", "block_mins", "group_scale", "group_min", "group_quants", "row_scale"}
    evaluator |= {"scale_weight", "scale_columns"}
    evaluator |= {"row_quants", "dequantize", "pack", "linear_dense", "linear_grouped", "embed_rows"}
    evaluator |= {"head_dense", "head_grouped", "gated_linear_dense", "gated_linear_grouped"}
    evaluator |= {"qkv_dense", "qkv_grouped"}  # test_qkv_meaning.py
    evaluator |= {"pack_rows", *FORMS}
    evaluator |= {"all_reduce", "all_gather", "part"}  # test_rank_meaning.py
    rows = {"layer_norm_rows", "rope_image_rows", "attend_image_rows", "attend_vision_rows"}
    evaluator |= rows | {"cache_scales"}  # test_picture_kernel_meaning.py
    assert set(all_ops()) == here | routing | packed | evaluator | pictures | encoders | {"call"}
    assert I8 in DTYPES.values() and symbol("T")
