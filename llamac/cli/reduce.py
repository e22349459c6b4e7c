"""`llamac reduce`: make a failing pipeline small enough to read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

from .options import json_option, print_json

if TYPE_CHECKING:
    from llamac.reproduction import Recipe


@click.command("reduce")
@click.argument("source", required=False)
@click.option("--replay", type=click.Path(path_type=Path), metavar="REPRO.json", help="Show the failure of a repro.")
@click.option("--random-weights", type=int, metavar="SEED", help="For a preset. The weights are not read.")
@click.option("--quantize", default="keep", show_default=True, metavar="SCHEME", help="As for llamac compile.")
@click.option(
    "--kv", metavar="DTYPE", help="Key-value cache: f32, f16, bf16, int8 or fp8. [default: as llamac compile chooses]"
)
@click.option("--passes", default="", metavar="TEXT", help="This pipeline instead of the CPU one.")
@click.option("--passes-from", multiple=True, metavar="MODULE", help="Outside passes, as for llamac compile.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="repro", show_default=True, metavar="DIR")
@click.option("--seconds", type=float, default=90.0, show_default=True, metavar="S", help="Stop shrinking after this.")
@json_option
def command(source: str | None, replay: Path | None, output: Path, as_json: bool, **options: Any) -> int:
    """Reduce a crash or a mismatch of the passes on SOURCE to a folder with one small repro.

    \b
      llamac reduce smollm2-135m --passes-from mypasses.fuse -o repro
      llamac reduce tiny --random-weights 1 --quantize int4
      llamac reduce --replay repro/repro.json           # shows the failure; exit code 1 while it is there

    First the passes run on the whole model, then validation on the shrunken one. The failing pass is kept, and model,
    sequences, pipeline and IR are made smaller as long as it fails in the same way, on synthetic weights. The folder
    holds repro.ir (what goes into the pass), repro.json (all that is needed to replay) and the command is printed.
    """
    if (source is None) == (replay is None):
        raise LlamacError("LLC0101", "llamac reduce", "needs either SOURCE or --replay", "see llamac reduce --help")
    if replay is not None:
        return _replay(replay, as_json)
    assert source is not None
    from llamac.reproduction import reduce_failure, write_repro

    repro = reduce_failure(_recipe(source, options), options["seconds"])
    try:
        written = [str(path) for path in write_repro(repro, output)]
    except OSError as error:
        raise LlamacError("LLC0101", "--output", f"cannot write {output}: {error.strerror}", "choose another") from None
    if as_json:
        failure = {"pass": repro.failure.item, "kind": repro.failure.kind, "message": repro.failure.message}
        config = {name: getattr(repro.recipe.config, name) for name in ("layers", "hidden_size", "heads", "vocab_size")}
        print_json({"failure": failure, "config": config, "files": written, "command": repro.command(output)})
        return 0
    c = repro.recipe.config
    click.echo(f"{repro.failure.item}: {repro.failure.message}")
    click.echo(f"on {c.layers} layers of {c.hidden_size}, {c.heads} heads, {len(repro.ir.splitlines())} lines of IR")
    click.echo(f"written: {', '.join(written)}")
    click.echo(repro.command(output))
    return 0


def _recipe(source: str, options: dict[str, Any]) -> Recipe:
    from llamac.models.sources import open_source
    from llamac.passes.pipelines import parse_quantization
    from llamac.reproduction import default_kv_dtype, recipe_of

    quantization = parse_quantization(options["quantize"])
    checkpoint = open_source(source, random_weights=options["random_weights"])
    kv_dtype = options["kv"] or default_kv_dtype(quantization)
    return recipe_of(checkpoint, quantization, kv_dtype, options["passes_from"], options["passes"])


def _replay(path: Path, as_json: bool) -> int:
    from llamac.reproduction import replay

    failure = replay(path)
    if as_json:
        print_json({"failure": None if failure is None else {"pass": failure.item, "message": failure.message}})
    elif failure is None:
        click.echo("the failure is gone")
    else:
        click.echo(f"{failure.item}: {failure.message}")
    return 0 if failure is None else 1
