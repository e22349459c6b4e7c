"""`llamac explore`: a page that shows what every pass did."""

from __future__ import annotations

from typing import Any

import click

from .options import json_option, print_json


@click.command("explore")
@click.argument("source")
@click.option("-o", "--output", default="report.html", show_default=True, metavar="FILE", help="The page to write.")
@click.option("--target", default="cpu", show_default=True, metavar="T", help="Whose pipeline to run.")
@click.option("--quantize", default="keep", show_default=True, metavar="SCHEME", help="As for `llamac compile`.")
@click.option("--kv", metavar="DTYPE", help="As for `llamac compile`.")
@click.option("--layers", type=int, default=2, show_default=True, metavar="N", help="Show the first N layers.")
@click.option("--random-weights", type=int, metavar="SEED", help="For a preset or a bare config.json; nothing is read.")
@json_option
def command(source: str, output: str, as_json: bool, **options: Any) -> None:
    """Run the compiler's passes on SOURCE and write one page that shows what each did.

    \b
      llamac explore llama-3.2-1b --random-weights 1 --quantize int4 -o report.html
      llamac explore smollm2-135m --layers 4

    The page has the pipeline, the IR before and after every pass with the changed lines marked, the graph of one layer,
    op and byte counts over time, and why passes left near matches alone. It works without a network, in any browser.
    Shapes are the model's own; --layers keeps the page small.
    """
    from llamac.explore.page import explore

    size = explore(source, output=output, **options)
    if as_json:
        print_json({"path": output, "bytes": size})
    else:
        click.echo(f"{output}: {size / 1e6:.2f} MB")
