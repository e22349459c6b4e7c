"""Writes the explorer's page: one HTML file with its style, script and data, and no reference to anything else."""

from __future__ import annotations

import dataclasses
import difflib
import html
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from llamac.chosen_targets import resolve_targets
from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.models.llama.weights import expected_shapes
from llamac.models.sources import open_source
from llamac.passes.pipelines import Share, parse_quantization, target_pipeline
from llamac.target import Target
from llamac.transform.base import PassContext

from .snapshots import CACHED, Snapshot, take_snapshots

LAYERS = 2
"""Layers shown unless told: enough for `roll-layers` to roll."""


def explore(
    source: str | Path,
    *,
    output: str | Path,
    target: str = "cpu",
    quantize: str = "keep",
    kv: str | None = None,
    layers: int = LAYERS,
    random_weights: int | None = None,
    max_step_tokens: int = 512,
) -> int:
    """Run the pipeline of `target` on the first `layers` layers of `source` and write the page; its size in bytes.

    No weight is read. Every failure is a `LlamacError`, and leaves no file.
    """
    (chosen,) = resolve_targets([target])
    if layers < 1:
        raise LlamacError("LLC0101", "--layers", f"{layers} is less than one", "2 is usual")
    checkpoint = open_source(source, random_weights=random_weights)
    snapshots = _snapshots(checkpoint, chosen, layers, quantize, kv, max_step_tokens)
    shown = min(layers, checkpoint.config.layers)
    about = {
        "model": checkpoint.name,
        "target": chosen.name,
        "quantization": quantize,
        "layers": f"{shown} of {checkpoint.config.layers} layers",
        "cached": CACHED,
    }
    data = page(about, snapshots).encode()
    path = Path(output)
    is_new = not path.exists()
    try:
        path.write_bytes(data)
    except OSError as error:
        if is_new:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        reason = f"cannot be written: {error.strerror}"
        raise LlamacError("LLC0101", str(output), reason, "choose another file") from None
    return len(data)


def _snapshots(
    checkpoint: Checkpoint, target: Target, layers: int, quantize: str, kv: str | None, max_step_tokens: int
) -> list[Snapshot]:
    from llamac.layer_kinds import is_uniform, layer_counts

    quantization = parse_quantization(quantize)
    config = dataclasses.replace(checkpoint.config, layers=min(layers, checkpoint.config.layers))
    module = build_graph(config, {name: checkpoint.tensors[name] for name in expected_shapes(config)})
    kv_dtype = kv or ("f32" if quantization.scheme == "f32" else "f16")
    uniform = is_uniform(config, checkpoint.tensors)
    counts, share = layer_counts(config), Share(target.ranks)
    steps = target_pipeline(target.kind, counts, quantization, kv_dtype, max_step_tokens, uniform, share=share)
    return take_snapshots(module, steps, PassContext(checkpoint.read_rows))


def page(about: dict[str, Any], snapshots: Sequence[Snapshot]) -> str:
    """The whole page as text."""
    folder = files("llamac.explore")
    template, style, script = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    data = json.dumps({"about": about, **_data(snapshots)}, separators=(",", ":"), ensure_ascii=True)
    title = html.escape(f"{about['model']} for {about['target']}, {about['quantization']}")
    # Inside a script element only "</" and "<!--" could end or change it.
    filled = {"TITLE": title, "STYLE": style, "DATA": data.replace("<", "\\u003c"), "SCRIPT": script}
    return re.sub(r"@(TITLE|STYLE|DATA|SCRIPT)@", lambda mark: filled[mark.group(1)], template)


def _data(snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """Lines once each, and for every step which lines it has and how they differ from those before."""
    table: dict[str, int] = {}
    steps: list[dict[str, Any]] = []
    before: list[int] = []
    drawn: dict[str, Any] = {}
    for shot in snapshots:
        lines = [table.setdefault(line, len(table)) for line in shot.lines]
        graph = shot.layer.to_json()
        same = graph == drawn
        drawn = graph
        steps.append(
            {
                "name": shot.name,
                "text": shot.text,
                "level": shot.level,
                "purpose": shot.purpose,
                "lines": lines,
                "diff": _changes(before, lines) if steps else [],
                "counts": dict(shot.counts),
                "refusals": [[where, reason, count] for (where, reason), count in shot.refusals.items()],
                "ops": shot.ops,
                "weights": shot.weight_bytes,
                "values": shot.value_bytes,
                "graph": None if same else graph,
            }
        )
        before = lines
    return {"lines": list(table), "steps": steps}


def _changes(a: list[int], b: list[int]) -> list[list[int]]:
    """[a1, a2, b1, b2] of every run of lines that is not the same."""
    pair = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return [list(places) for tag, *places in pair.get_opcodes() if tag != "equal"]
