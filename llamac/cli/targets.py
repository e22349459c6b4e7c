"""`llamac targets`: the machines that llamac compiles for."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from llamac.host import cpu_features, machine_architecture
from llamac.target import GPUS, INSTRUCTION_SETS, ONNX_TARGETS, TARGETS, TVM_TARGETS

from .options import json_option, print_json


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """List the machines that llamac compiles for; * marks those whose code runs on this one.

    \b
      llamac targets
      llamac compile smollm2-135m --target x86-64-v3,aarch64 -o smollm2.llamac
      llamac plan llama-3.1-70b --target h100 --tp 4

    `--target cpu` means the most demanding one that this machine satisfies. Code for GPUs is compiled on any machine,
    with or without one: for a GPU by name, which `llamac plan` counts with, or for all of an instruction set.
    """
    architecture = machine_architecture()
    features = cpu_features(architecture)
    rows = []
    for target in TARGETS.values():
        missing = [f for f in target.requires if f not in features]
        runs = target.triple.startswith(architecture) and not missing
        row = {**dataclasses.asdict(target), "requires": list(target.requires), "runs_here": runs}
        rows.append({**row, "possible": ["compile", "plan"]})
    others = [
        {**dataclasses.asdict(t), "requires": list(t.requires)} for t in (*TVM_TARGETS.values(), *ONNX_TARGETS.values())
    ]
    gpus = [{**dataclasses.asdict(gpu), "possible": ["compile", "plan"]} for gpu in GPUS.values()]
    sets = [{**dataclasses.asdict(each), "possible": ["compile"]} for each in INSTRUCTION_SETS.values()]
    here, reasons = _gpus_here()
    if as_json:
        listed = {"targets": rows, "gpus": gpus, "instruction_sets": sets, "others": others}
        print_json({**listed, "gpus_here": here, "no_gpu": reasons})
        return
    width = max(len(name) for name in (*TARGETS, *GPUS, *INSTRUCTION_SETS, *TVM_TARGETS, *ONNX_TARGETS))
    for row in rows:
        click.echo(f"{'*' if row['runs_here'] else ' '} {row['name']:<{width}}  {row['summary']}  ({row['triple']})")
    for gpu in GPUS.values():
        click.echo(f"  {gpu.name:<{width}}  {gpu.summary}  ({gpu.architecture})")
    for each in INSTRUCTION_SETS.values():
        click.echo(f"  {each.name:<{width}}  {each.summary}")
    for row in others:
        click.echo(f"  {row['name']:<{width}}  {row['summary']}  ({row['triple']})")
    for row in here:
        click.echo(f"this machine: {row['label']}, {row['memory_bytes'] / 1e9:.1f} GB, --device {row['device']}")
    if not here:
        click.echo(f"this machine: no GPU ({'; '.join(row['reason'] for row in reasons)})")


def _gpus_here() -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The GPUs of this machine as rows, and for each kind that it has none of the reason."""
    from llamac.runtime.gpu.found import gpus_here

    gpus, reasons = gpus_here()
    rows = [{**dataclasses.asdict(g), "label": g.label, "device": f"{g.kind}:{g.index}"} for g in gpus]
    return rows, [reason.to_json() for reason in reasons]
