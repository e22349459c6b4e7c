"""onnxruntime-genai on a folder that `llamac export --to onnx-genai` wrote, beside the same model from its own builder.

    python bench/onnx_genai.py --builder PYTHON       PYTHON: an interpreter with onnxruntime-genai, torch,
                                                      transformers and onnx-ir (the builder needs them; llamac does not)
    python bench/onnx_genai.py --pairs 15 --prompt-tokens 256 --json

Both start from the same f32 folder, SmolLM2-135M unless --source names another, and are int4 in groups of 32. Three
pairs are timed: as each writes by default (llamac: embedding and head in 8 bits, logits of the last token alone; the
builder: both in 4 bits, logits of every token), and twice the same thing on both sides: llamac's defaults (the
builder's `rtn_last` and `prune_lm_head`), and the builder's.

Within a pair both are loaded in one process with the same threads, and run in turns first and second (A B, B A, ...).
The model that is loaded last is some percent faster, whichever it is: half of the turns are taken with the one loaded
first, half with the other. Speeds are medians over all turns, ratios the mean over both orders of loading of the
medians within a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
from _machine import machine, machine_line

from llamac.export.entry import export
from llamac.models.sources import EMBEDDED

Speeds = tuple[float, float]
"""Tokens a second: prefill, decode."""


@dataclass(frozen=True)
class Recipe:
    """One pair: the options of the export, and those of the builder that give the same widths."""

    name: str
    ours: dict[str, str]
    theirs: tuple[str, ...]


PAUSE = 0.05
"""Seconds before a run: the threads of the other model wait for work in a busy loop for some milliseconds."""

RECIPES = (
    Recipe("as each writes by default", {}, ()),
    Recipe("8-bit tables, last logits", {}, ("algo_config=rtn_last", "prune_lm_head=true")),
    Recipe("4-bit tables, all logits", {"tables": "4", "logits": "all"}, ()),
)


def build(recipe: Recipe, source: Path, builder: str, folder: Path) -> tuple[Path, Path]:
    """Both folders of a recipe."""
    ours, theirs = folder / recipe.name / "llamac", folder / recipe.name / "builder"
    ours.parent.mkdir()
    export(source, to="onnx-genai", output=ours, quantize="int4", options=recipe.ours)
    module = [builder, "-m", "onnxruntime_genai.models.builder"]
    command = [*module, "-i", source, "-o", theirs, "-p", "int4", "-e", "cpu", "-c", folder / "cache"]
    options = ["--extra_options", *recipe.theirs] if recipe.theirs else []
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return ours, theirs


def loaded(folder: Path, threads: int) -> Any:
    """A model of onnxruntime-genai with so many threads."""
    config = onnxruntime_genai.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return onnxruntime_genai.Model(config)


def run(model: Any, prompt: int, new: int) -> Speeds:
    """Tokens a second of a prompt and its first token, and of the greedy tokens after it."""
    time.sleep(PAUSE)
    ids = (np.arange(prompt) * 7919 % 40000 + 100).astype(np.int32)
    parameters = onnxruntime_genai.GeneratorParams(model)
    length = prompt + new + 1
    parameters.set_search_options(do_sample=False, max_length=length, min_length=length)
    generator = onnxruntime_genai.Generator(model, parameters)
    started = time.perf_counter()
    generator.append_tokens(ids)
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(new):
        generator.generate_next_token()
    return prompt / (first - started), new / (time.perf_counter() - first)


def in_turns(folders: tuple[Path, Path], swapped: bool, options: argparse.Namespace) -> tuple[list[Speeds], ...]:
    """The speeds of both in every turn, the second loaded first when `swapped`."""
    models = [loaded(folder, options.threads) for folder in (folders[::-1] if swapped else folders)]
    models = models[::-1] if swapped else models
    tokens = (options.prompt_tokens, options.new_tokens)
    for model in models:
        run(model, *tokens)  # pages in, threads started
    found: tuple[list[Speeds], ...] = ([], [])
    for turn in range(options.pairs):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            found[index].append(run(models[index], *tokens))
    return found


def figures_of(orders: list[tuple[list[Speeds], ...]]) -> dict[str, Any]:
    """Median speeds of both, and the first's over the second's."""
    figures: dict[str, Any] = {}
    for part, name in enumerate(("prefill", "decode")):
        pairs = [[(a[part], b[part]) for a, b in zip(*found, strict=True)] for found in orders]
        ratios = [statistics.median(a / b for a, b in turns) for turns in pairs]
        every = [turn for turns in pairs for turn in turns]
        figures[name] = {
            "llamac": round(statistics.median(a for a, _ in every), 1),
            "builder": round(statistics.median(b for _, b in every), 1),
            "ratio": round(statistics.mean(ratios), 3),
            "loaded_first_and_last": [round(ratio, 3) for ratio in ratios],
        }
    return figures


def main() -> None:
    """Build, time and print every pair."""
    options = _options()
    result: dict[str, Any] = {"machine": machine(), "onnxruntime-genai": version("onnxruntime-genai"), "pairs": {}}
    print(machine_line(), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="llamac-bench-") as place:
        folder = Path(place)
        export(options.source, to="hf", output=folder / "source", quantize="f32")
        for recipe in RECIPES:
            folders = build(recipe, folder / "source", options.builder, folder)
            orders = [in_turns(folders, swapped, options) for swapped in (False, True)]
            result["pairs"][recipe.name] = figures_of(orders)
    if options.json:
        print(json.dumps(result))
        return
    for name, figures in result["pairs"].items():
        for part, row in figures.items():
            first, last = row["loaded_first_and_last"]
            speeds = f"llamac's export {row['llamac']}, the builder's {row['builder']} tokens/s"
            print(f"{name}, {part}: {speeds}, ratio {row['ratio']} ({first} loaded first, {last} loaded last)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=EMBEDDED)
    parser.add_argument("--builder", default=os.environ.get("LLAMAC_BENCH_GENAI_BUILDER", sys.executable))
    parser.add_argument("--pairs", type=int, default=15, help="turns in each order of loading")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
