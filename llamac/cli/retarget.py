"""`llamac retarget`: code for more machines in an artifact, without its checkpoint."""

from __future__ import annotations

import time

import click

from .options import json_option, print_json
from .progress import progress_bars, until_terminated
from .sizes import ByteSize


@click.command("retarget")
@click.argument("artifact")
@click.option("--target", default="", metavar="T[,T2]", help="Machines to add code for, or to generate it anew.")
@click.option("--remove", default="", metavar="T[,T2]", help="Targets to take out.")
@click.option("-o", "--output", metavar="OUT.llamac", help="The file to write. [default: ARTIFACT itself]")
@click.option("--memory", type=ByteSize(), default="1G", show_default=True, help="Bound on memory while packing.")
@json_option
def command(artifact: str, target: str, remove: str, output: str | None, memory: int, as_json: bool) -> None:
    """Add code to ARTIFACT, or replace it, from the IR that the file holds.

    \b
      llamac retarget llama.llamac --target sm_86,h200             # GPUs by name, or by instruction set
      llamac retarget llama.llamac --target x86-64-v3 -o any.llamac
      llamac retarget llama.llamac --remove h200

    Weights of a layout that the file has are copied as they are. Those of another layout are packed from them where
    the numbers are the same, which the ledger says; where they would not be, LLC0615 says so. Nothing is half written.
    """
    from llamac.retarget import retarget

    started = time.perf_counter()
    named, gone = ([name.strip() for name in text.split(",") if name.strip()] for text in (target, remove))
    with until_terminated(), progress_bars() as progress:
        result = retarget(artifact, named, remove=gone, output=output, memory=memory, progress=progress)
    seconds = time.perf_counter() - started
    targets = [row["name"] for row in result.manifest["targets"]]
    if as_json:
        path = str(result.path)
        print_json({"path": path, "bytes": result.bytes, "seconds": round(seconds, 3), "targets": targets})
        return
    size = f"{result.bytes / 1e6:.1f} MB in {seconds:.1f} s"
    click.echo(f"{result.path}: code for {', '.join(targets)}; {size}")
