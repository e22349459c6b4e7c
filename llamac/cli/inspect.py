"""`llamac inspect`: what is in an artifact, read from its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from .options import json_option, print_json

Manifest = Mapping[str, Any]
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
SHORTENED_LEDGER_ROWS = 20


LONGEST_LIST = 24
"""Entries of a list in the config that are printed one by one."""


@click.command("inspect")
@click.argument("artifact")
@click.option("--members", is_flag=True, help="Also list every member of the file with its size and hash.")
@click.option(
    "--ledger", "whole_ledger", is_flag=True, help=f"The whole ledger, not its first {SHORTENED_LEDGER_ROWS} rows."
)
@json_option
def command(artifact: str, members: bool, whole_ledger: bool, as_json: bool) -> None:
    """Show what is in ARTIFACT: model, passes, targets, memory plan, tokenizer, stop ids, ledger, hashes.

    \b
      llamac inspect m.llamac
      llamac inspect m.llamac --json | jq .memory

    Nothing from the file is run. --json prints its whole manifest, with the file's path and size added under "file".
    """
    from llamac.artifact.read import Artifact

    with Artifact.open(artifact) as opened:
        manifest, size = opened.manifest, opened.size
    if as_json:
        print_json({**manifest, "file": {"path": artifact, "bytes": size}})
        return
    limit = None if whole_ledger else SHORTENED_LEDGER_ROWS
    for title, lines in _sections(manifest, size, members, limit):
        click.echo(click.style(title, bold=True))
        for line in lines:
            click.echo(f"  {_harmless(line)}")


def _sections(
    manifest: Manifest, size: int, members: bool, ledger_rows: int | None
) -> Iterator[tuple[str, Iterable[str]]]:
    yield "model", _model(manifest, size)
    yield "passes", _table([(row["name"], _options(row), _counts(row)) for row in manifest["passes"]])
    yield "targets", _table([_target(row) for row in manifest["targets"]])
    yield "weights", _weights(manifest)
    yield "memory plan", _memory(manifest)
    yield "text", _text(manifest)
    yield "golden vectors", [f"{len(manifest['golden']['vectors'])}, oracle: {manifest['golden']['oracle']}"]
    yield "ledger", _ledger(manifest["ledger"], ledger_rows)
    if members:
        yield "members", _table([(name, str(row["bytes"]), _hash(row)) for name, row in manifest["members"].items()])


def _harmless(line: str) -> str:
    """A line of text from a file that nobody need trust: what would steer the terminal is printed as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _model(manifest: Manifest, size: int) -> Iterable[str]:
    model = manifest["model"]
    config = ", ".join(
        f"{key} {value}" for key, value in model["config"].items() if isinstance(value, (int, float, str))
    )
    return _table(
        [
            ("name", f"{model['name']} ({model['architecture']}, from {model['source_format']})"),
            ("licence", model["license"] or "not stated by the checkpoint"),
            ("parameters", f"{model['parameters']:,}"),
            ("context", f"{model['context_length']:,} tokens, vocabulary {model['vocab_size']:,}"),
            ("quantization", manifest["quantization"]),
            ("config", config),
            *((key, _fields(value)) for key, value in model["config"].items() if isinstance(value, dict)),
            ("file", f"{human_bytes(size)}, made by {manifest['producer']}, schema {manifest['schema']}"),
        ]
    )


def _fields(part: Mapping[str, Any]) -> str:
    """A nested part of the config on one line; long lists by their length."""
    shown = []
    for key, value in part.items():
        if isinstance(value, list):
            value = " ".join(map(str, value)) if len(value) <= LONGEST_LIST else f"({len(value)} values)"
        shown.append(f"{key} {value}")
    return ", ".join(shown)


def _options(row: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in row["options"].items())


def _counts(row: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in row["counts"].items())
    return counts or ("changed" if row["changed"] else "no change")


def _target(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["name"], row["triple"], row["layout"], row["truth"], "needs " + (" ".join(row["requires"]) or "nothing")


def _weights(manifest: Manifest) -> Iterable[str]:
    for row in manifest["weights"]:
        formats = Counter[str]()
        for tensor in row["tensors"]:
            formats[tensor["format"]] += tensor["bytes"]
        listed = ", ".join(f"{name} {human_bytes(count)}" for name, count in formats.most_common())
        yield f"{row['layout']}: {human_bytes(row['bytes'])} in {len(row['tensors'])} tensors ({listed})"


def _memory(manifest: Manifest) -> Iterable[str]:
    memory = manifest["memory"]
    context = manifest["model"]["context_length"]
    size = memory["kv_page_tokens"]
    picture = _largest_picture(manifest)
    caches = [_cache(row, context, size, memory["max_step_tokens"], picture) for row in memory["caches"]]
    return _table(
        [
            ("weights", f"{human_bytes(memory['weight_bytes'])}, mapped from the file"),
            ("read per token", human_bytes(memory["weight_bytes_per_token"])),
            ("arena", f"{human_bytes(memory['arena_bytes'])}, steps of at most {memory['max_step_tokens']} tokens"),
            ("KV cache", f"{memory['kv_dtype']}, pages of {size} tokens"),
            *caches,
        ]
    )


def _largest_picture(manifest: Manifest) -> int:
    """Vision tokens of the largest picture, in models that keep them in a cache; else 0."""
    from llamac.runtime.images.settings import settings_of_model

    if not any(row.get("kind") == "cross" for row in manifest["memory"]["caches"]):
        return 0
    settings = settings_of_model(manifest["model"]["config"].get("vision") or {})
    return settings.most_tiles * settings.tile_tokens


def _cache(row: dict[str, Any], context: int, size: int, step_tokens: int, picture: int) -> tuple[str, str]:
    """The cache of one kind of layer, at a full context or for one picture."""
    from llamac.runtime.kv import PagePool

    if row.get("kind") == "cross":
        pages = -(-picture // size)
        held = f"{human_bytes(pages * row['page_bytes'])} ({pages} pages of {human_bytes(row['page_bytes'])})"
        return "", f"{held} for each picture of {picture} vision tokens, in {len(row['layers'])} layers which see those"
    pages = PagePool(0, size, row["chunk"], step_tokens).pages_for(context)
    seen = f"which see blocks of {row['chunk']} tokens" if row["chunk"] else "which see everything"
    total = human_bytes(pages * row["page_bytes"])
    return "", f"{total} ({pages} pages of {human_bytes(row['page_bytes'])}) for {len(row['layers'])} layers {seen}"


def _own_format(tokenizer: Mapping[str, Any] | None) -> str:
    name = tokenizer["info"].get("chat_format") if tokenizer else None
    return f"none; the built-in format {name}" if name else "none"


def _text(manifest: Manifest) -> Iterable[str]:
    tokenizer, generation = manifest["tokenizer"], manifest["generation"]
    sources = generation["stop_sources"]
    stops = [f"{token} ({', '.join(sources.get(str(token), ['unknown source']))})" for token in generation["stop_ids"]]
    defaults = ", ".join(f"{name} {value}" for name, value in generation["defaults"].items())
    begin = "none" if generation["bos_id"] is None else f"{generation['bos_id']}, put first: {generation['add_bos']}"
    return _table(
        [
            ("tokenizer", tokenizer["kind"] if tokenizer else "none: ids in, ids out"),
            ("chat template", "yes" if manifest["chat_template"] else _own_format(tokenizer)),
            ("begin id", begin),
            ("stop ids", "; ".join(stops) or "none"),
            ("sampling defaults", defaults or "greedy"),
        ]
    )


def _ledger(rows: Sequence[Mapping[str, Any]], limit: int | None) -> Iterable[str]:
    shown = rows if limit is None else rows[:limit]
    yield from _table([(row["kind"], row["where"], f"{row['what']} ({row['reason']})") for row in shown])
    if len(shown) < len(rows):
        yield f"... and {len(rows) - len(shown)} more: --ledger shows all"


def _hash(row: Mapping[str, Any]) -> str:
    if "sha256" in row:
        return str(row["sha256"])
    return f"{len(row['sha256_blocks'])} blocks of {human_bytes(row['block_bytes'])}, each with its SHA-256"


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Columns padded to their widest cell, the last one as it is."""
    if not rows:
        return ["none"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]


def human_bytes(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.4g} {UNITS[unit]}"
