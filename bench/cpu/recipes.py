"""The quality of every recipe, llamac's and the peers': KL divergence on SmolLM2-135M from its fp32 weights.

The checkpoint is rewritten in the block type of the recipe by llama.cpp's quantizer, and every engine runs that file
(or its own form of it) on the text of `quality.py`, with its activations quantized as in the timed rows.
"""

from __future__ import annotations

import argparse
import datetime
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import peers
from _peer import Peer
from _reference import ArtifactReference, Floats
from quality import TEXT, WINDOW, Comparison, compare, join, summarize, windows
from rows import RECIPES, Recipe

import llamac
from llamac.models.sources import EMBEDDED, embedded_model

Logits = Callable[[list[int]], Floats]
FIGURES = ("kl_mean", "kl_p99", "top1_agreement", "perplexity")


class Evaluation:
    """The text in windows, with the reference's logits at hand."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        path = folder / "reference.llamac"
        llamac.compile(EMBEDDED, output=path, quantize="f32", validate=False)
        self._reference = ArtifactReference(path)
        with llamac.load(path) as model:
            ids, plan = model.tokenizer.encode(TEXT.read_text(encoding="utf-8")), model.plan
            if plan.add_bos and ids[:1] == [plan.bos_id]:
                ids = ids[1:]
            self.pieces = windows(ids, plan.bos_id if plan.add_bos else None)[:limit]
        self._known: list[Floats] = []

    def judge(self, logits: Logits) -> Comparison:
        """One engine beside the reference, at every position."""
        parts = []
        for number, piece in enumerate(self.pieces):
            if number == len(self._known):
                self._known.append(self._reference.logits(piece)[:-1])
            parts.append(compare(self._known[number], logits(piece)[:-1], piece[1:]))
        return join(parts)


def figures_of(found: Comparison, own: Comparison) -> dict[str, Any]:
    """The figures of one engine; `kl_excess` is llamac's mean KL less the engine's, and the standard error of that.

    The two are compared position by position, which leaves the difficulty of the text out of the error.
    """
    figures = summarize(found)
    apart = own.divergence - found.divergence
    error = apart.std(ddof=1) / math.sqrt(apart.size)
    return {
        "positions": figures["positions"],
        **{name: float(f"{figures[name]:.5g}") for name in FIGURES},
        "kl_excess": [float(f"{value:.4g}") for value in (apart.mean(), error)],
    }


def measure_recipes(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Recipe -> engine -> its figures."""
    with tempfile.TemporaryDirectory(dir=options.models) as name:
        folder = Path(name)
        evaluation = Evaluation(folder, options.windows)
        return {recipe: _measure(recipe, evaluation, folder, options) for recipe in names}


def _measure(name: str, evaluation: Evaluation, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    recipe = RECIPES[name]
    source = _file(recipe, options)
    artifact = folder / f"{name}.llamac"
    given: str | Path = EMBEDDED if recipe.scheme != "keep" or source is None else source
    if recipe.scheme != "keep" or source is not None:
        llamac.compile(given, output=artifact, quantize=recipe.scheme, target=recipe.target, validate=False)
        target = None if recipe.target == "cpu" else recipe.target
        with llamac.load(artifact, threads=options.threads, target=target) as model:
            own = evaluation.judge(model.logits)
    else:
        print(f"no quality of {name}: llama.cpp, which writes its file, is missing", file=sys.stderr)
        return {}
    found = {"llamac": figures_of(own, own)}
    with ExitStack() as stack:
        for engine_name in recipe.peers:
            engine = peers.ENGINES[engine_name]
            python = getattr(options, engine.option.strip("-").replace("-", "_")) or engine.python
            if python is not None and source is not None:
                peer = stack.enter_context(_peer(engine, python, source, options.threads))
                found[engine_name] = figures_of(evaluation.judge(peer.logits), own)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    print(f"{name}: " + ", ".join(f"{who} {row['kl_mean']:.4f}" for who, row in found.items()), file=sys.stderr)
    return {"title": recipe.title, "date": date, "engines": found}


def _peer(engine: peers.Engine, python: str, source: Path, threads: int) -> Peer:
    if engine.name == "onnxruntime":
        folder = peers.prepared(engine, python, source, "--all-logits")
        return Peer(engine.name, python, engine.worker, folder, threads, WINDOW)
    return peers.start(engine, python, source, threads, WINDOW)


def _file(recipe: Recipe, options: argparse.Namespace) -> Path | None:
    """SmolLM2 in the recipe's block type; None where nobody can write it."""
    if recipe.file is None:
        return None
    path: Path = options.models / f"smollm2-135m-real-{recipe.file}.gguf"
    if not path.exists():
        engine = peers.ENGINES["llama.cpp"]
        python = options.llama_cpp or engine.python
        if python is None:
            return None
        program = Path(__file__).parent / "requantize.py"
        half = path.with_suffix(".partial")
        subprocess.run([python, str(program), str(embedded_model()), str(half), recipe.file], check=True)
        half.rename(path)
    return path
