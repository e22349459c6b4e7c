"""`llamac opt`: run passes over IR text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

if TYPE_CHECKING:
    from llamac.passes.pipelines import LayerCounts
    from llamac.transform.opt import OptRun
    from llamac.transform.pipeline import Step


@click.command("opt")
@click.argument("file", required=False)
@click.option(
    "--from", "source", metavar="SRC", help="Capture this model (as `llamac compile` takes it) instead of FILE."
)
@click.option(
    "--from-torch", "factory", metavar="PKG.MODULE:FUNCTION", help="Capture the torch module that this makes instead."
)
@click.option("--random-weights", type=int, metavar="SEED", help="For --from with a preset. The weights are not read.")
@click.option("--passes", "text", metavar="TEXT", help='Passes in order, such as "fuse-gqa,quantize-int4{group=64}".')
@click.option("--pipeline", metavar="TARGET", help="The passes that `llamac compile --target TARGET` runs.")
@click.option("--quantize", default="keep", show_default=True, metavar="SCHEME", help="For --pipeline.")
@click.option(
    "--passes-from", multiple=True, metavar="MODULE", help="Outside passes: for --pipeline, or named in --passes."
)
@click.option("--stop-after", default="", metavar="PASS", help="Stop after this pass.")
@click.option("--print-ir-after", default="", metavar="PASS|all", help="Print the IR on stderr after this pass.")
@click.option(
    "--print-ir-dir", type=click.Path(path_type=Path), metavar="DIR", help="Write the IR after each pass here."
)
@click.option("--explain", default="", metavar="PASS", help="Say what the pass did and why it left near matches alone.")
@click.option("--verify-each/--no-verify-each", default=True, help="Verify after every pass. [default: on]")
@click.option("--time-passes", is_flag=True, help="Print the time of each pass on stderr.")
@click.option("--stats", is_flag=True, help="Print op counts before and after on stderr.")
@click.option("--split-input-file", is_flag=True, help="FILE holds several modules between `// -----` lines.")
@click.option("--verify-diagnostics", is_flag=True, help="Compare errors with `// expected-error {{...}}` comments.")
def command(file: str | None, source: str | None, **options: Any) -> None:
    """Run passes over the IR text in FILE (- is stdin), or over the captured graph of a model; IR text on stdout.

    \b
      llamac opt --from tiny --random-weights 1                          # the captured graph
      llamac opt --from tiny --random-weights 1 --passes raise-linear,fuse-rms-norm --explain fuse-rms-norm
      llamac opt layer.ir --passes "fuse-gqa,dedupe-ops" --stats
      llamac opt --from llama-3.1-405b --random-weights 1 --pipeline cpu --time-passes > 405b.ir
    """
    factory = options["factory"]
    if sum(given is not None for given in (file, source, factory)) != 1:
        reason = "needs one of FILE, --from SRC and --from-torch PKG.MODULE:FUNCTION"
        raise LlamacError("LLC0101", "llamac opt", reason, "see llamac opt --help")
    opened = _from_torch(factory) if factory is not None else _input(file, source, options["random_weights"])
    text, name, counts = opened
    steps = _steps(options, counts)
    from llamac.transform.opt import check_diagnostics, optimize_text, split_input

    def make() -> OptRun:
        return _run(steps, options)

    if options["verify_diagnostics"]:
        check_diagnostics(text, name, make)
        return
    parts = split_input(text) if options["split_input_file"] else [(text, 0)]
    click.echo("// -----\n".join(optimize_text(part, name, make) for part, _ in parts), nl=False)


def _input(file: str | None, source: str | None, seed: int | None) -> tuple[str, str, LayerCounts | None]:
    """IR text, what to call it in messages, and the layers of a captured model."""
    if source is not None:
        from llamac.ir.printer import print_module
        from llamac.layer_kinds import layer_counts
        from llamac.models.graph import build_graph
        from llamac.models.sources import open_source

        checkpoint = open_source(source, random_weights=seed)
        module = build_graph(checkpoint.config, checkpoint.tensors)
        return print_module(module), source, layer_counts(checkpoint.config)
    assert file is not None
    try:
        if file == "-":
            return sys.stdin.buffer.read().decode("utf-8"), "<stdin>", None
        return Path(file).read_text(encoding="utf-8"), file, None
    except (OSError, UnicodeDecodeError) as error:
        raise LlamacError(
            "LLC0101", file, f"cannot be read: {error}", "name a file of IR text, or - for stdin"
        ) from None


def _from_torch(factory: str) -> tuple[str, str, LayerCounts | None]:
    """The captured graph of a torch module, as `llamac compile --from torch` takes it."""
    from llamac.ir.printer import print_module
    from llamac.layer_kinds import layer_counts
    from llamac.models.capture.factory import open_torch

    captured = open_torch(factory)
    return print_module(captured.fresh()), factory, layer_counts(captured.checkpoint.config)


def _steps(options: dict[str, Any], counts: LayerCounts | None) -> list[Step]:
    from llamac.transform.outside import load_classes, load_edits
    from llamac.transform.pipeline import Step, parse_pipeline

    if options["text"] and options["pipeline"]:
        raise LlamacError("LLC0101", "llamac opt", "--passes and --pipeline exclude each other", "choose one")
    if options["pipeline"]:
        from .passes import pipeline_of

        _, steps = pipeline_of(options["pipeline"], options["quantize"], counts)
        steps = load_edits(options["passes_from"])(steps)
        # Counts are known for a captured model only; a file may hold anything.
        return steps if counts else [Step(step.run) for step in steps]
    outside = options["passes_from"]
    return parse_pipeline(options["text"], load_classes(outside)) if options["text"] else []


def _run(steps: list[Step], options: dict[str, Any]) -> OptRun:
    from llamac.transform.opt import OptOptions, OptRun

    chosen = OptOptions(
        print_after=options["print_ir_after"],
        print_dir=options["print_ir_dir"],
        explain=options["explain"],
        stop_after=options["stop_after"],
        verify_each=options["verify_each"],
        time_passes=options["time_passes"],
        stats=options["stats"],
    )
    return OptRun(steps, chosen, lambda line: click.echo(line, err=True))
