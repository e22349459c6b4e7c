"""Kernels of pictures in Triton's interpreter against the IR's meaning: attention to vision tokens, and of encoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from meanings import meaning, random_weight
from paged import Pages, filled_pages
from triton_interpreted import Array, Interpreter

from llamac.ir.dtypes import F32

KEYS, EPS, SCALE = 16, 1e-5, 0.25
TOLERANCE = {"f32": 3e-6, "bf16": 2e-2}
SPANS = [(0, 0), (0, 37), (5, 6), (16, 32), (3, 37), (9, 4), (31, 33)]
"""Ranges of vision tokens: none, all, one, whole tiles of keys, across pages, backwards, across tiles."""


def seen(storage: str) -> tuple[Pages, dict[str, Array]]:
    """Vision tokens of two sequences, and rows that see ranges of them."""
    rng = np.random.default_rng(1)
    pages = filled_pages(rng, [37, 40], storage, kv_heads=2, head=16, page=32)
    pages = replace(pages, type=replace(pages.type, cross=True))
    start, stop = np.array(SPANS, np.int32).T.copy()
    rows = {
        "q": rng.standard_normal((len(SPANS), 4 * 16)).astype(np.float32),
        "norm": rng.uniform(0.5, 1.5, 16).astype(np.float32), "gate": np.array([0.6], np.float32), "start": start,
        "stop": stop, "sequences": np.array([0, 0, 0, 0, 1, 1, 1], np.int32),
    }  # fmt: skip
    return pages, rows


def check_vision(pages: Pages, rows: dict[str, Array], out: Array, storage: str) -> None:
    table = np.where(pages.table < len(pages.memory), pages.table, 0)
    wanted = meaning(
        "attend_vision_rows", rows["q"], rows["norm"], pages.state, rows["start"], rows["stop"], rows["sequences"],
        table, rows["gate"], layer=1, heads=4, scale=SCALE, eps=EPS, dtype=F32,
    )[0]  # fmt: skip
    assert not np.isnan(out).any(), "a hidden key or an unwritten value got in"
    assert (out[[0, 5]] == 0).all(), "rows that see nothing"
    assert np.abs(out - wanted).max() < TOLERANCE[storage] * np.abs(wanted).max()


def given(pages: Pages, rows: dict[str, Array], out: Array) -> dict[str, Any]:
    cache = {name: value for name, value in pages.arguments().items() if name != "kv_scale_ptr"}
    pointers = {f"{name}_ptr": value for name, value in rows.items()}
    constants = {"SCALE": SCALE, "EPS": EPS, "HEADS": 4, "KEYS": KEYS, "PDL": False, "layer": 1}
    return {**cache, **pointers, **constants, "out_ptr": out}


@pytest.mark.parametrize("storage", TOLERANCE)
@pytest.mark.parametrize("splits", [1, 4])
def test_decode_to_vision_tokens(interpreter: Interpreter, storage: str, splits: int) -> None:
    pages, rows = seen(storage)
    out, tiles = np.full(rows["q"].shape, np.nan, np.float32), len(SPANS) * 2
    counter = np.zeros(tiles, np.int32)
    interpreter.launch(
        "vision.decode_vision", (len(SPANS), 2, splits), ROWS=16, SPLITS=splits, counter_ptr=counter,
        partial_ptr=np.full((tiles * 16, splits, 16), np.nan, np.float32),
        weight_ptr=np.full((tiles * 16, splits), np.nan, np.float32), **given(pages, rows, out),
    )  # fmt: skip
    assert not counter.any()
    check_vision(pages, rows, out, storage)


@pytest.mark.parametrize("storage", TOLERANCE)
def test_prefill_to_vision_tokens(interpreter: Interpreter, storage: str) -> None:
    """Tiles whose rows see different ranges, one in which some see nothing, and one of no rows."""
    pages, rows = seen(storage)
    out, tiles = np.full(rows["q"].shape, np.nan, np.float32), np.array([(0, 4), (4, 3), (0, 0)], np.int32)
    interpreter.launch("vision.prefill_vision", (3, 2), ROWS=16, tiles_ptr=tiles, **given(pages, rows, out))
    check_vision(pages, rows, out, storage)


@pytest.mark.parametrize("storage", TOLERANCE)
@pytest.mark.parametrize("padded", [0, 10])
def test_every_row_sees_every_row(interpreter: Interpreter, storage: str, padded: int) -> None:
    """Heads that are no power of two, tiles of which one is padding, 40 rows in tiles of 16."""
    rng = np.random.default_rng(2)
    kind = np.float32 if storage == "f32" else ml_dtypes.bfloat16
    qkv = rng.standard_normal((40, 3 * 2 * 12)).astype(kind)
    slots = [np.array([0, 1, -1, 2], np.int32)] if padded else []
    sizes = {"tokens": 7, "padded": padded} if padded else {}
    wanted = meaning(
        "attend_image_rows", qkv.astype(np.float32), *slots, heads=2, head_dim=12, scale=SCALE, dtype=F32, **sizes
    )[0]
    out = np.full((40, 24), np.nan, np.float32)
    interpreter.launch(
        "encoder.attend_all", (3, 2), qkv_ptr=qkv, slots_ptr=slots[0] if slots else None, out_ptr=out, SCALE=SCALE,
        COUNT=40, HEADS=2, HEAD=12, WIDE=16, ROWS=16, KEYS=KEYS, TOKENS=7 if padded else 40, PADDED=padded or 40,
        PDL=False,
    )  # fmt: skip
    assert np.abs(out - wanted).max() < TOLERANCE[storage] * np.abs(wanted).max()


@pytest.mark.parametrize(("gelu", "residual"), [(True, False), (False, True)])
def test_products_with_what_follows_them(interpreter: Interpreter, gelu: bool, residual: bool) -> None:
    """Bias, then gelu or residual, at sizes that no tile divides; nothing is written behind the rows."""
    rng = np.random.default_rng(3)
    weight, x = random_weight(rng, "bf16", 40, 72), rng.standard_normal((21, 72)).astype(np.float32)
    bias, onto = rng.standard_normal(40).astype(np.float32), rng.standard_normal((21, 40)).astype(np.float32)
    wanted = x.astype(np.float64) @ weight.values.T.astype(np.float64) + bias
    wanted = meaning("gelu", wanted)[0] if gelu else wanted + onto
    y = np.full((23, 40), np.nan, np.float32)
    interpreter.launch(
        "encoder.image_linear", (4,), x_ptr=x, y_ptr=y, bias_ptr=bias, residual_ptr=onto if residual else None,
        tokens=21, N=40, K=72, BN=32, BM=16, BK=64, BAND=2, DOT="bf16", GELU=gelu, PDL=False, **weight.arguments(),
    )  # fmt: skip
    assert np.isnan(y[21:]).all(), "rows behind the tokens were written"
    assert np.abs(y[:21] - wanted).max() < TOLERANCE["bf16"] * np.abs(wanted).max()
