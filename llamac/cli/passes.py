"""`llamac passes`: the compiler's passes and its pipeline."""

from __future__ import annotations

import dataclasses

import click

from .options import json_option, print_json


@click.command("passes")
@click.option("--pipeline", metavar="TARGET", help="Print the pipeline for a target, in the order it runs.")
@click.option("--quantize", default="keep", show_default=True, metavar="SCHEME", help="For --pipeline.")
@json_option
def command(pipeline: str | None, quantize: str, as_json: bool) -> None:
    """List the compiler's passes with their options, or print the pipeline that a target runs.

    \b
      llamac passes
      llamac passes --pipeline cpu --quantize int4:g64
    """
    if pipeline is not None:
        _print_pipeline(pipeline, quantize, as_json)
        return
    from llamac.transform.registry import BUILT_IN, outside_passes, pass_class

    rows = []
    for name in [*BUILT_IN, *sorted(outside_passes())]:
        found = pass_class(name)
        options = {f.name: f.default for f in dataclasses.fields(found)}
        summary = (found.__doc__ or "").splitlines()[0]
        rows.append({"name": name, "summary": summary, "options": options, "levels": list(found.requires)})
    if as_json:
        print_json({"passes": rows})
        return
    for row in rows:
        inside = ", ".join(f"{k}={v}" for k, v in row["options"].items())  # type: ignore[attr-defined]
        click.echo(f"{row['name']:<18} {row['summary']}{f'  {{{inside}}}' if inside else ''}")


def _print_pipeline(target: str, quantize: str, as_json: bool) -> None:
    from llamac.driver import resolve_targets
    from llamac.passes.pipelines import parse_quantization, plain_layers, target_pipeline
    from llamac.transform.pipeline import pipeline_text

    (row,) = resolve_targets([target])
    text = pipeline_text(target_pipeline(row.kind, plain_layers(1), parse_quantization(quantize), "f16", 512))
    if as_json:
        print_json({"target": row.name, "pipeline": text})
    else:
        click.echo(text)
