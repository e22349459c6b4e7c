"""The plots of docs/benchmarks/cpu.md from the results of `compare.py`: file name -> SVG text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from svg_chart import Chart, Series, draw

ENGINES = ("llamac", "llama.cpp", "openvino", "onnxruntime")
"""Engine -> colour, by place."""
WORDS = {"openvino": "OpenVINO GenAI", "onnxruntime": "ONNX Runtime GenAI"}


def plots(results: dict[str, Any]) -> dict[str, str]:
    """Every plot that the results have rows for."""
    rows, found = results["rows"], {}
    if "1b-prompts" in rows:
        words = "1B int4: prefill by length of the prompt"
        found["cpu-prompts.svg"] = _sweep(rows["1b-prompts"], "prompt", "prefill", words, "tokens of the prompt")
    if "1b-batches" in rows:
        words = "1B int4: decode by sequences stepped together"
        found["cpu-batches.svg"] = _sweep(rows["1b-batches"], "sequences", "decode", words, "sequences")
    if "context" in results:
        found["cpu-context.svg"] = _contexts(results["context"]["models"])
    if rows:
        found["cpu-roofline.svg"] = _roofline(rows)
    return found


def _sweep(row: dict[str, Any], key: str, kind: str, title: str, words: str) -> str:
    series = []
    for who in ENGINES:
        points = [
            (point[key], point["speeds"][who][kind][1], f"{point[key]}: {point['speeds'][who][kind][1]:g} tokens/s")
            for point in row["points"]
            if kind in point["speeds"].get(who, {})
        ]
        if points:
            series.append(Series(WORDS.get(who, who), ENGINES.index(who), points))
    return draw(Chart(title, words, "tokens/s", series, log_x=True))


def _contexts(models: dict[str, Any]) -> str:
    """Decode by context, with the floor of memory in the same run."""
    series = []
    for color, (name, model) in enumerate(models.items()):
        measured, floors = [], []
        for row in model["decode"]:
            words = f"{row['context']}: {row['ratio']:.2f} times the floor's time"
            measured.append((row["context"], 1 / row["seconds"], words))
            floors.append((row["context"], row["ratio"] / row["seconds"], ""))
        series.append(Series(name, color, measured))
        series.append(Series("its floor", color, floors, dots=False, legend=False, dashed=True))
    title = "Decode by context; dashed the floor: weights and cache over the read"
    return draw(Chart(title, "tokens in the cache", "tokens/s", series, log_x=True))


def _roofline(rows: dict[str, Any]) -> str:
    """Operations a second of llamac over operations a byte of weights, under the medians of the rows' own limits.

    Memory's speed differs from row to row, so a dot stands at its share of the roof in its own pairs.
    """
    points = [(row, point) for row in rows.values() for point in row["points"]]
    read = _middle([point["limits"]["mapped_read"][1] for _, point in points])
    series = []
    for unit, color in (("int8", 0), ("bf16", 1)):
        found = [(row, point) for row, point in points if row["unit"] == unit]
        if found:
            top = _middle([point["limits"]["peak"][1] for _, point in found])
            dots = [dot for row, point in found for dot in _dots(row["row"], point, top, read)]
            edges = [min(x for x, _, _ in dots) / 1.5, top / read, max(x for x, _, _ in dots) * 1.5]
            roof = [(x, min(top, read * x) / 1e9, "") for x in sorted(edges)]
            series.append(Series(f"{unit}: peak {top / 1e9:.0f} G operations/s", color, roof, dots=False))
            series.append(Series(unit, color, dots, line=False, legend=False))
    title = f"Roofline: rows of llamac under the peaks and a read of {read / 1e9:.0f} GB/s"
    words = "operations for each byte of weights"
    return draw(Chart(title, words, "G operations/s", series, log_x=True, log_y=True))


def _dots(row: str, point: dict[str, Any], top: float, read: float) -> Iterator[tuple[float, float, str]]:
    """Prefill and decode of a point: x, y, and what they are."""
    work, shares = point["work"], point["shares"]
    for kind, share, operations in (("prefill", "peak", "prefill_operations"), ("decode", "roof", "step_operations")):
        if share in shares:
            x = work[operations] / work["step_bytes"]
            height = shares[share][1] * (top if kind == "prefill" else min(top, read * x))
            words = f"{row} {kind}, {point['sequences']} x {point['prompt']}: {shares[share][1]:.0%} of the {share}"
            yield x, height / 1e9, words


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
