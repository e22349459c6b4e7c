"""Projection, rotation and cache append in Triton's interpreter against the IR's `rope_append` and `append`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from meanings import meaning, random_weight
from paged import Pages, empty_pages, rounded, rows_of
from triton_interpreted import Array, Interpreter

EPS = 1e-5
LENGTHS = [40, 3, 33]
WANTED = [[37, 38, 39], [0], [31, 32]]
TOLERANCE = {"f32": 3e-6, "f16": 6e-4, "bf16": 8e-3, "e4m3fn": 0.07, "e4m3fn bits": 0.07}
"""Error relative to the largest value, by cache type. The interpreter cuts f32 to bf16 where hardware rounds."""


def attend_inputs(heads: int, kv_heads: int, head: int) -> tuple[Array, Array]:
    """cos and sin of the rows of WANTED, by the kernel's own convention f32 [T, head / 2]."""
    positions, _ = rows_of(LENGTHS, WANTED)
    frequencies = (500000.0 ** (-np.arange(head // 2) / (head // 2))).astype(np.float32)
    cos, sin = meaning("rope_angles", positions, frequencies)
    return cos.astype(np.float32), sin.astype(np.float32)


def wanted_heads(qkv: Array, pages: Pages, heads: int, layer: int, rope: bool, eps: float, floor: int) -> list[Any]:
    """The cache and q after the IR's ops: norm of q and k, tempering of q, rotation, append."""
    head, kv_heads = pages.type.head_dim, pages.type.kv_heads
    positions, sequences = rows_of(LENGTHS, WANTED)
    if eps >= 0:
        (qkv,) = meaning("norm_heads", qkv, heads=heads + kv_heads, head_dim=head, eps=eps)
    if floor:
        (qkv,) = meaning("temper_heads", qkv, positions, heads=heads, head_dim=head, floor=float(floor), scale=0.1)
    table = np.where(pages.table < len(pages.memory), pages.table, 0)
    rows = [positions, sequences, table]
    if rope:
        angles = attend_inputs(heads, kv_heads, head)
        return meaning("rope_append", pages.state, qkv, *angles, *rows, layer=layer, heads=heads)
    return meaning("append", pages.state, qkv, *rows, layer=layer, heads=heads)


def run(
    interpreter: Interpreter, format: str, storage: str, *, many: bool = False, rope: bool = True, eps: float = -1.0,
    floor: int = 0, splits: int = 1, heads: int = 3, kv_heads: int = 1,
) -> None:  # fmt: skip
    """One kernel on six rows of three sequences; q and the cache must be the IR's, everything else untouched."""
    rng, head, columns, layer = np.random.default_rng(9), 32, 96, 1
    weight = random_weight(rng, format, (heads + 2 * kv_heads) * head, columns)
    pages = empty_pages(rng, LENGTHS, storage, kv_heads=kv_heads, head=head, page=16)
    positions, sequences = rows_of(LENGTHS, WANTED)
    x = (rng.standard_normal((6, columns)) * 3).astype(np.float32)
    norm = rng.uniform(0.5, 1.5, columns).astype(np.float32)
    qkv = meaning("rms_norm", x, norm, eps=EPS)[0] @ weight.values.T.astype(np.float64)
    cache, q = wanted_heads(qkv, pages, heads, layer, rope, eps, floor)
    cos, sin = attend_inputs(heads, kv_heads, head) if rope else (None, None)
    pairs = 16 if eps >= 0 and many else 8
    tiles = (heads + 2 * kv_heads) * (16 // pairs)
    before, found, counter = (
        pages.values().copy(),
        np.full((8, heads * head), np.nan, np.float32),
        np.zeros(tiles, np.int32),
    )
    given = {
        "x_ptr": x, "norm_ptr": norm, "q_ptr": found, "cos_ptr": cos, "sin_ptr": sin, "positions_ptr": positions,
        "sequences_ptr": sequences, "tokens": 6, "layer": layer, "HEADS": heads, "ROPE": rope, "QK_EPS": eps,
        "FLOOR": floor, "TEMPERATURE": 0.1, "K": columns, "EPS": EPS, "BP": pairs, "BK": 32, "PDL": False,
    } | pages.arguments() | weight.arguments()  # fmt: skip
    if many:
        interpreter.launch("qkv.prefill_qkv", (1, tiles), x_scale_ptr=None, BM=16, DOT="f32", **given)
    else:
        partial = np.full((splits, 8, weight.layout.rows), np.nan, np.float32)
        scratch = {"partial_ptr": partial, "counter_ptr": counter, "M": 8, "SPLITS": splits}
        interpreter.launch("qkv.decode_qkv", (tiles, splits), **given, **scratch)
    assert np.isnan(found[6:]).all() and not counter.any()
    np.testing.assert_allclose(found[:6], q, atol=4e-6 * np.abs(q).max())
    check_cache(before, pages, cache, storage)


def check_cache(before: Array, pages: Pages, cache: Any, storage: str) -> None:
    """What the IR wrote is there, as the cache holds it; nothing else changed."""
    after = pages.values()
    wanted = np.stack([cache.keys, cache.values], axis=2)
    written = wanted != 0
    assert written.sum() == written[:, 1].sum() == 6 * 2 * pages.type.kv_heads * pages.type.head_dim
    np.testing.assert_array_equal(after[~written], before[~written])
    size = np.abs(wanted).max()
    if storage in ("e4m3fn", "e4m3fn bits"):
        assert pages.scales is not None
        size = min(size, 448 * float(pages.scales.min()))
        wanted = np.clip(wanted, -448 * pages.scales[:, :, None, None], 448 * pages.scales[:, :, None, None])
    error = np.abs(after[written] - wanted[written]).max() / size
    assert error < TOLERANCE[storage], f"relative error {error:.2g}"
    assert storage != "bf16" or (rounded(after[written], storage) == after[written]).all()


@pytest.mark.parametrize("storage", TOLERANCE)
@pytest.mark.parametrize("many", [False, True])
def test_every_cache_type(interpreter: Interpreter, storage: str, many: bool) -> None:
    run(interpreter, "bf16", storage, many=many)


@pytest.mark.parametrize("format", ["f32", "e4m3fn bits", "i4g32s16", "u8g64s16m16"])
def test_weight_formats(interpreter: Interpreter, format: str) -> None:
    run(interpreter, format, "f32", heads=4, kv_heads=2)


@pytest.mark.parametrize("many", [False, True])
def test_a_norm_of_q_and_k(interpreter: Interpreter, many: bool) -> None:
    run(interpreter, "bf16", "f32", eps=1e-5, many=many)


@pytest.mark.parametrize("many", [False, True])
def test_a_tempered_layer_without_rotation(interpreter: Interpreter, many: bool) -> None:
    """Steps of the temperature lie at positions 31 and 32 here."""
    run(interpreter, "bf16", "f32", rope=False, floor=8, many=many)


@pytest.mark.parametrize("splits", [2, 3])
def test_split_over_columns(interpreter: Interpreter, splits: int) -> None:
    run(interpreter, "bf16", "f32", splits=splits, eps=1e-5)


def test_angles(interpreter: Interpreter) -> None:
    """Up to the far end of a long context, where the angle itself is large."""
    positions = np.array([0, 1, 17, 8191, 131071], np.int32)
    frequencies = (500000.0 ** (-np.arange(24) / 24)).astype(np.float32)
    cos, sin = np.full((5, 24), np.nan, np.float32), np.full((5, 24), np.nan, np.float32)
    interpreter.launch(
        "qkv.rope_angles", (5,), positions_ptr=positions, frequency_ptr=frequencies, cos_ptr=cos, sin_ptr=sin, HALF=24,
        BLOCK=32,
    )  # fmt: skip
    angle = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angle), atol=1e-6)
