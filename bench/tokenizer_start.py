"""From importing the runtime's tokenizer to the ids of a first prompt, in a fresh process: by table and by tiktoken.

    python bench/tokenizer_start.py            # needs llama-models (--no-deps) for the real tokenizer.model files

`table` is what an artifact's tokenizer does; `tiktoken` reads the same tokenizer.model without the table. Prints the
median, fastest and slowest of several processes, and checks that all give the same ids.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from _machine import machine_line

from llamac.models.llama.rank_table import rank_table
from llamac.models.llama.tiktoken_format import read_ranks

PROMPT = "What is the capital of France? Answer in one short sentence, please; it's for a quiz (question no. 12345)."

PROGRAM = """
import sys, time
start = time.perf_counter()
from llamac.runtime.text.tokenizer import load_tokenizer
name, path, prompt = sys.argv[1:]
with open(path, "rb") as file:
    data = file.read()
ids = load_tokenizer("tiktoken", {name: data}, {}).encode(prompt)
print((time.perf_counter() - start) * 1e3, *ids)
"""


def main() -> None:
    """Time both vocabularies both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="processes for each row")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for generation in (3, 4) for row in measure(generation, words.runs, Path(folder))]
    if words.json:
        print(json.dumps({"machine": machine_line(), "prompt": PROMPT, "rows": rows}))
        return
    print(machine_line())
    for row in rows:
        print(f"Llama {row['generation']} {row['way']:9} median {row['median_ms']:6.1f} ms", end="  ")
        print(f"({row['fastest_ms']:.1f} to {row['slowest_ms']:.1f}, {words.runs} processes)")


def measure(generation: int, runs: int, folder: Path) -> list[dict[str, float | int | str]]:
    """Two rows, taken in turn so that both see the same machine."""
    model = model_file(generation)
    table = folder / "ranks.table"
    table.write_bytes(rank_table(read_ranks(model.read_bytes(), str(model))))
    ways = {"table": ("ranks.table", table), "tiktoken": ("tokenizer.model", model)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    found = set()
    for _ in range(runs):
        for way, (name, path) in ways.items():
            command = [sys.executable, "-c", PROGRAM, name, str(path), PROMPT]
            first, ids = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 1)
            times[way].append(float(first))
            found.add(ids)
    if len(found) != 1:
        raise SystemExit(f"Llama {generation}: the ids differ")
    return [
        {
            "generation": generation,
            "way": way,
            "median_ms": statistics.median(rows),
            "fastest_ms": min(rows),
            "slowest_ms": max(rows),
        }
        for way, rows in times.items()
    ]


def model_file(generation: int) -> Path:
    """The real tokenizer.model, inside the PyPI package llama-models."""
    spec = find_spec("llama_models")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llama-models")
    return Path(spec.submodule_search_locations[0]) / f"llama{generation}" / "tokenizer.model"


if __name__ == "__main__":
    main()
