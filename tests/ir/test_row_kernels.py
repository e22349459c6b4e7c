"""The kernels over weights in rows against the ops that they are made of, and against what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llamac.ir.definition import Evaluation, OpError
from llamac.ir.dims import symbol
from llamac.ir.dtypes import BF16, E4M3FN, F16, F32, I4, I32, U8
from llamac.ir.layouts import format_of
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.ops.row_kernels import FORMS
from llamac.ir.registry import find_op, infer_types
from llamac.ir.row_layouts import RowLayout, pack_records
from llamac.ir.types import CacheType, tensor

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(4)
EPS = 1e-5
TOKENS, WIDTH = 5, 24


def run(opcode: str, operands: dict[str, Any], types: list[Any], **attributes: Any) -> list[Array]:
    """The results of a kernel in exact mode."""
    given = {**attributes, "operands": " ".join(operands)} if opcode in FORMS else attributes
    values = list(operands.values())
    return list(find_op(opcode).evaluate(Evaluation(values, given, types, {"T": TOKENS}, True)))


def meaning(opcode: str, *operands: Any, **attributes: Any) -> list[Array]:
    """The results of an op of the unfused graph in exact mode."""
    kind = CacheType(2, 1, 8, 4, F16)
    types = [kind, tensor(1, F32)] if "append" in opcode else [tensor(1, F32)] * 4
    return list(find_op(opcode).evaluate(Evaluation(list(operands), attributes, types, {}, True)))


def matrix(rows: int, columns: int = WIDTH) -> tuple[Array, Array, dict[str, Any]]:
    """Random f32 weights, their records, and the attributes that speak of them."""
    values = RNG.standard_normal((rows, columns)).astype(np.float32)
    records = pack_records(RowLayout(format_of("f32"), rows, columns), values)
    return values.astype(np.float64), records, {"format": "f32", "rows": rows, "columns": columns}


def rows_of(count: int = TOKENS, columns: int = WIDTH) -> Array:
    return RNG.standard_normal((count, columns))


def same(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_embedding_and_chosen_normed_rows() -> None:
    table, records, shape = matrix(9)
    ids, x, norm, chosen = np.array([8, 0, 8]), rows_of(), rows_of(1)[0], np.array([4, 1])
    (found,) = run("embed_rows16", {"ids": ids, "weight": records}, [tensor(3, WIDTH, F32)], **shape)
    same(found, table[ids])
    residual = rows_of(2, 9)
    given = {"x": x, "rows": chosen, "norm": norm, "weight": records, "residual": residual}
    (found,) = run("linear_rows16", given, [tensor(2, 9, F32)], eps=EPS, **shape)
    same(found, meaning("rms_norm", x[chosen], norm, eps=EPS)[0] @ table.T + residual)


def test_gate_up() -> None:
    weight, records, shape = matrix(14)
    x, norm = rows_of(), rows_of(1)[0]
    given = {"x": x, "norm": norm, "weight": records}
    (found,) = run("gate_up_rows16", given, [tensor(TOKENS, 7, BF16)], eps=EPS, dtype=BF16, **{**shape, "rows": 7})
    same(found, meaning("swiglu", meaning("rms_norm", x, norm, eps=EPS)[0] @ weight.T)[0])


@pytest.mark.parametrize("rope", [True, False])
def test_projection_with_append(rope: bool) -> None:
    """Two q heads and one kv head of 8; with rotation a norm of q and k, without it a temperature."""
    weight, records, shape = matrix(32)
    kind = CacheType(2, 1, 8, 4, F16)
    x, norm = rows_of(), rows_of(1)[0]
    rows = [np.arange(TOKENS), np.zeros(TOKENS, np.int64), np.array([[2, 0]])]
    angles = [rows_of(TOKENS, 4), rows_of(TOKENS, 4)] if rope else []
    qkv = meaning("rms_norm", x, norm, eps=EPS)[0] @ weight.T
    if rope:
        (qkv,) = meaning("norm_heads", qkv, heads=3, head_dim=8, eps=EPS)
        extra: dict[str, Any] = {"qk_eps": EPS}
    else:
        (qkv,) = meaning("temper_heads", qkv, rows[0], heads=2, head_dim=8, floor=2.0, scale=0.1)
        extra = {"floor": 2.0, "scale": 0.1}
    state = CacheState.empty(kind, 3, True)
    wanted = meaning("rope_append" if rope else "append", state, qkv, *angles, *rows, layer=1, heads=2)
    names = ["cache", "x", "norm", "weight", *(["cos", "sin"] if rope else [])]
    names += ["positions", "sequence_of_token", "page_tables"]
    given = dict(zip(names, [state, x, norm, records, *angles, *rows], strict=True))
    types = [kind, tensor(TOKENS, 16, F32)]
    cache, q = run("qkv_rows16", given, types, eps=EPS, dtype=F32, layer=1, heads=2, **extra, **shape)
    same(q, wanted[1])
    same(cache.keys, wanted[0].keys)
    same(cache.values, wanted[0].values)


@pytest.mark.parametrize("top", [1, 2])
def test_experts(top: int) -> None:
    """Three experts of 6; the gates of all stand before the ups of all."""
    stack, records, shape = matrix(3 * 2 * 6)
    back, back_records, back_shape = matrix(3 * WIDTH, 6)
    x, norm, base = rows_of(), rows_of(1)[0], rows_of()
    order, place, scores, offsets = meaning("route", rows_of(TOKENS, 3), top_k=top)
    normal = meaning("rms_norm", x, norm, eps=EPS)[0]
    (routed,) = meaning("gather_routed", normal, order, scores, top_k=top)
    gate, up = (meaning("expert_linear", routed, half, offsets)[0] for half in np.split(stack, 2))
    (middle,) = meaning("swiglu", gate, up)
    mixture = {"experts": 3, "top_k": top}
    given = {"x": x, "norm": norm, "weight": records, "order": order, "scores": scores, "offsets": offsets}
    types = [tensor(top * TOKENS, 6, F32)]
    (found,) = run("expert_gate_up_rows16", given, types, eps=EPS, dtype=F32, **{**shape, "rows": 6}, **mixture)
    same(found, middle)
    (answers,) = meaning("expert_linear", middle, back, offsets)
    down = {"x": middle, "weight": back_records, "order": order, "offsets": offsets}
    sizes = {**back_shape, "rows": WIDTH, **mixture}
    (found,) = run("expert_down_rows16", down, [tensor(top * TOKENS, WIDTH, F32)], **sizes)
    same(found, answers)
    if top == 1:
        (found,) = run("expert_down_rows16", {**down, "base": base}, [tensor(TOKENS, WIDTH, F32)], **sizes)
        same(found, meaning("scatter_routed", answers, place, base, top_k=1)[0])


def test_records() -> None:
    """A row of 4-bit quants with f16 scales: 32 columns a unit of 16 bytes, then one scale."""
    types = [tensor(3, 20, I4), tensor(3, 1, F16)]
    assert infer_types("pack_rows", types, {"format": "i4g32s16"}) == [tensor(3, 18, U8)]
    quants, scale = RNG.integers(-8, 8, (3, 20)).astype(np.int8), np.ones((3, 1), np.float16)
    (found,) = run("pack_rows", {"values": quants, "scale": scale}, [tensor(3, 18, U8)], format="i4g32s16")
    assert found.shape == (3, 18) and (found[:, 16:].copy().view(np.float16) == 1).all()


T = symbol("T")
LINEAR = {"format": "f32", "rows": 6, "columns": 8, "operands": "x weight"}
WEIGHT = tensor(6, 32, U8)
CACHE = CacheType(1, 1, 8, 4, F16)


@pytest.mark.parametrize(
    ("opcode", "types", "attributes", "reason"),
    [
        ("linear_rows16", [tensor(T, 8, F32), WEIGHT], LINEAR | {"operands": "weight x"}, "in order"),
        ("linear_rows16", [tensor(T, 8, F32)], LINEAR | {"operands": "x"}, "must name the 1 operands"),
        ("linear_rows16", [tensor(T, 9, F32), WEIGHT], LINEAR, "does not have 8 float columns"),
        ("linear_rows16", [tensor(T, 8, F32), tensor(6, 31, U8)], LINEAR, "6 x 8 in f32 are tensor<6 x 32 x u8>"),
        (
            "linear_rows16",
            [tensor(T, 8, F32), tensor(8, F32), WEIGHT],
            LINEAR | {"operands": "x norm weight"},
            "attribute 'eps' of the norm is missing",
        ),
        (
            "linear_rows16",
            [tensor(T, 8, BF16), tensor(8, F32), WEIGHT],
            LINEAR | {"operands": "x norm weight", "eps": 1e-5},
            "must be f32",
        ),
        (
            "linear_rows16",
            [tensor(T, 8, F32), WEIGHT, tensor(T, 5, F32)],
            LINEAR | {"operands": "x weight residual"},
            "residual must be tensor<T x 6 x f32>",
        ),
        ("embed_rows16", [tensor(T, F32), WEIGHT], LINEAR | {"operands": "ids weight"}, "must be i32"),
        (
            "gate_up_rows16",
            [tensor(T, 8, F32), WEIGHT],
            LINEAR | {"rows": 3, "dtype": E4M3FN},
            "must be a float that activations can have",
        ),
        (
            "qkv_rows16",
            [CACHE, tensor(T, 8, F32), WEIGHT, tensor(T, I32), tensor(T, I32), tensor(1, 1, I32)],
            {"format": "f32", "rows": 6, "columns": 8, "heads": 1, "layer": 0, "dtype": F32}
            | {"operands": "cache x weight positions sequence_of_token page_tables"},
            "6 rows do not hold 1 q, 1 k and v heads of 8",
        ),
        (
            "expert_gate_up_rows16",
            [tensor(T, 8, F32), tensor(12, 32, U8), tensor(T, I32), tensor(2 * T, F32), tensor(3, I32)],
            LINEAR | {"rows": 3, "experts": 2, "top_k": 2, "dtype": F32, "operands": "x weight order scores offsets"},
            "order must be tensor<2*T x i32>",
        ),
        (
            "expert_down_rows16",
            [tensor(2 * T, 8, F32), WEIGHT, tensor(2 * T, I32), tensor(3, I32), tensor(2 * T, 3, F32)],
            LINEAR | {"rows": 3, "experts": 2, "top_k": 2, "operands": "x weight order offsets base"},
            "only the answers of one expert a token",
        ),
        ("pack_rows", [tensor(4, 8, F16)], {"format": "f32"}, "format f32 stores f32"),
        ("pack_rows", [tensor(4, 8, E4M3FN)], {"format": "e4m3fn"}, "also needs ['tensor<4 x 1 x f32>']"),
    ],
)
def test_what_kernels_refuse(opcode: str, types: list[Any], attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(OpError) as refused:
        infer_types(opcode, types, attributes)
    assert reason in str(refused.value)
