"""`llamac passes`: the compiler's passes and its pipeline."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from .options import json_option, print_json

if TYPE_CHECKING:
    from llamac.passes.pipelines import LayerCounts
    from llamac.transform.pipeline import Step


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


def pipeline_of(target: str, quantize: str, counts: LayerCounts | None) -> tuple[str, list[Step]]:
    """The name of a target's row, and the steps that `llamac compile` runs for it: those of its first rank.

    counts: the layers of the model; None for one plain layer.
    """
    from llamac.chosen_targets import resolve_targets
    from llamac.passes.pipelines import Share, parse_quantization, plain_layers, target_pipeline
    from llamac.reproduction import default_kv_dtype

    (row,) = resolve_targets([target])
    q = parse_quantization(quantize)
    model, cache = counts or plain_layers(1), default_kv_dtype(q)
    return row.name, target_pipeline(row.kind, model, q, cache, 512, share=Share(row.ranks))


def _print_pipeline(target: str, quantize: str, as_json: bool) -> None:
    from llamac.transform.pipeline import pipeline_text

    name, steps = pipeline_of(target, quantize, None)
    text = pipeline_text(steps)
    if as_json:
        print_json({"target": name, "pipeline": text})
    else:
        click.echo(text)
