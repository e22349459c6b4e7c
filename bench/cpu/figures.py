"""From raw pairs to the figures that are printed, stored and plotted: medians, quartiles, ratios, shares of limits."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rows import Point

from llamac.models.llama.config import LlamaConfig


@dataclass
class Timing:
    """One engine at one point in one pair: tokens a second, 0 for what was not timed, and the limits around the run."""

    prefill: float = 0.0
    decode: float = 0.0
    peak: float = 0.0
    read: float = 0.0
    mapped_read: float = 0.0


@dataclass
class Measured:
    """All pairs of one point: engine -> one timing a pair."""

    point: Point
    timings: dict[str, list[Timing]] = field(default_factory=dict)


def matrix_elements(config: LlamaConfig) -> tuple[int, int]:
    """Elements of the matrices of all layers, and of the head."""
    attention = config.hidden_size * config.head_dim * 2 * (config.heads + config.kv_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    return config.layers * layer, config.vocab_size * config.hidden_size


def operations(config: LlamaConfig, rows: int, pairs: float, logit_rows: int) -> float:
    """Operations of one step: two a weight and row, four a head's element and (query, key) pair in attention."""
    layers, head = matrix_elements(config)
    scores = 4 * config.layers * config.heads * config.head_dim * pairs
    return 2 * (layers * rows + head * logit_rows) + scores


def prefill_operations(config: LlamaConfig, tokens: int) -> float:
    """Operations of a prefill that ends in one row of logits."""
    return operations(config, tokens, tokens * (tokens + 1) / 2, 1)


def decode_operations(config: LlamaConfig, point: Point) -> float:
    """Operations of the middle one of a point's decode steps."""
    keys = point.prompt + point.new / 2
    return operations(config, point.sequences, keys * point.sequences, point.sequences)


def spread(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [float(f"{value:.4g}") for value in quartiles]


def figures(measured: Measured, config: LlamaConfig, weight_bytes: int) -> dict[str, Any]:
    """The figures of one point; `weight_bytes` are those that a decode step of llamac reads."""
    point, own = measured.point, measured.timings["llamac"]
    found: dict[str, Any] = {"prompt": point.prompt, "new": point.new, "sequences": point.sequences}
    found["speeds"] = {who: _kinds(rows, lambda t, kind: getattr(t, kind)) for who, rows in measured.timings.items()}
    found["ratios"] = {who: _ratios(own, rows) for who, rows in measured.timings.items() if who != "llamac"}
    found["limits"] = {
        kind: spread([getattr(timing, kind) for timing in own]) for kind in ("peak", "read", "mapped_read")
    }
    found["work"] = {
        "prefill_operations": prefill_operations(config, point.prompt),
        "step_operations": decode_operations(config, point),
        "step_bytes": weight_bytes,
    }
    found["shares"] = _shares(point, own, found["work"])
    return found


def _kinds(rows: list[Timing], value: Callable[[Timing, str], float]) -> dict[str, list[float]]:
    return {kind: spread([value(t, kind) for t in rows]) for kind in ("prefill", "decode") if getattr(rows[0], kind)}


def _ratios(own: list[Timing], other: list[Timing]) -> dict[str, list[float]]:
    return {
        kind: spread([getattr(a, kind) / getattr(b, kind) for a, b in zip(own, other, strict=True)])
        for kind in ("prefill", "decode")
        if getattr(own[0], kind) and getattr(other[0], kind)
    }


def _shares(point: Point, own: list[Timing], work: dict[str, float]) -> dict[str, list[float]]:
    """What part of the machine's limits llamac reaches."""
    shares: dict[str, list[float]] = {}
    if own[0].prefill and own[0].peak:
        rate = work["prefill_operations"] / point.prompt
        shares["peak"] = spread([t.prefill * rate / t.peak for t in own])
    if own[0].decode:
        steps = [t.decode / point.sequences for t in own]
        pairs = list(zip(steps, own, strict=True))
        shares["read"] = spread([rate * work["step_bytes"] / t.read for rate, t in pairs])
        shares["mapped_read"] = spread([rate * work["step_bytes"] / t.mapped_read for rate, t in pairs])
        if own[0].peak:
            roofs = [max(work["step_operations"] / t.peak, work["step_bytes"] / t.mapped_read) for t in own]
            shares["roof"] = spread([roof * rate for roof, rate in zip(roofs, steps, strict=True)])
    return shares


def multiples(first: Measured, other: Measured) -> dict[str, list[float]]:
    """Engine -> tokens a second of `other` over those of `first` in the same pair."""
    return {
        who: spread([b.decode / a.decode for a, b in zip(rows, other.timings[who], strict=True)])
        for who, rows in first.timings.items()
        if rows[0].decode
    }
