"""`llamac plan`: what a model needs on a machine, and the least time it can take there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

from .options import json_option, print_json
from .sizes import ByteSize

if TYPE_CHECKING:
    from llamac.planning.grid import Axes
    from llamac.planning.machine import Machine
    from llamac.planning.plan import Plan, Subject
    from llamac.planning.request import Request

_LISTED = ("quantize", "context", "batch", "tp")
"""Options that take several values, separated by commas, with --what-if."""

_MEASURED_BYTES = 128 << 20


@click.command("plan")
@click.argument("source")
@click.option("--target", default="cpu", show_default=True, metavar="T", help="A target or a GPU of `llamac targets`.")
@click.option("--quantize", default="keep", show_default=True, metavar="SCHEME", help="As in `llamac compile`.")
@click.option("--kv", metavar="DTYPE", help="f32, f16, bf16, fp8 or int8. [default: f16; f32 with --quantize f32]")
@click.option("--context", metavar="N", help="Tokens of each sequence. [default: the model's own]")
@click.option("--batch", default="1", show_default=True, metavar="B", help="Sequences that run at once.")
@click.option("--tp", default="1", show_default=True, metavar="K", help="GPUs that share the model (tensor parallel).")
@click.option("--prompt-tokens", type=int, metavar="P", help="Tokens of the prefill. [default: the whole context]")
@click.option("--images", type=int, metavar="I", help="Llama 3.2 Vision: images of each sequence. [default: 1]")
@click.option("--max-step-tokens", type=int, default=512, show_default=True, metavar="N", help="Most tokens in a step.")
@click.option("--memory", type=ByteSize(), help="Memory of the machine, where it is not known or another.")
@click.option("--bandwidth", type=float, metavar="GB/S", help="Memory bandwidth. [default: of T; measured for cpu]")
@click.option("--peak", type=float, metavar="TFLOPS", help="Arithmetic rate, where it is not known or another.")
@click.option("--what-if", is_flag=True, help="A table over lists: --quantize, --tp, --context, --batch A,B,C.")
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE.svg", help="Draw memory and speed curves.")
@json_option
def command(source: str, target: str, what_if: bool, plot: str | None, as_json: bool, **options: Any) -> None:
    """Say what SOURCE needs on a machine, whether it fits, and how fast it can be at most.

    SOURCE is a preset, an official name such as meta-llama/Llama-3.1-8B-Instruct, a folder with a config.json, or a
    checkpoint. Only its config and the headers of its files are read; nothing is compiled.

    \b
      llamac plan llama-3.1-8b --quantize int4 --context 8192
      llamac plan llama-3.1-405b --target h100 --tp 8 --quantize fp8 --context 32768
      llamac plan meta-llama/Llama-4-Scout-17B-16E --target h200 --what-if --quantize int4,fp8 --tp 1,2
      llamac plan llama-3.1-70b --target mi300x --json | jq .memory

    Sizes are those of `llamac compile` and of the runtime, to the byte, except where the plan calls one an estimate.
    Times are floors: every byte at full bandwidth, every operation at peak rate, all at once (an efficiency of 1).
    """
    from llamac.planning.plan import make_plan, plan_to_json
    from llamac.planning.source import open_subject

    subject = open_subject(source)
    base, _, count = target.rpartition(":")
    if base and count.isdecimal():  # h100:8, as `llamac compile` takes it
        if options["tp"] != "1":
            raise LlamacError("LLC0109", "--tp", f"{target} says the number of GPUs already", "leave one of them out")
        target, options["tp"] = base, count
    machine = _machine(target, options)
    if what_if:
        _what_if(subject, machine, options, as_json)
        if plot is not None:
            _draw(plot, make_plan(subject, _request(subject, options, first=True), machine))
        return
    plan = make_plan(subject, _request(subject, options), machine)
    if plot is not None:
        _draw(plot, plan)
    if as_json:
        print_json(plan_to_json(plan))
        return
    from .plan_text import plan_lines

    for line in plan_lines(plan):
        click.echo(line)


def _request(subject: Subject, options: dict[str, Any], first: bool = False) -> Request:
    """The request of the options; of lists the first value, or LLC0109."""
    from llamac.passes.pipelines import parse_quantization
    from llamac.planning.request import Request
    from llamac.reproduction import default_kv_dtype

    values = {}
    for name in _LISTED:
        found = _values(name, options[name])
        if len(found) > 1 and not first:
            raise LlamacError("LLC0109", f"--{name}", "several values make a table", "add --what-if")
        values[name] = found[0] if found else ""
    quantization = parse_quantization(values["quantize"])
    context = _integer("context", values["context"]) if values["context"] else subject.config.context_length
    images = options["images"]
    return Request(
        quantization=quantization,
        kv_dtype=options["kv"] or default_kv_dtype(quantization),
        context=context,
        batch=_integer("batch", values["batch"]),
        tp=_integer("tp", values["tp"]),
        images=images if images is not None else int(bool(subject.config.cross_layers)),
        max_step_tokens=options["max_step_tokens"],
        prompt_tokens=context if options["prompt_tokens"] is None else options["prompt_tokens"],
    )


def _values(name: str, text: str | None) -> list[str]:
    if text is None:
        return []
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise LlamacError("LLC0109", f"--{name}", f"{text!r} holds an empty value", "separate values by one comma")
    return found


def _integer(name: str, text: str) -> int:
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 18:
        raise LlamacError("LLC0109", f"--{name}", f"{text[:40]!r} is no whole number", "such as 4096")
    return int(text)


def _machine(target: str, options: dict[str, Any]) -> Machine:
    """The machine of the target, with what the options say of it, and this one's bandwidth measured."""
    from llamac.planning.machine import find_machine

    for name in ("bandwidth", "peak"):
        if options[name] is not None and not 0 < options[name] < 1e9:
            raise LlamacError("LLC0109", f"--{name}", f"{options[name]} is no rate", "give a positive number")
    machine = find_machine(target)
    if options["memory"] is not None:
        machine = replace(machine, memory_bytes=options["memory"])
    if options["bandwidth"] is not None:
        machine = replace(machine, bandwidth=options["bandwidth"] * 1e9)
    elif machine.name == "cpu":
        machine = replace(machine, bandwidth=_measured_bandwidth())
    if options["peak"] is not None:
        machine = replace(machine, peaks=dict.fromkeys(("f32", "f16", "bf16", "fp8", "int8"), options["peak"] * 1e12))
    return machine


def _measured_bandwidth() -> float:
    """The best of three reads: a floor of times needs the rate of an undisturbed machine."""
    from llamac.runtime.host_cpu import usable_threads
    from llamac.runtime.read_bandwidth import ReadBandwidth

    reading = ReadBandwidth(usable_threads(), _MEASURED_BYTES)
    return max(reading.measure() for _ in range(3))


def _axes(subject: Subject, machine: Machine, options: dict[str, Any], request: Request) -> Axes:
    """The lists of the command line; the usual values for an option that is left at its default."""
    from llamac.passes.pipelines import parse_quantization
    from llamac.planning.grid import default_axes

    axes = default_axes(subject.config, machine, request)
    words = {name: _values(name, options[name]) for name in _LISTED if _is_given(name)}
    numbers = {name: tuple(dict.fromkeys(_integer(name, w) for w in words.get(name, ()))) for name in _LISTED[1:]}
    return replace(
        axes,
        quantizations=tuple(dict.fromkeys(map(parse_quantization, words.get("quantize", ())))) or axes.quantizations,
        contexts=numbers["context"] or axes.contexts,
        batches=numbers["batch"] or axes.batches,
        tps=numbers["tp"] or axes.tps,
    )


def _is_given(name: str) -> bool:
    """Whether an option stands on the command line, be it with its default value."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _what_if(subject: Subject, machine: Machine, options: dict[str, Any], as_json: bool) -> None:
    from llamac.planning.grid import cell_to_json, plan_grid

    request = _request(subject, options, first=True)
    plans = list(plan_grid(subject, _axes(subject, machine, options, request), request, machine))
    if as_json:
        rows = [cell_to_json(plan) for plan in plans]
        print_json({"model": subject.name, "target": machine.name, "kv_dtype": request.kv_dtype, "plans": rows})
        return
    from .plan_text import print_table

    print_table(plans)


def _draw(path: str, plan: Plan) -> None:
    from llamac.planning.chart import chart

    file = Path(path)
    is_new, drawn = not file.exists(), chart(plan)
    try:
        file.write_text(drawn, encoding="utf-8")
    except OSError as error:
        if is_new:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise LlamacError("LLC0109", "--plot", f"cannot write {path}: {error.strerror}", "choose another") from None
