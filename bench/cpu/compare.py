"""llamac beside llama.cpp, OpenVINO GenAI and ONNX Runtime GenAI, interleaved, and beside the machine's limits.

    python bench/cpu/compare.py                                     all rows, 15 pairs each, and the recipes' quality
    python bench/cpu/compare.py --row 1b-q4 --pairs 15 --json-out cpu.json
    python bench/cpu/compare.py --quality-only --json-out cpu.json

`rows.py` lists the rows: a model shape with random weights in one GGUF block type, which llamac compiles with
`--quantize keep`, so that all run the same integers and scales (what a peer's own format forbids is printed with its
name). A pair is a run of every engine, first to last and last to first in turns, with the peak of the arithmetic unit
and plain reads of memory before, between and after. Figures are medians over the pairs, ratios medians of the ratios
within a pair, both with quartiles. A share of the peak counts two operations for each weight of a matrix and token, and
four for each pair of positions, head and element in attention; a share of the read counts the bytes of weights that a
step reads, over the plain read of the same mapped file.

Peers live in environments of their own: `make bench-peers` builds them. A missing one is named and left out. With
--json-out the file is updated after every row: rows can be measured one at a time and replace older figures only.
`page.py` makes docs/benchmarks/cpu.md of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import peers
from _machine import machine, machine_line
from measure import measure
from recipes import measure_recipes
from rows import RECIPES, ROWS


def print_row(found: dict[str, Any]) -> None:
    """One row for people."""
    print(f"{found['row']}: {found['title']}, {found['pairs']} pairs, {found['threads']} threads")
    for who, facts in found["engines"].items():
        print(f"  {who} {facts['version']}: {facts['weights']}")
    for point in found["points"]:
        print(f"  {point['sequences']} x {point['prompt']} + {point['new']} tokens")
        for who, speeds in point["speeds"].items():
            words = ", ".join(f"{kind} {_text(values)}" for kind, values in speeds.items())
            print(f"    {who:15s} {words} tokens/s")
        for who, ratios in point["ratios"].items():
            words = ", ".join(f"{kind} {_text(values)}" for kind, values in ratios.items())
            print(f"    times {who:9s} {words}")
        for kind, values in point["shares"].items():
            print(f"    share of {kind.replace('_', ' '):12s} {_text(values)}")
        for who, values in point.get("multiple", {}).items():
            print(f"    times one sequence, {who:10s} {_text(values)}")


def _text(spread: list[float]) -> str:
    low, middle, high = spread
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


class Results:
    """The file of --json-out: rows and recipes by name, written after each one, or nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.values: dict[str, Any] = {"rows": {}, "quality": {}}
        if path is not None and path.exists():
            self.values |= json.loads(path.read_text(encoding="utf-8"))

    def put(self, section: str, name: str, value: dict[str, Any]) -> None:
        """Add or replace one entry."""
        self.values[section][name] = value
        self.values["machine"] = machine()
        if self.path is not None:
            half = self.path.with_suffix(".partial")
            half.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
            half.replace(self.path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="only this one; may be repeated")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--json-out", type=Path, metavar="FILE", help="update this file of results")
    parser.add_argument("--models", type=Path, default=peers.MODELS, help="folder of model files that are kept")
    parser.add_argument("--quality", choices=["missing", "all", "none"], default="missing", help="of which recipes")
    parser.add_argument("--quality-only", action="store_true", help="no speed, the quality of all recipes")
    parser.add_argument("--windows", type=int, metavar="N", help="quality on the first N windows of 512 tokens only")
    for engine in peers.ENGINES.values():
        words = f"an interpreter with {engine.name} [${engine.variable}, or what make bench-peers built]"
        parser.add_argument(engine.option, metavar="PYTHON", help=words)
    return parser.parse_args()


def main() -> None:
    """The program."""
    options = _options()
    options.models.mkdir(parents=True, exist_ok=True)
    print(machine_line(), file=sys.stderr)
    results = Results(options.json_out)
    names = [] if options.quality_only else options.row or list(ROWS)
    for name in names:
        found = measure(name, options)
        results.put("rows", name, found)
        if not options.json:
            print_row(found)
    for recipe, judged in measure_recipes(_recipes(names, options, results), options).items():
        if judged:
            results.put("quality", recipe, judged)
            if not options.json:
                words = (f"{who} {row['kl_mean']:.4g}" for who, row in judged["engines"].items())
                print(f"KL of {judged['title']}: {', '.join(words)}")
    if options.json:
        print(json.dumps(results.values))


def _recipes(names: list[str], options: argparse.Namespace, results: Results) -> list[str]:
    if options.quality_only:
        return list(RECIPES)
    if options.quality == "none":
        return []
    # The default recipe is judged against llama.cpp's at the same bits.
    wanted = {ROWS[name].recipe for name in names} | ({"q4_0"} if "1b-default" in names else set())
    known = results.values["quality"] if options.quality == "missing" else {}
    return [name for name in RECIPES if name in wanted and name not in known]


if __name__ == "__main__":
    main()
