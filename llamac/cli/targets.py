"""`llamac targets`: the machines that llamac compiles for."""

from __future__ import annotations

import dataclasses

import click

from llamac.host import cpu_features, machine_architecture
from llamac.target import TARGETS

from .options import json_option, print_json


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """List the machines that llamac compiles for; * marks those whose code runs on this one.

    \b
      llamac targets
      llamac compile smollm2-135m --target x86-64-v3,aarch64 -o smollm2.llamac

    `--target cpu` means the most demanding one that this machine satisfies.
    """
    architecture = machine_architecture()
    features = cpu_features(architecture)
    rows = []
    for target in TARGETS.values():
        missing = [f for f in target.requires if f not in features]
        runs = target.triple.startswith(architecture) and not missing
        rows.append({**dataclasses.asdict(target), "requires": list(target.requires), "runs_here": runs})
    if as_json:
        print_json({"targets": rows})
        return
    width = max(len(name) for name in TARGETS)
    for row in rows:
        click.echo(f"{'*' if row['runs_here'] else ' '} {row['name']:<{width}}  {row['summary']}  ({row['triple']})")
