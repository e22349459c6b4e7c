"""A plan in words, and the what-if table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from .inspect import human_bytes

if TYPE_CHECKING:
    from llamac.planning.plan import Phase, Plan

_TITLES = ("quantize", "tp", "context", "batch", "weights", "KV cache", "total", "free", "decode tok/s", "prefill")
_FRAME = 3
"""Characters that the frame of a drawn table adds to a column."""


def plan_lines(plan: Plan) -> Iterator[str]:
    """What `llamac plan` prints."""
    from llamac.planning.weights import bytes_by_role

    request, machine = plan.request, plan.machine
    devices = f"{request.tp} x {machine.name}" if request.tp > 1 else machine.name
    yield f"{plan.subject.name} on {devices} ({machine.summary})"
    yield from _indented(_model(plan))
    yield "weights on each device" if request.tp > 1 else "weights"
    roles = bytes_by_role(plan.parts, machine.layout)
    yield from _indented(_columns([(role, human_bytes(count)) for role, count in roles.items()]))
    if plan.subject.stored:
        stored = ", ".join(f"{name} {human_bytes(count)}" for name, count in plan.subject.stored.items())
        yield f"  the checkpoint stores {human_bytes(sum(plan.subject.stored.values()))}: {stored}"
    yield "KV cache of one sequence" + (" on each device" if request.tp > 1 else "")
    yield from _indented(_caches(plan))
    yield "memory of each device" if request.tp > 1 else "memory"
    yield from _indented(_memory(plan))
    yield "least times (full bandwidth, peak rates, all at once: an efficiency of 1)"
    what = f"prefill of {request.prompt_tokens:,} tokens"
    step = f"decode step at {request.context:,} tokens" + (f", batch {request.batch}" if request.batch > 1 else "")
    rows = _columns([(what, *_phase(plan.prefill)), (step, *_phase(plan.decode))])
    yield from _indented(row.rstrip() for row in rows)
    notes = list(_notes(plan))
    if notes:
        yield "notes"
        yield from _indented(notes)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Cells padded to their column; the last of a row as it is."""
    widths: dict[int, int] = {}
    for row in rows:
        for index, cell in enumerate(row[:-1]):
            widths[index] = max(widths.get(index, 0), len(cell))
    for row in rows:
        yield "  ".join([*(cell.ljust(widths[i]) for i, cell in enumerate(row[:-1])), row[-1]])


def _model(plan: Plan) -> Iterator[str]:
    from llamac.planning.weights import active_parameters, parameters_by_role

    subject, request = plan.subject, plan.request
    total = sum(parameters_by_role(subject.config, subject.encodings).values())
    active = active_parameters(subject.config, subject.encodings)
    shown = f", {active / 1e9:.1f}B of the text model active" if subject.config.moe is not None else ""
    count = f"{total / 1e9:.2f}B" if total >= 10**9 else f"{total / 1e6:.3g}M"
    yield f"{subject.config.architecture}, {count} parameters{shown}"
    yield (
        f"{request.quantization} weights, {request.kv_dtype} cache, context {request.context:,} of "
        f"{subject.config.context_length:,}, batch {request.batch}, steps of at most {request.max_step_tokens} tokens"
    )


def _caches(plan: Plan) -> Iterator[str]:
    rows = []
    for group in plan.groups:
        held = f"{group.tokens:,} tokens, {human_bytes(group.token_bytes)} each"
        pages = f"{group.pages:,} pages of {group.page_tokens}" if group.page_tokens > 1 else ""
        rows.append((group.kind, f"{group.layers} layers", human_bytes(group.bytes), held, pages))
    return _columns(rows)


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    rows = []
    for name in ("weights", "kv", "arena", "logits", "code"):
        why = memory.estimated.get(name)
        label = "KV cache" if name == "kv" else name
        rows.append((label, human_bytes(getattr(memory, name)), f"estimate: {why}" if why else ""))
    rows.append(("total", human_bytes(memory.total), f"{memory.total:,} bytes"))
    yield from (line.rstrip() for line in _columns(rows))
    if memory.device is None or memory.free is None:
        yield "whether it fits is unknown: --memory SIZE says how much the machine has"
        return
    device = human_bytes(memory.device)
    if memory.free >= 0:
        yield f"fits: {human_bytes(memory.free)} of {device} are left"
    else:
        yield f"does not fit: {human_bytes(-memory.free)} more than the {device} there are"
    yield f"largest context for batch {plan.request.batch}: {_largest(plan.largest_context)}"
    yield f"largest batch at context {plan.request.context:,}: {_largest(plan.largest_batch)}"


def _largest(found: int | None) -> str:
    return f"{found:,}" if found else "none fits"


def _phase(phase: Phase) -> tuple[str, str, str]:
    work, floor = phase.work, phase.floor
    traffic = f"{work.total_operations / 1e9:,.4g} GFLOP, {human_bytes(round(work.memory_bytes))}"
    if floor.seconds is None:
        return traffic, "unknown: --bandwidth GB/S says how fast memory is", ""
    rate = f"{phase.tokens_per_second:,.4g} tokens/s" if phase.tokens_per_second else ""
    others = [f"{name} {_time(value)}" for name, value in floor.by_bound.items()]
    return traffic, f"{_time(floor.seconds)}, {rate}, bound by {floor.bound}", f"({', '.join(others)})"


def _time(seconds: float | None) -> str:
    """0.0123 -> "12.3 ms"."""
    if seconds is None:
        return "unknown"
    for limit, unit, factor in ((1e-3, "us", 1e6), (1.0, "ms", 1e3), (600.0, "s", 1.0)):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 60:,.3g} min"


def _notes(plan: Plan) -> Iterator[str]:
    config, machine = plan.subject.config, plan.machine
    if machine.is_gpu and plan.request.tp > 1 and config.vision is not None:
        yield "code for several devices takes text only: this is what pictures would need there"
    if config.moe is not None:
        yield "experts are counted as if every choice were equally likely"
    if config.vision is not None:
        yield "the work of the image encoder is not in the times"
    if machine.kind == "cpu" and plan.prefill.floor.by_bound["compute"] is None:
        yield "the machine's arithmetic rate is unknown, so a prefill may take far longer: --peak TFLOPS gives it"
    if machine.name == "cpu" and machine.bandwidth is not None:
        yield f"memory bandwidth {machine.bandwidth / 1e9:.3g} GB/s"


def print_table(plans: Sequence[Plan]) -> None:
    """The what-if table: drawn on a terminal that is wide enough, where rich is installed; plain columns elsewhere."""
    rows = [_row(plan) for plan in plans]
    drawn = sum(max(len(cell) for cell in column) + _FRAME for column in zip(_TITLES, *rows, strict=True))
    if sys.stdout.isatty() and drawn < shutil.get_terminal_size().columns:
        try:
            _print_rich(plans, rows)
            return
        except ImportError:
            pass
    for line in _columns([_TITLES, *rows]):
        click.echo(line)


def _row(plan: Plan) -> tuple[str, ...]:
    request, memory = plan.request, plan.memory
    free = "unknown" if memory.free is None else human_bytes(memory.free) if memory.free >= 0 else "does not fit"
    rate, prefill = plan.decode.tokens_per_second, plan.prefill.floor
    sizes = [human_bytes(count) for count in (memory.weights, memory.kv, memory.total)]
    decode = "unknown" if rate is None else f"{rate:,.4g} ({plan.decode.floor.bound})"
    first = "unknown" if prefill.seconds is None else f"{_time(prefill.seconds)} ({prefill.bound})"
    asked = (str(request.quantization), str(request.tp), f"{request.context:,}", str(request.batch))
    return (*asked, *sizes, free, decode, first)


def _print_rich(plans: Sequence[Plan], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    plan = plans[0]
    table = Table(title=f"{plan.subject.name} on {plan.machine.name}, {plan.request.kv_dtype} cache, by device")
    for index, title in enumerate(_TITLES):
        table.add_column(title, justify="left" if index == 0 else "right")
    for plan, row in zip(plans, rows, strict=True):
        table.add_row(*row, style="red" if (plan.memory.free or 0) < 0 else "")
    Console().print(table)
