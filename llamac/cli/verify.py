"""`llamac verify`: every byte against its hash, then the golden vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

from .options import byte_progress, json_option, print_json

if TYPE_CHECKING:
    from llamac.artifact.integrity import Finding
    from llamac.runtime.golden import Verdict
    from llamac.second_run import Agreement


@click.command("verify")
@click.argument("artifact")
@click.option("--threads", type=int, metavar="N", help="CPU threads. [default: one per usable core]")
@click.option("--target", metavar="NAME", help="Which code in the file to replay with. [default: the best that fits]")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Where to replay: cpu, cuda, hip.")
@click.option("--hashes-only", is_flag=True, help="Run nothing from the file: compare bytes and stop.")
@click.option("--against", type=click.Choice(["tvm"]), help="Also run the stored model through TVM, and compare.")
@json_option
def command(
    artifact: str,
    threads: int | None,
    target: str | None,
    device: str,
    hashes_only: bool,
    against: str | None,
    as_json: bool,
) -> int:
    """Check that ARTIFACT is, byte for byte, what llamac wrote, and that it computes what it did there.

    \b
      llamac verify m.llamac
      llamac verify m.llamac --hashes-only        # an artifact for another machine, or one you do not trust yet
      llamac verify m.llamac --against tvm        # a second implementation, op by op and end to end

    First every byte is compared with its hash (nothing is run). Only then the golden vectors are replayed: the greedy
    ids and the largest logits after each recorded prompt, within a stated tolerance. Where the compiler is installed
    (llamac[compile]) the pass certificate is replayed too: every pass before and after, on the shrunken model. Exit
    code 0: all is well; 2: damaged bytes, or no code for this machine; 1: golden vectors or certificate disagree.

    --against tvm compiles the IR that lies in the file with TVM (llamac[tvm]), runs the golden prompts through it on
    the file's own weights, and compares every op, each on the values that the file's code had, and the logits. The
    first op that disagrees is named; exit code 1.
    """
    if hashes_only and against:
        reason = "--hashes-only runs nothing from the file, and --against runs it"
        raise LlamacError("LLC0101", "--against", reason, "choose one")
    from llamac.artifact.verify import verify_file

    with byte_progress("hashing") as progress:
        findings = verify_file(artifact, progress)
    verdicts: list[Verdict] = []
    if not findings and not hashes_only:
        verdicts = _replay(artifact, threads, target, device)
    certificate = "not replayed" if findings or hashes_only else _replay_certificate(artifact)
    second = _run_second(artifact) if against and not findings and not hashes_only else None
    if as_json:
        _print_json(findings, verdicts, hashes_only, certificate, second)
    else:
        _print_text(artifact, findings, verdicts, hashes_only)
        if not findings:
            click.echo(f"pass certificate: {certificate}")
        for number, row in enumerate(second or ()):
            click.echo("\n".join(_against_tvm(number, row)))
    return _exit_code(artifact, findings, verdicts, second or [])


def _replay(artifact: str, threads: int | None, target: str | None, device: str) -> list[Verdict]:
    from llamac.runtime.golden import replay
    from llamac.runtime.loader import load

    with load(artifact, threads=threads, target=target, device=device) as model:
        return replay(model)


def _run_second(artifact: str) -> list[Agreement]:
    """Every prompt by TVM; progress on stderr."""
    from llamac.second_run import run_against_tvm

    with byte_progress("running prompts through TVM") as progress:
        return run_against_tvm(artifact, progress)


def _against_tvm(number: int, row: Agreement) -> Iterator[str]:
    """What came of one prompt; of a disagreement its first place."""
    ops, worst = row.ops, max(row.ops.rows, key=lambda found: found.relative)
    word = "ok" if row.agrees else "FAILED"
    bound = "reported only: activations are rounded" if row.bound is None else f"bound {row.bound:g}"
    logits = f"logits within {row.relative:.2g} of the largest ({bound})"
    each = f"{len(ops.rows)} ops within {worst.relative:.2g} (bound {ops.tolerance:g})"
    yield f"against TVM, prompt {number}, {len(row.ids)} tokens: {word}, {each}, {logits}"
    if ops.first is not None:
        first = ops.rows[ops.first]
        yield f"  they part ways in {first.where}, {first.what}: relative difference {first.relative:.2g}"
        yield f"  largest at token {first.row}, column {first.column}: {first.a:.6g} against {first.b:.6g} by TVM"
    if not ops.faithful:
        yield "  the code in the file does not do what its IR says"


def _replay_certificate(artifact: str) -> str:
    """Run the recorded validation again; in words what came of it (LLC0507 when a pass is wrong)."""
    from llamac.artifact.read import Artifact

    with Artifact.open(artifact) as opened:
        recorded = opened.manifest.get("certificate")
    if recorded is None:
        return "absent: the file was compiled with --no-validate"
    try:
        from llamac.certificate import replay
    except ImportError:
        return 'not replayed: the compiler is not installed (pip install "llamac[compile]")'
    try:
        verdicts = replay(recorded)
    except LlamacError as error:
        if error.code != "LLC0509":
            raise
        return f"not replayed: its pipeline needs outside passes. {error.message()}"
    return f"{len(verdicts)} passes and checks hold on the shrunken model, seed {recorded['seed']}"


def _print_json(
    findings: list[Finding],
    verdicts: list[Verdict],
    hashes_only: bool,
    certificate: str,
    second: list[Agreement] | None,
) -> None:
    agrees = all(row.agrees for row in second or ())
    result: dict[str, Any] = {
        "passed": not findings and all(verdict.passed for verdict in verdicts) and agrees,
        "findings": [finding.to_json() for finding in findings],
        "golden": None if hashes_only or findings else [verdict.to_json() for verdict in verdicts],
        "certificate": certificate,
    }
    if second is not None:
        result["against_tvm"] = [row.to_json() for row in second]
    print_json(result)


def _print_text(artifact: str, findings: list[Finding], verdicts: list[Verdict], hashes_only: bool) -> None:
    if findings:
        return  # they go to stderr, with their codes
    click.echo("every byte matches its hash")
    if not hashes_only and not verdicts:
        click.echo("no golden vectors in the file: nothing was run")
    for row in verdicts:
        parted = "greedy ids agree" if row.parted_at is None else f"greedy ids part at {row.parted_at}"
        word = "ok" if row.passed else "FAILED"
        largest = f"logits within {row.logit_difference:.2g} (tolerance {row.tolerance:g})"
        click.echo(f"golden vector {row.vector}: {word}, {largest}, {parted}")


def _exit_code(artifact: str, findings: list[Finding], verdicts: list[Verdict], second: list[Agreement]) -> int:
    for finding in findings:
        click.echo(finding.to_error(artifact).message(), err=True)
    failed = [verdict.vector for verdict in verdicts if not verdict.passed]
    if failed:
        reason = f"{len(failed)} of {len(verdicts)} golden vectors disagree, the first is number {failed[0]}"
        hint = "this machine's arithmetic or the compiled code is at fault: please report it"
        click.echo(LlamacError("LLC0817", artifact, reason, hint).message(), err=True)
    parted = [number for number, row in enumerate(second) if not row.agrees]
    if parted:
        reason = f"TVM computes otherwise on {len(parted)} of {len(second)} prompts, the first is number {parted[0]}"
        hint = "one of the two is wrong: please report it, with the lines above"
        click.echo(LlamacError("LLC0817", artifact, reason, hint).message(), err=True)
    return 2 if findings else 1 if failed or parted else 0
