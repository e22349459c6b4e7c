"""`llamac export`: a model in the form of another system."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

from .options import json_option, print_json
from .progress import progress_bars, until_terminated
from .sizes import ByteSize

if TYPE_CHECKING:
    from llamac.export.entry import ExportResult


class WithForms(click.Command):
    """A verb whose help lists the forms, which only the compiler knows."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does it, with the list in its place."""
        self.help = inspect.cleandoc(self.help or "").replace("{forms}", _forms())
        super().format_help_text(ctx, formatter)


@click.command("export", cls=WithForms)
@click.argument("source")
@click.option("--to", "form", required=True, metavar="FORM", help="See the list above.")
@click.option(
    "-o", "--output", required=True, metavar="PATH", help="The folder to write; for gguf also one .gguf file."
)
@click.option("--quantize", metavar="SCHEME", help="How weights are stored. [default: the first of the form's list]")
@click.option("--option", "options", multiple=True, metavar="K=V", help="An option of the form; may be repeated.")
@click.option("--check", is_flag=True, help="Read back what was written: every tensor, the logits, the consumer.")
@click.option("--overwrite", is_flag=True, help="Replace a file, or a folder that an export made.")
@click.option("--random-weights", type=int, metavar="SEED", help="Random weights, for a preset or a bare config.json.")
@click.option("--memory", type=ByteSize(), default="1G", show_default=True, help="Bound on memory while writing.")
@click.option("--strict", is_flag=True, help="Refuse to leave anything out: such ledger entries become errors.")
@json_option
def command(source: str, form: str, output: str, options: tuple[str, ...], as_json: bool, **others: Any) -> None:
    """Write SOURCE in the form of another system.

    SOURCE is what `llamac compile` takes. The forms, and what `--quantize` may be with each:

    \b
    {forms}

    \b
      llamac export smollm2-135m --to gguf --quantize q8_0 -o smollm2.gguf
      llamac export ./Llama-3.2-1B --to onnx-genai --quantize int4 --check -o llama-onnx
      llamac export ./Llama-3.1-8B --to compressed-tensors --quantize fp8 -o llama-fp8

    Nothing is left behind by an export that fails, or whose --check does.
    """
    from llamac.export.entry import export

    with until_terminated(), progress_bars() as progress:
        result = export(source, to=form, output=output, options=_parsed(options), progress=progress, **others)
    if as_json:
        print_json(_summary(result))
    else:
        _print_text(result)


def _parsed(options: tuple[str, ...]) -> dict[str, str]:
    """`("name=value", ...)` as a mapping (LLC0924 for anything else)."""
    found = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise LlamacError("LLC0924", "--option", f"'{text}' is no NAME=VALUE", "write --option name=value")
        found[name] = value
    return found


def _forms() -> str:
    """The table of forms for the help text; in a plain install, what to install."""
    try:
        from llamac.export.formats import FORMATS
    except ImportError:
        return '(pip install "llamac[compile]", then this lists them)'

    lines = []
    for form in FORMATS.values():
        lines += [f"{form.name}: {form.summary}", f"    {', '.join(form.schemes)}"]
        lines += [f"    --option {name}=...: {text}" for name, text in form.options.items()]
    return "\n".join(lines)


def _summary(result: ExportResult) -> dict[str, Any]:
    checks = result.checks
    return {
        "path": str(result.path),
        "format": result.format,
        "quantization": result.quantization,
        "bytes": result.bytes,
        "ledger": [entry.to_json() for entry in result.ledger],
        "checks": None if checks is None else [vars(check) for check in checks],
    }


def _print_text(result: ExportResult) -> None:
    click.echo(f"{result.path}: {result.format}, {result.quantization} weights, {result.bytes / 1e6:.1f} MB")
    for check in result.checks or ():
        bound = f" (allowed {check.bound})" if check.bound else ""
        click.echo(f"  {check.name}: {check.measured}{bound}")
    for entry in result.ledger:
        click.echo(f"  {entry.kind} {entry.where}: {entry.what} ({entry.reason})", err=True)
