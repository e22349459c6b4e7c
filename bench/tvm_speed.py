"""Where TVM's code stands: `--target tvm:llvm` beside llamac's own code, the same model, weights and threads.

    python bench/tvm_speed.py --schemes f32 int4 --threads 2

Both are compiled for AVX2 (x86-64-v3) from SmolLM2-135M into one artifact, so they read the same packed weights. The
two run in turns, `--pairs` times, prefill of `--prompt` tokens and greedy decode of `--new` after them; the table gives
the medians and the ratio of the two, and how long each took to compile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, machine_line

import llamac
from llamac.models.sources import EMBEDDED
from llamac.runtime.model import Model
from llamac.runtime.session import Feed

TARGETS = {"llamac": "x86-64-v3", "tvm": "tvm:llvm"}
DEVICES = {"llamac": "cpu", "tvm": "tvm"}


def main() -> None:
    """Measure and print."""
    given = _arguments()
    rows = [row for scheme in given.schemes for row in _measured(scheme, given)]
    if given.json:
        print(json.dumps({"machine": machine(), "threads": given.threads, "rows": rows}, indent=1))
        return
    print(machine_line())
    print(
        f"SmolLM2-135M, {given.threads} threads, prompt {given.prompt}, {given.new} new tokens, {given.pairs} pairs\n"
    )
    print("| weights | what | llamac | TVM | TVM / llamac |\n|---|---|---:|---:|---:|")
    for row in rows:
        print(f"| {row['scheme']} | {row['what']} | {row['llamac']:.4g} | {row['tvm']:.4g} | {row['ratio']:.2f} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", default=["f32", "int4"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _measured(scheme: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        seconds = {side: _compile(Path(name) / f"{side}.llamac", scheme, [target]) for side, target in TARGETS.items()}
        both = Path(name) / "both.llamac"
        _compile(both, scheme, list(TARGETS.values()))
        models = {side: llamac.load(both, threads=given.threads, device=device) for side, device in DEVICES.items()}
        try:
            times = [{side: _run(model, given) for side, model in models.items()} for _ in range(given.pairs + 1)][1:]
        finally:
            for model in models.values():
                model.close()
    yield _row(scheme, "compile, s", [seconds])
    for index, what in enumerate(("prefill, tokens/s", "decode, tokens/s")):
        yield _row(scheme, what, [{side: pair[side][index] for side in pair} for pair in times])


def _compile(out: Path, scheme: str, targets: list[str]) -> float:
    started = time.perf_counter()
    llamac.compile(EMBEDDED, target=targets, output=out, quantize=scheme, validate=False)
    return time.perf_counter() - started


def _run(model: Model, given: argparse.Namespace) -> tuple[float, float]:
    """Tokens a second of one prefill and of the steps of one token after it."""
    ids = np.random.default_rng(0).integers(0, model.vocab_size, given.prompt).tolist()
    sequence = model.session.open()
    try:
        started = time.perf_counter()
        last = int(np.argmax(model.session.step([Feed(sequence, ids)])[0]))
        prefilled = time.perf_counter()
        for _ in range(given.new):
            last = int(np.argmax(model.session.step([Feed(sequence, [last])])[0]))
        return given.prompt / (prefilled - started), given.new / (time.perf_counter() - prefilled)
    finally:
        sequence.close()


def _row(scheme: str, what: str, pairs: list[dict[str, float]]) -> dict[str, Any]:
    medians = {side: statistics.median(pair[side] for pair in pairs) for side in TARGETS}
    ratio = statistics.median(pair["tvm"] / pair["llamac"] for pair in pairs)
    return {"scheme": scheme, "what": what, **medians, "ratio": ratio}


if __name__ == "__main__":
    main()
