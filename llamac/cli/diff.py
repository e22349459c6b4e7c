"""`llamac diff`: what differs between two artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from .options import json_option, print_json

if TYPE_CHECKING:
    from llamac.artifact.diff import ArtifactDiff, KeyChange, TensorChange
    from llamac.artifact.diff_code import MachineDiff, TextDiff

_MOST = 12
_MOST_LINES = 8


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--full", is_flag=True, help="Print everything: every key, weight and changed line.")
@json_option
def command(a: str, b: str, full: bool, as_json: bool) -> int:
    """Show what differs between the artifacts A and B, from the manifest down to the instruction.

    \b
      llamac diff yesterday.llamac today.llamac
      llamac diff a.llamac b.llamac --full | less
      llamac diff a.llamac b.llamac --json | jq .weights

    Bytes are compared, not recorded hashes; nothing from the files is run. Exit code 0: the same bytes; 1: they differ;
    2: a file is no artifact. How far values of weights lie apart is told where the compiler is installed
    (llamac[compile]).
    """
    from llamac.artifact.diff import diff_artifacts
    from llamac.artifact.read import Artifact

    with Artifact.open(a, "none") as first, Artifact.open(b, "none") as second:
        found = diff_artifacts(first, second)
        if found.tensors:
            _explain(found, first, second)
    if as_json:
        print_json(found.to_json())
    else:
        click.echo("\n".join(_text(found, full)))
    return 0 if found.identical else 1


def _explain(found: ArtifactDiff, a: Any, b: Any) -> None:
    try:
        from llamac.weight_values import explain_weights
    except ImportError:
        return
    explain_weights(found, a, b)


def _text(found: ArtifactDiff, full: bool) -> Iterator[str]:
    yield f"A  {found.a}"
    yield f"B  {found.b}"
    if found.identical:
        yield "the same, byte for byte"
        return
    most = 1 << 30 if full else _MOST
    yield from _section("manifest", [_key(key) for key in found.keys], most, "same keys and values")
    yield from _section("members", [_member(m.name, m.a_bytes, m.b_bytes) for m in found.members], most, "same bytes")
    if not found.keys and not found.members:
        yield "all members are the same: headers or padding differ, which `llamac verify` judges"
    weights = [_tensor(tensor) for tensor in found.tensors]
    yield from _section("weights", weights, most, "same bytes", found.tensors_compared)
    if found.ir is not None:
        yield from _parts("IR", found.ir, full)
    for source in found.sources:
        yield from _parts("source", source, full)
    for machine in found.machine:
        yield from _machine(machine)


def _section(title: str, rows: Sequence[str], most: int, same: str, total: int = 0) -> Iterator[str]:
    count = f"{len(rows)} of {total} differ" if total else f"{len(rows)} differ"
    yield f"\n{title}: {count if rows else same}"
    yield from (f"  {row}" for row in rows[:most])
    if len(rows) > most:
        yield f"  ... and {len(rows) - most} more: --full shows all"


def _key(key: KeyChange) -> str:
    if key.side != "both":
        return f"{key.path}: only in {key.side.upper()}: {_brief(key.a if key.side == 'a' else key.b)}"
    return f"{key.path}: {_brief(key.a)} -> {_brief(key.b)}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _member(name: str, a: int | None, b: int | None) -> str:
    if a is None or b is None:
        return f"{name}: only in {'B' if a is None else 'A'}, {b if a is None else a} bytes"
    return f"{name}: other bytes, {a} in both" if a == b else f"{name}: {a} -> {b} bytes"


def _tensor(tensor: TensorChange) -> str:
    a, b = tensor.a, tensor.b
    if a is None or b is None:
        entry = a or b
        assert entry is not None
        return f"{tensor.name}: only in {'B' if a is None else 'A'}, {entry['format']} {_shape(entry['shape'])}"
    parts = [f"{tensor.name}: {a['format']} {_shape(a['shape'])}"]
    if {"format", "shape"} & {*tensor.changed}:
        parts = [f"{parts[0]} -> {b['format']} {_shape(b['shape'])}"]
    if "bytes" in tensor.changed:
        parts.append(f"{tensor.bytes_different} of {a['bytes']} bytes, the first at {tensor.first_byte}")
    if (d := tensor.difference) is not None:
        place = f"row {d['row']}, column {d['column']}"
        parts.append(f"values by up to {d['absolute']:.3g} ({d['relative']:.1e} of the largest; {place})")
    if tensor.readers:
        parts.append(f"read by {', '.join(tensor.readers)}")
    return "; ".join(parts)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _parts(title: str, found: TextDiff, full: bool) -> Iterator[str]:
    rows = found.changed
    differ = f"{len(rows)} of {found.parts} parts differ" if rows else "only numbers of values differ"
    yield f"\n{title} ({found.member}): {differ}"
    for part in rows if full else rows[:_MOST]:
        side = "" if part.side == "both" else f" (only in {part.side.upper()})"
        yield f"  {part.name}{side}: {part.removed} lines removed, {part.added} added"
        if full:
            yield from (f"    {line}" for line in part.lines)
        elif part.side == "both":
            yield from (f"    {line if len(line) <= 160 else line[:157] + '...'}" for line in part.lines[:_MOST_LINES])
            if len(part.lines) > _MOST_LINES:
                yield f"    ... {len(part.lines) - _MOST_LINES} more lines: --full shows all"
    if not full and len(rows) > _MOST:
        yield f"  ... and {len(rows) - _MOST} more: --full shows all"


def _machine(found: MachineDiff) -> Iterator[str]:
    yield f"\nmachine code of {found.target}: {len(found.sections)} sections differ"
    for section in found.sections:
        line = _member(section.name, section.a_bytes, section.b_bytes)
        if section.bytes_different is not None:
            line += f", {section.bytes_different} differ, the first at {section.first_byte}"
        yield f"  {line}"
    yield from (f"    {line}" for line in found.instructions)
