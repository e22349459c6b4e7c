"""Small charts as SVG text: lines or dots over linear or logarithmic axes, with a legend. No dependencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 64, 52
INK, QUIET, GRID, PAPER = "#0b0b0b", "#52514e", "#e1e0d9", "#fcfcfb"
COLORS = ("#2a78d6", "#eb6834", "#1baf7a", "#4a3aa7", "#eda100", "#e34948")
"""Series colours, told apart by readers with any colour vision."""


@dataclass(frozen=True)
class Series:
    """A name, a colour by its place in COLORS, and points (x, y), each with words that show where the mouse rests."""

    name: str
    color: int
    points: Sequence[tuple[float, float, str]]
    line: bool = True
    dots: bool = True
    legend: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A title, the words of both axes, and the series."""

    title: str
    x_words: str
    y_words: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class _Axis:
    """Values to pixels."""

    ticks: list[float]
    low: float
    high: float
    log: bool
    start: float
    end: float

    def place(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def draw(chart: Chart) -> str:
    """The chart as SVG text."""
    points = [point for series in chart.series for point in series.points]
    x = _axis([p[0] for p in points], chart.log_x, LEFT, WIDTH - RIGHT, exact=len({p[0] for p in points}) <= 8)
    y = _axis([p[1] for p in points], chart.log_y, HEIGHT - BOTTOM, TOP, exact=False)
    parts = [*_frame(chart, x, y), *_legend(chart)]
    for series in chart.series:
        parts += _series(series, x.place, y.place)
    style = f'font-family="system-ui, sans-serif" font-size="12" fill="{QUIET}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {style}>'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>'
    return "\n".join([head, f"<title>{escape(chart.title)}</title>", background, *parts, "</svg>"]) + "\n"


def _axis(values: list[float], log: bool, start: float, end: float, exact: bool) -> _Axis:
    ticks = sorted(set(values)) if exact else _powers(values) if log else _round_steps(max(values))
    low, high = (min(ticks), max(ticks)) if log else (0.0, max(ticks))
    if log and exact:
        low, high = low / 1.1, high * 1.1
    elif exact:
        high *= 1.05
    return _Axis(ticks, low, high, log, start, end)


def _powers(values: list[float]) -> list[float]:
    """1, 3, 10, 30 ... from below the smallest value to above the largest."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 3)]
    low = max(step for step in steps if step <= min(values))
    high = min(step for step in steps if step >= max(values))
    return [step for step in steps if low <= step <= high]


def _round_steps(largest: float) -> list[float]:
    """0 and round numbers up to the first that is at least the largest value, five or so."""
    raw = largest / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    return [step * count for count in range(math.ceil(largest / step) + 1)]


def _frame(chart: Chart, x: _Axis, y: _Axis) -> Iterator[str]:
    yield f'<text x="{LEFT}" y="24" font-size="15" font-weight="600" fill="{INK}">{escape(chart.title)}</text>'
    for tick in y.ticks:
        at = y.place(tick)
        yield f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>'
        yield f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:,g}</text>'
    for tick in x.ticks:
        at = x.place(tick)
        yield f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:,g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(chart.x_words)}</text>'
    place = f'transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"'
    yield f'<text {place} text-anchor="middle">{escape(chart.y_words)}</text>'


def _legend(chart: Chart) -> Iterator[str]:
    at = float(LEFT)
    for series in (s for s in chart.series if s.legend):
        yield f'<rect x="{at}" y="38" width="12" height="12" rx="2" fill="{COLORS[series.color]}"/>'
        yield f'<text x="{at + 17}" y="48">{escape(series.name)}</text>'
        at += 17 + 7 * len(series.name) + 18


def _series(series: Series, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[str]:
    color = COLORS[series.color]
    places = [(x(a), y(b), words) for a, b, words in series.points]
    if series.line:
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b, _ in places)
        dashes = ' stroke-dasharray="6 5"' if series.dashed else ""
        yield f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2" stroke-linejoin="round"{dashes}/>'
    if series.dots:
        style = f'r="4.5" fill="{color}" stroke="{PAPER}" stroke-width="1.5"'
        for a, b, words in places:
            yield f'<circle cx="{a:.1f}" cy="{b:.1f}" {style}><title>{escape(words)}</title></circle>'
