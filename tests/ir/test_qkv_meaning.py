"""qkv_dense and qkv_grouped: the meaning of the product, the changes to heads and the append, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llamac.ir.definition import Evaluation, OpError
from llamac.ir.dims import symbol
from llamac.ir.dtypes import F16, F32, I8, I32, U8, DType
from llamac.ir.layouts import format_of, pack
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.registry import find_op, infer_types
from llamac.ir.types import CacheType, Type, tensor

RANDOM = np.random.default_rng(4)
TOKENS, HEADS, KV_HEADS, DIM, COLUMNS = 3, 4, 2, 16, 40
ROWS = (HEADS + 2 * KV_HEADS) * DIM
PLACES = {"layer": 1, "heads": HEADS}
NORM, TEMPER = {"qk_eps": 1e-5}, {"floor": 3.0, "scale": 0.1}


def _cache(dtype: DType = F16) -> CacheType:
    return CacheType(2, KV_HEADS, DIM, 8, dtype, scale=F16 if dtype is I8 else None)


def _apply(opcode: str, inputs: list[Any], types: list[Type], attributes: dict[str, Any], exact: bool) -> list[Any]:
    found = infer_types(opcode, types, attributes)
    return list(find_op(opcode).evaluate(Evaluation(inputs, attributes, found, {}, exact)))


def _places(exact: bool) -> tuple[list[Any], list[Type], list[Any], list[Type]]:
    """Positions, sequences and page tables; cos and sin; each with its types."""
    places = [np.array(p, np.int32) for p in ([6, 7, 8], [0, 0, 0], [[2, 1]])]
    angles = RANDOM.uniform(-2, 2, (TOKENS, DIM // 2))
    tables = [f(angles).astype(np.float64 if exact else np.float32) for f in (np.cos, np.sin)]
    kinds: list[Type] = [tensor(TOKENS, I32), tensor(TOKENS, I32), tensor(1, 2, I32)]
    return places, kinds, tables, [tensor(TOKENS, DIM // 2, F32)] * 2


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("is_grouped", [True, False])
@pytest.mark.parametrize("changes", [{}, NORM, {**NORM, **TEMPER}], ids=["plain", "normed", "tempered"])
@pytest.mark.parametrize("dtype", [F16, I8], ids=str)
def test_one_op_is_all_of_them(exact: bool, is_grouped: bool, changes: dict[str, float], dtype: DType) -> None:
    x: Any = RANDOM.standard_normal((TOKENS, COLUMNS)).astype(np.float64 if exact else np.float32)
    given, types, name, fmt = [x], [tensor(TOKENS, COLUMNS, F32)], "linear_dense", format_of("f32")
    values: Any = RANDOM.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    scale = None
    if is_grouped:
        given = _apply("quantize_rows", given, [*types], {"block": 32, "padded": 64}, exact)
        types = [tensor(TOKENS, 64, I8), tensor(TOKENS, 2, F32), tensor(TOKENS, 2, I32)]
        name, fmt = "linear_grouped", format_of("i4g32s16")
        values = RANDOM.integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8)
        scale = RANDOM.uniform(0.01, 0.02, (ROWS, 2)).astype(np.float16)
    packed = pack(fmt, values, scale, None)
    matrix = {"format": fmt.name, "rows": ROWS, "columns": COLUMNS}
    kind = _cache(dtype)
    state = CacheState.empty(kind, 3, exact)
    places, place_types, tables, table_types = _places(exact)
    tables, table_types = (tables, table_types) if "floor" not in changes else ([], [])
    joined: Type = tensor(TOKENS, ROWS, F32)
    weight: list[Type] = [*types, tensor(*packed.shape, U8)]
    (qkv,) = _apply(name, [*given, packed], weight, matrix, exact)
    if "qk_eps" in changes:
        norm = {"heads": HEADS + KV_HEADS, "head_dim": DIM, "eps": changes["qk_eps"]}
        (qkv,) = _apply("norm_heads", [qkv], [joined], norm, exact)
    if "floor" in changes:
        temper = {"heads": HEADS, "head_dim": DIM, **TEMPER}
        (qkv,) = _apply("temper_heads", [qkv, places[0]], [joined, place_types[0]], temper, exact)
    append = "rope_append" if tables else "append"
    expected = _apply(
        append, [state, qkv, *tables, *places], [kind, joined, *table_types, *place_types], dict(PLACES), exact
    )
    found = _apply(
        name.replace("linear", "qkv"),
        [state, *given, packed, *places, *tables],
        [kind, *weight, *place_types, *table_types],
        {**matrix, **PLACES, **changes},
        exact,
    )
    assert found[0].keys.any() and found[0].values.any()
    tolerance = 1e-12 if exact else 1e-5
    for one, other in zip((found[1], found[0].keys, found[0].values), _arrays(expected), strict=True):
        assert np.allclose(one, other, rtol=tolerance, atol=tolerance)


def _arrays(found: list[Any]) -> tuple[Any, Any, Any]:
    return found[1], found[0].keys, found[0].values


T = symbol("T")
X, WEIGHT = tensor(T, COLUMNS, F32), tensor(ROWS // 16, 2560, U8)
INDEX: list[Type] = [tensor(T, I32), tensor(T, I32), tensor(symbol("S"), symbol("N"), I32)]
TABLE = tensor(T, DIM // 2, F32)
ATTRIBUTES = {"format": "f32", "rows": ROWS, "columns": COLUMNS, **PLACES}


@pytest.mark.parametrize(
    ("opcode", "types", "attributes", "reason"),
    [
        ("qkv_dense", [X, X, WEIGHT, *INDEX], {}, "must be a kv_cache"),
        ("qkv_dense", [_cache(), tensor(T, 8, F32), WEIGHT, *INDEX], {}, "does not fit a dense weight"),
        ("qkv_dense", [_cache(), X, WEIGHT, *INDEX], {"heads": 2}, "rows do not hold 2 q"),
        ("qkv_dense", [_cache(), X, WEIGHT, *INDEX], {"heads": 3}, "do not share 2 kv heads"),
        ("qkv_dense", [_cache(), X, WEIGHT, *INDEX], {"layer": 2}, "layer 2 is outside"),
        ("qkv_dense", [_cache(), X, WEIGHT, *INDEX, TABLE], {}, "come together"),
        ("qkv_dense", [_cache(), X, WEIGHT, *INDEX, X, X], {}, "come together"),
        ("qkv_dense", [_cache(), X, WEIGHT, INDEX[0], INDEX[0], X], {}, "page tables"),
        ("qkv_dense", [_cache(), X, WEIGHT, *INDEX], {"floor": -1.0, "scale": 0.1}, "floor"),
        ("qkv_grouped", [_cache(), X, X, X, WEIGHT, *INDEX], {}, "do not fit f32"),
    ],
)
def test_refusals(opcode: str, types: list[Type], attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(OpError) as caught:
        infer_types(opcode, types, {**ATTRIBUTES, **attributes})
    assert reason in str(caught.value)
