"""From nothing to the first token: import of the runtime, load, a prompt of 16 tokens, and the memory that this takes.

    python bench/cpu/load.py model.llamac --threads 2

Every repeat is a new process; figures are medians. The file is read once before, so it lies in the page cache. Memory
is what the process holds beyond the interpreter with the runtime imported; the plan is what the artifact says: all
weights, the arena, and the cache pages of 16 tokens. Random weights do: they are read the same way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _machine import machine, machine_line

PROMPT_TOKENS = 16

CHILD = """
import json, sys, time
def rss():
    rows = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(rows[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile")}
started = time.perf_counter()
from llamac.runtime.loader import load
imported = time.perf_counter()
before = rss()
options = json.loads(sys.argv[2])
loading = time.perf_counter()
model = load(sys.argv[1], **options)
loaded = time.perf_counter()
sequence = model.session.open()
logits = model.session.prefill(sequence, list(range(TOKENS)))
token = int(logits.argmax())
first = time.perf_counter()
after, memory = rss(), model.plan.memory
planned = memory.weight_bytes + memory.arena_bytes + sum(cache.page_bytes for cache in memory.caches)
print(json.dumps({
    "import_ms": 1e3 * (imported - started), "load_ms": 1e3 * (loaded - loading),
    "first_token_ms": 1e3 * (first - loaded),
    "load_to_first_token_ms": 1e3 * (first - loading),
    "held_bytes": after["VmRSS"] - before["VmRSS"],
    "anonymous_bytes": after["RssAnon"] - before["RssAnon"], "planned_bytes": planned,
    "weight_bytes": memory.weight_bytes, "arena_bytes": memory.arena_bytes,
}))
""".replace("TOKENS", str(PROMPT_TOKENS))


def run_once(artifact: Path, options: dict[str, Any]) -> dict[str, float]:
    """One new process; its times in ms and its memory in bytes."""
    words = [sys.executable, "-c", CHILD, str(artifact), json.dumps(options)]
    found: dict[str, float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


def compile_default(folder: Path) -> Path:
    """The shape of Llama 3.2 1B with random weights in int4."""
    import llamac

    path = folder / "llama-3.2-1b.llamac"
    llamac.compile("llama-3.2-1b", output=path, quantize="int4", random_weights=1, tokenizer=False, validate=False)
    return path


def measure(artifact: Path, options: dict[str, Any], repeats: int) -> dict[str, float]:
    """Medians over `repeats` processes."""
    artifact.read_bytes()  # into the page cache
    rows = [run_once(artifact, options) for _ in range(repeats)]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    """Print the times and the memory, for mapped and for copied weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path, help="by default a 1B shape with random weights is compiled")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llamac-load-") as folder:
        artifact = words.artifact or compile_default(Path(folder))
        common = {"threads": words.threads, "context": words.context}
        found = {way: measure(artifact, {**common, "weights": way}, words.repeats) for way in ("map", "copy")}
    if words.json:
        print(json.dumps({**machine(), "artifact": artifact.name, "weights": found}))
        return
    print(machine_line())
    print(f"{artifact.name}, {PROMPT_TOKENS} tokens of prompt, medians of {words.repeats}")
    for way, row in found.items():
        parts = f"import {row['import_ms']:.0f} ms, load {row['load_ms']:.0f}, first token {row['first_token_ms']:.0f}"
        held, planned = row["held_bytes"], row["planned_bytes"]
        print(f"  weights {way:4s}: {parts}; load to first token {row['load_to_first_token_ms']:.0f} ms")
        print(f"    memory {held / 1e6:.0f} MB, {held / planned:.3f} of the planned {planned / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
