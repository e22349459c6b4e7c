"""`llamac diverge`: the first value at which two artifacts part ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from llamac.errors import LlamacError

from .options import json_option, print_json
from .texts import Text

if TYPE_CHECKING:
    from llamac.divergence import Comparison, Divergence

_AROUND = 4


@click.command("diverge")
@click.argument("a")
@click.argument("b")
@click.option("--prompt", type=Text(), help="The prompt, encoded by A's tokenizer.")
@click.option("--ids", metavar="1,2,3", help="The prompt as token ids.")
@click.option(
    "--source", metavar="SRC", help="With B = interpreter: capture this model anew instead of reading A's IR."
)
@click.option("--random-weights", type=int, metavar="SEED", help="For --source with a preset.")
@click.option("--device", metavar="T", help="Compare the logits of this target of A (and of B) instead of values.")
@click.option("--tolerance", type=float, metavar="R", help="Relative. [default: 1e-3; 2e-2 where activations are int8]")
@click.option("--all", "everything", is_flag=True, help="Print every value compared, not only those around the first.")
@json_option
def command(
    a: str,
    b: str,
    prompt: str | None,
    ids: str | None,
    source: str | None,
    random_weights: int | None,
    device: str | None,
    tolerance: float | None,
    everything: bool,
    as_json: bool,
) -> int:
    """Run one prompt through A and B and find the first value that differs by more than the tolerance.

    \b
      llamac diverge yesterday.llamac today.llamac --prompt "The capital of France is"
      llamac diverge m.llamac interpreter --ids 1,2,3                            # its own IR and weights, in numpy
      llamac diverge m.llamac interpreter --source smollm2-135m --prompt Hello   # the model captured anew
      llamac diverge m.llamac tvm --ids 1,2,3                                    # TVM on its IR and weights, op by op
      llamac diverge m.llamac onnxruntime --ids 1,2,3                            # the logits of another target in it

    A and B are artifacts of one architecture; their quantizations may differ. Each is built again from the IR it
    carries, so that every value can be seen, and runs on its own weights; the code in the file runs too, and must give
    the same logits. This runs code from the files. Exit code 0: they agree; 1: they part ways; 2: wrong input.
    """
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise LlamacError("LLC0101", "--tolerance", f"{tolerance} is no bound", "give a number from 0 on, such as 1e-3")
    try:
        from llamac.divergence import diverge
    except ImportError as error:
        hint = 'pip install "llamac[compile]"'
        raise LlamacError("LLC0600", "llamac diverge", f"needs the compiler: {error}", hint) from None

    found = diverge(
        a,
        b,
        prompt=prompt,
        ids=_parse(ids),
        source=source,
        random_weights=random_weights,
        tolerance=tolerance,
        device=device,
    )
    if as_json:
        print_json(found.to_json())
    else:
        click.echo("\n".join(_text(found, everything)))
    return 0 if found.agrees else 1


def _parse(ids: str | None) -> list[int] | None:
    if ids is None:
        return None
    try:
        return [int(word) for word in ids.replace(",", " ").split()]
    except ValueError:
        raise LlamacError("LLC0101", "--ids", f"{ids!r} is no list of token ids", "write --ids 1,2,3") from None


def _text(found: Divergence, everything: bool) -> Iterator[str]:
    yield f"A  {found.names[0]}"
    yield f"B  {found.names[1]}"
    yield f"{len(found.ids)} tokens: {' '.join(map(str, found.ids[:16]))}{' ...' if len(found.ids) > 16 else ''}"
    yield from found.notes
    if found.forced:
        yield "every op of B is run on the values of A: each row stands for its own op"
    if found.unmatched:
        yield f"{len(found.unmatched)} values have no counterpart, such as {found.unmatched[0]}"
    yield ""
    yield from _table(found, everything)
    yield ""
    yield from _verdict(found)


def _table(found: Divergence, everything: bool) -> Iterator[str]:
    first = found.first
    centre = first if first is not None else max(range(len(found.rows)), key=lambda i: found.rows[i].relative)
    shown = range(len(found.rows)) if everything else range(centre - _AROUND, centre + _AROUND + 1)
    cells: list[tuple[str, ...]] = [("", "where", "op", "shape", "max abs", "relative")]
    cells += [_cells(i, found.rows[i], i == first) for i in shown if 0 <= i < len(found.rows)]
    yield from _aligned(cells)


def _cells(index: int, row: Comparison, is_first: bool) -> tuple[str, ...]:
    mark = f"{'>' if is_first else ' '}{index}"
    shape = "x".join(map(str, row.shape))
    return mark, row.where, row.what, shape, f"{row.absolute:.2e}", f"{row.relative:.2e}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _verdict(found: Divergence) -> Iterator[str]:
    if found.first is None:
        worst = max(found.rows, key=lambda row: row.relative)
        largest = f"the largest difference is {worst.relative:.2e}, in {worst.where} {worst.what}"
        yield f"no divergence: {len(found.rows)} values agree within {found.tolerance:g}; {largest}"
    else:
        row = found.rows[found.first]
        yield f"they part ways in {row.where}, {row.what}: relative difference {row.relative:.2e} > {found.tolerance:g}"
        yield f"  largest at token {row.row}, column {row.column}: {row.a:.6g} against {row.b:.6g}"
        if found.cause:
            yield f"  {found.cause}"
    if found.first is not None and found.forced:
        others = [row for row in found.rows[found.first + 1 :] if not row.relative <= found.tolerance]
        following = f", the next in {others[0].where}, {others[0].what}" if others else ""
        yield f"  {len(others)} more ops differ by themselves{following}"
    elif not found.forced and found.first_bit is not None and found.first_bit != found.first:
        row = found.rows[found.first_bit]
        yield f"  the first bit to differ is in {row.where}, {row.what} (row {found.first_bit}), by {row.absolute:.2g}"
    if not found.faithful:
        yield "the code in a file does not do what its IR says: see the notes above"
