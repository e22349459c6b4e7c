"""Two curves of a plan as one SVG file, written by hand: memory over context, and tokens a second over batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

from .machine import Machine
from .plan import Plan, Subject, make_plan, plan_memory
from .request import Request

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 66, 46
PANEL = WIDTH + LEFT + RIGHT
COLOURS = {"weights": "#4c78a8", "other": "#9ecae9", "kv": "#f58518", "limit": "#c0392b", "curve": "#2f7d4f"}

Point = tuple[float, float]


@dataclass(frozen=True)
class _Axes:
    """A panel: x on a logarithmic scale, y from zero up."""

    left: float
    low: float
    high: float
    top: float

    def x(self, value: float) -> float:
        """Pixels of a value on the horizontal axis."""
        span = math.log(self.high / self.low) or 1.0
        return self.left + WIDTH * math.log(value / self.low) / span

    def y(self, value: float) -> float:
        """Pixels of a value on the vertical axis."""
        return TOP + HEIGHT * (1 - value / self.top)


def powers(most: int, least: int = 1, factor: float = 2) -> list[int]:
    """The values from `least` up by `factor`, below `most`; and `most`."""
    found, value = [least], float(least)
    while (value := value * factor) < most:
        found.append(round(value))
    return sorted({*found, most})


def chart(plan: Plan) -> str:
    """The SVG text for a plan: its model, machine and request, with context and batch varied one at a time."""
    subject, request, machine = plan.subject, plan.request, plan.machine
    body = [
        *_memory_panel(subject, request, machine, 0),
        *_speed_panel(subject, request, machine, PANEL),
    ]
    width, height = 2 * PANEL, TOP + HEIGHT + BOTTOM
    devices = f"{request.tp} x {machine.name}" if request.tp > 1 else machine.name
    title = f"{subject.name}, {request.quantization} weights, {request.kv_dtype} cache, on {devices}"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
            _text(LEFT, 16, title, size=13),
            *body,
            "</svg>\n",
        )
    )


def _memory_panel(subject: Subject, request: Request, machine: Machine, at: float) -> list[str]:
    contexts = powers(subject.config.context_length, min(1024, subject.config.context_length), 2**0.25)
    rows = [plan_memory(subject, replace(request, context=n), machine)[0] for n in contexts]
    limit = machine.memory_bytes
    axes = _Axes(at + LEFT, contexts[0], contexts[-1], 1.08 * max(rows[-1].total, limit or 0))
    weights = [float(row.weights) for row in rows]
    other = [float(row.total - row.kv) for row in rows]
    total = [float(row.total) for row in rows]
    title = f"memory of one device over context, batch {request.batch}"
    drawn = _frame(axes, title, "tokens of context", powers(contexts[-1], contexts[0]), _gigabytes)
    for name, low, high in (("weights", [0.0] * len(rows), weights), ("other", weights, other), ("kv", other, total)):
        drawn.append(_area(axes, contexts, low, high, COLOURS[name]))
    labels = {"weights": "weights", "other": "arena, logits, code", "kv": "KV cache"}
    drawn += _legend(axes, [(labels[name], COLOURS[name]) for name in labels])
    if limit is not None:
        drawn += _level(axes, float(limit), f"{machine.name}: {_gigabytes(float(limit))}")
    return drawn


def _speed_panel(subject: Subject, request: Request, machine: Machine, at: float) -> list[str]:
    batches = powers(min(256, request.max_step_tokens))
    plans = [make_plan(subject, replace(request, batch=n), machine, limits=False) for n in batches]
    rates = [plan.decode.tokens_per_second for plan in plans]
    title = f"decode, tokens a second of all sequences, context {request.context}"
    known = [rate for rate in rates if rate is not None]
    axes = _Axes(at + LEFT, batches[0], batches[-1], 1.08 * max(known, default=1.0))
    drawn = _frame(axes, title, "sequences in a step", batches, lambda value: f"{value:,.4g}")
    if len(known) < len(rates):
        return [*drawn, _text(at + LEFT + 20, TOP + 40, "unknown: the machine's memory bandwidth is not known")]
    fitting = [(plan.memory.free or 0) >= 0 for plan in plans]
    points = [(float(n), rate) for n, rate in zip(batches, known, strict=True)]
    inside = [point for point, fits in zip(points, fitting, strict=True) if fits]
    drawn.append(_line(axes, points, COLOURS["curve"], dashed=True))
    drawn.append(_line(axes, inside, COLOURS["curve"]))
    drawn += [
        f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.5" fill="{COLOURS["curve"]}"/>' for x, y in inside
    ]
    return drawn + _legend(axes, [("at most, by bandwidth and arithmetic; dashed: does not fit", COLOURS["curve"])])


def _frame(axes: _Axes, title: str, below: str, ticks: Sequence[int], label: Callable[[float], str]) -> list[str]:
    bottom, right = TOP + HEIGHT, axes.left + WIDTH
    found = [_text(axes.left, TOP - 26, title)]
    for value in round_steps(axes.top):
        y = axes.y(value)
        found.append(f'<path d="M{axes.left:.1f} {y:.1f}H{right:.1f}" stroke="#ddd"/>')
        found.append(_text(axes.left - 6, y + 4, label(value), anchor="end"))
    every = -(-len(ticks) // 8)
    for tick in ticks[::every]:
        x = axes.x(tick)
        found.append(f'<path d="M{x:.1f} {bottom}v4" stroke="#333"/>')
        found.append(_text(x, bottom + 17, _short(tick), anchor="middle"))
    found.append(_text(axes.left + WIDTH / 2, bottom + 36, below, anchor="middle"))
    found.append(f'<path d="M{axes.left:.1f} {TOP}V{bottom}H{right:.1f}" fill="none" stroke="#333"/>')
    return found


def _area(axes: _Axes, xs: Sequence[int], low: Sequence[float], high: Sequence[float], colour: str) -> str:
    there = [(axes.x(x), axes.y(y)) for x, y in zip(xs, high, strict=True)]
    back = [(axes.x(x), axes.y(y)) for x, y in zip(reversed(xs), reversed(low), strict=True)]
    return f'<polygon points="{_pairs([*there, *back])}" fill="{colour}" fill-opacity="0.85"/>'


def _line(axes: _Axes, points: Sequence[Point], colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    drawn = _pairs([(axes.x(x), axes.y(y)) for x, y in points])
    return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'


def _level(axes: _Axes, value: float, label: str) -> list[str]:
    y, right = axes.y(value), axes.left + WIDTH
    line = f'<path d="M{axes.left:.1f} {y:.1f}H{right:.1f}" stroke="{COLOURS["limit"]}" stroke-dasharray="6 3"/>'
    return [line, _text(right, y - 4, label, anchor="end")]


def _legend(axes: _Axes, rows: Sequence[tuple[str, str]]) -> list[str]:
    found, x = [], axes.left
    for label, colour in rows:
        found.append(f'<rect x="{x:.1f}" y="{TOP - 17}" width="10" height="10" fill="{colour}"/>')
        found.append(_text(x + 15, TOP - 8, label))
        x += 34 + 6.0 * len(label)
    return found


def round_steps(top: float) -> list[float]:
    """From zero to at most `top`, four to ten steps of 1, 2 or 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(top / 4))
    step = next(unit * factor for factor in (5, 2, 1) if top / (unit * factor) >= 4)
    return [step * n for n in range(int(top / step) + 1)]


def _pairs(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB"


def _short(value: float) -> str:
    """131072 -> 128K: powers of two read as people write them."""
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
