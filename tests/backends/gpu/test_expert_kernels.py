"""Mixtures of experts in Triton's interpreter against the IR's `route`, `expert_linear` and `scatter_routed`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meanings import meaning, random_weight
from triton_interpreted import Array, Interpreter

EPS = 1e-5


def route(interpreter: Interpreter, logits: Array, top: int) -> list[Array]:
    """order, place, scores and offsets."""
    tokens, experts = logits.shape
    slots = tokens * top
    integers = {name: np.full(slots, -1, np.int32) for name in ("chosen_ptr", "order_ptr", "place_ptr")}
    floats = {name: np.full(slots, np.nan, np.float32) for name in ("slot_score_ptr", "score_ptr")}
    offsets = np.full(experts + 1, -1, np.int32)
    interpreter.launch(
        "moe.route", (1,), logits_ptr=logits, offset_ptr=offsets, tokens=tokens, EXPERTS=experts,
        WIDTH=max(2, 1 << (experts - 1).bit_length()), TOP=top, BLOCK=8, PDL=False, **integers, **floats,
    )  # fmt: skip
    return [integers["order_ptr"], integers["place_ptr"], floats["score_ptr"], offsets]


@settings(max_examples=15, deadline=None)
@given(tokens=st.integers(1, 20), experts=st.integers(1, 17), top=st.integers(1, 4), seed=st.integers(0, 99))
def test_route(interpreter: Interpreter, tokens: int, experts: int, top: int, seed: int) -> None:
    """Whole logits, so that many are equal; sorting is stable."""
    top = min(top, experts)
    logits = np.random.default_rng(seed).integers(-2, 3, (tokens, experts)).astype(np.float32)
    found, wanted = route(interpreter, logits, top), meaning("route", logits, top_k=top)
    for place in (0, 1, 3):
        np.testing.assert_array_equal(found[place], wanted[place])
    np.testing.assert_allclose(found[2], wanted[2], atol=1e-6)


def test_route_puts_nan_last(interpreter: Interpreter) -> None:
    logits = np.array([[np.nan, 1, 0], [np.nan, np.nan, np.nan], [-np.inf, -5, np.nan]], np.float32)
    order, place, _, offsets = route(interpreter, logits, 2)
    wanted = meaning("route", logits, top_k=2)
    np.testing.assert_array_equal(order, wanted[0])
    np.testing.assert_array_equal(place, wanted[1])
    np.testing.assert_array_equal(offsets, wanted[3])


class Layer:
    """The experts of one layer, and tokens routed to them."""

    def __init__(self, format: str, top: int, tokens: int, experts: int = 4) -> None:
        rng = np.random.default_rng(5)
        self.width, self.inner, self.experts, self.top, self.tokens = 96, 40, experts, top, tokens
        self.gate_up = random_weight(rng, format, experts * 2 * self.inner, self.width)
        self.down = random_weight(rng, format, experts * self.width, self.inner)
        self.x = (rng.standard_normal((tokens, self.width)) * 3).astype(np.float32)
        self.norm = rng.uniform(0.5, 1.5, self.width).astype(np.float32)
        self.base = rng.standard_normal((tokens, self.width)).astype(np.float32)
        logits = rng.standard_normal((tokens, experts)) + 2 * (np.arange(experts) == 1)  # one expert has most
        self.order, self.place, scores, self.offsets = meaning("route", logits, top_k=top)
        self.scores = scores.astype(np.float32)

    def by_expert(self, x: Array, stack: Array) -> Array:
        return np.asarray(meaning("expert_linear", x, stack.astype(np.float64), self.offsets)[0])

    def middle(self, normed: bool) -> Array:
        x = meaning("rms_norm", self.x, self.norm, eps=EPS)[0] if normed else self.x
        (routed,) = meaning("gather_routed", x, self.order, self.scores, top_k=self.top)
        gate, up = (self.by_expert(routed, stack) for stack in np.split(self.gate_up.values, 2))
        return np.asarray(meaning("swiglu", gate, up)[0])

    def answer(self, middle: Array) -> Array:
        return np.asarray(
            meaning("scatter_routed", self.by_expert(middle, self.down.values), self.place, self.base, top_k=self.top)[
                0
            ]
        )

    def routing(self) -> dict[str, Any]:
        width = 1 << (self.experts - 1).bit_length()
        offsets = self.offsets.astype(np.int32)
        return {"order_ptr": self.order, "offset_ptr": offsets, "EXPERTS": self.experts, "WIDTH": width, "PDL": False}


def check(actual: Array, wanted: Array) -> None:
    assert not np.isnan(actual).any(), "something was not written"
    assert np.abs(actual - wanted).max() < 4e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(("format", "top"), [("bf16", 1), ("e4m3fn bits", 2), ("i4g32s16", 1), ("u8g64s16m16", 1)])
def test_decode(interpreter: Interpreter, format: str, top: int) -> None:
    """Norm, gather, score and swiglu in one kernel; then down, added to the token's row where it has one expert."""
    layer, tokens = Layer(format, top, 2), 2
    rows = tokens * top
    middle = np.full((rows, layer.inner), np.nan, np.float32)
    interpreter.launch(
        "moe.decode_expert_gate_up", (3, rows), x_ptr=layer.x, norm_ptr=layer.norm, score_ptr=layer.scores,
        y_ptr=middle, N=layer.inner, K=layer.width, EPS=EPS, TOP=top, BN=16, BK=64,
        **layer.routing(), **layer.gate_up.arguments(),
    )  # fmt: skip
    check(middle, layer.middle(True))
    y = np.full((tokens if top == 1 else rows, layer.width), np.nan, np.float32)
    interpreter.launch(
        "moe.decode_expert_down", (6, rows), x_ptr=middle, base_ptr=layer.base if top == 1 else None, y_ptr=y,
        N=layer.width, K=layer.inner, BN=16, BK=32, **layer.routing(), **layer.down.arguments(),
    )  # fmt: skip
    check(added(interpreter, layer, y), layer.answer(middle))


@pytest.mark.parametrize("format", ["bf16", "i4g32s16"])
@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("normed", [False, True])
def test_prefill(interpreter: Interpreter, format: str, top: int, normed: bool) -> None:
    """Tiles of 16 routed rows, some expert with several and some with none."""
    layer = Layer(format, top, 21, experts=6)
    rows = 21 * top
    tiles = rows // 16 + layer.experts
    middle = np.full((rows, layer.inner), np.nan, np.float32)
    sizes = {"BM": 16, "BN": 32, "BK": 32, "DOT": "f32", "x_scale_ptr": None}
    interpreter.launch(
        "moe.prefill_expert_gate_up", (tiles, 2), x_ptr=layer.x, score_ptr=layer.scores, y_ptr=middle, N=layer.inner,
        norm_ptr=layer.norm if normed else None, K=layer.width, EPS=EPS, TOP=top, **sizes, **layer.routing(),
        **layer.gate_up.arguments(),
    )  # fmt: skip
    check(middle, layer.middle(normed))
    y = np.full((21 if top == 1 else rows, layer.width), np.nan, np.float32)
    interpreter.launch(
        "moe.prefill_expert_down", (tiles, 3), x_ptr=middle, base_ptr=layer.base if top == 1 else None, y_ptr=y,
        N=layer.width, K=layer.inner, **sizes, **layer.routing(), **layer.down.arguments(),
    )  # fmt: skip
    check(added(interpreter, layer, y), layer.answer(middle))


def added(interpreter: Interpreter, layer: Layer, y: Array) -> Array:
    """The answers of the experts added to each token's row; with one expert a token `y` is that already."""
    if layer.top == 1:
        return y
    total = np.full(layer.base.shape, np.nan, np.float32)
    interpreter.launch(
        "moe.scatter_routed", (layer.tokens, 2), routed_ptr=y, place_ptr=layer.place, base_ptr=layer.base, y_ptr=total,
        N=layer.width, TOP=layer.top, BLOCK=64, PDL=False,
    )  # fmt: skip
    return total
