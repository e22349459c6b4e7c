"""SmolLM2-135M beside llama.cpp on the same GGUF file and threads; start-up and compile time.

    python bench/day_one.py --llama-cpp PYTHON        PYTHON: an interpreter that can import llama_cpp
    python bench/day_one.py --only speed --repeats 9 --threads 2

llama.cpp comes with the PyPI package llama-cpp-python 0.3.36, a source build of some minutes; name an interpreter that
has it with --llama-cpp or the environment variable LLAMAC_BENCH_LLAMA_CPP. Without it llamac is timed alone.

Every repeat times both, in turns first and second (A B, B A, ...), with a plain multi-threaded read of memory before,
between and after; speeds are medians over the repeats, ratios medians of the ratios within a repeat. Both decode
greedily from the same 512 ids and keep an f16 cache. Start-up is from the start of the process to the first character.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _llama_cpp import LlamaCpp
from _machine import machine, machine_line

import llamac
from llamac.models.sources import EMBEDDED, embedded_model
from llamac.runtime.benchmark import bench_prompt, run_once
from llamac.runtime.read_bandwidth import ReadBandwidth

GOALS = {"decode_ratio": 1.0, "first_character_seconds": 1.5, "compile_warm_seconds": 20.0}
"""Decode at least at par with llama.cpp's; the other two at most these."""
PARTS = ("speed", "start", "compile")


def time_speed(options: argparse.Namespace, artifact: Path) -> dict[str, Any]:
    """Prefill and decode of both, interleaved."""
    tokens, new = options.prompt_tokens, options.new_tokens
    with llamac.load(artifact, threads=options.threads) as model:
        prompt = bench_prompt(tokens, model.vocab_size)
        runs = {"llamac": lambda: run_once(model, prompt, new)}
        if options.llama_cpp is None:
            return _interleaved(runs, options, model.plan.memory.weight_bytes_per_token)
        with LlamaCpp(options.llama_cpp, embedded_model(), options.threads, tokens + new) as peer:
            runs["llama.cpp"] = lambda: peer.run(prompt, new)
            found = _interleaved(runs, options, model.plan.memory.weight_bytes_per_token)
        return {**found, "llama_cpp_python": peer.version}


def _interleaved(runs: dict[str, Any], options: argparse.Namespace, weight_bytes: int) -> dict[str, Any]:
    bandwidth = ReadBandwidth(options.threads)
    for run in runs.values():
        run()  # pages in, threads started
    prefill: dict[str, list[float]] = {name: [] for name in runs}
    decode: dict[str, list[float]] = {name: [] for name in runs}
    reads = [bandwidth.measure()]
    for repeat in range(options.repeats):
        for name in sorted(runs, reverse=repeat % 2 == 1):
            first, rest = runs[name]()
            prefill[name].append(options.prompt_tokens / first)
            decode[name].append((options.new_tokens - 1) / rest)
            reads.append(bandwidth.measure())
        line = ", ".join(f"{name} {prefill[name][-1]:.0f} / {decode[name][-1]:.1f}" for name in runs)
        print(f"repeat {repeat + 1} of {options.repeats}: prefill / decode tokens/s: {line}", file=sys.stderr)
    return _speed_figures(prefill, decode, statistics.median(reads), weight_bytes)


def _speed_figures(
    prefill: dict[str, list[float]], decode: dict[str, list[float]], read: float, weight_bytes: int
) -> dict[str, Any]:
    speeds = {
        name: {
            "prefill_tokens_per_second": round(statistics.median(prefill[name]), 1),
            "decode_tokens_per_second": round(statistics.median(decode[name]), 2),
            "decode_runs": [round(value, 2) for value in decode[name]],
            "prefill_runs": [round(value, 1) for value in prefill[name]],
        }
        for name in prefill
    }
    found: dict[str, Any] = {"speed": speeds, "read_bandwidth_gb_per_s": round(read / 1e9, 2)}
    weights = statistics.median(decode["llamac"]) * weight_bytes
    found["llamac_decode_fraction_of_read_bandwidth"] = round(weights / read, 3)
    if "llama.cpp" in prefill:
        for name, rows in (("prefill_ratio", prefill), ("decode_ratio", decode)):
            pairs = zip(rows["llamac"], rows["llama.cpp"], strict=True)
            found[name] = round(statistics.median(ours / theirs for ours, theirs in pairs), 3)
    return found


def time_start(artifact: Path, repeats: int) -> dict[str, Any]:
    """`llamac run` from the start of the process to the first character on stdout."""
    words = ["run", str(artifact), "--prompt", "The capital of France is", "--max-new-tokens", "8"]
    command = [sys.executable, "-m", "llamac", *words, "--temperature", "0", "--quiet"]
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if not process.stdout.read(1):
                raise SystemExit(f"llamac run printed nothing, exit code {process.wait()}")
            seconds.append(time.perf_counter() - started)
            process.stdout.read()
    return {
        "first_character_seconds": round(statistics.median(seconds[1:]), 3),
        "first_character_runs": [round(value, 3) for value in seconds[1:]],
        "first_run_seconds": round(seconds[0], 3),
    }


def time_compile(folder: Path, repeats: int) -> dict[str, Any]:
    """`llamac compile smollm2-135m`, with an empty compiler cache and then with the one that this left."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZIG_")}
    environment["LLAMAC_CACHE_DIR"] = str(folder / "cache")
    words = ["compile", EMBEDDED, "--target", "cpu", "--quantize", "keep", "-o", str(folder / "timed.llamac")]
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "llamac", *words], env=environment, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        seconds.append(time.perf_counter() - started)
    return {
        "compile_cold_seconds": round(seconds[0], 2),
        "compile_warm_seconds": round(statistics.median(seconds[1:]), 2),
        "compile_warm_runs": [round(value, 2) for value in seconds[1:]],
    }


def print_table(found: dict[str, Any]) -> None:
    """The figures for people."""
    for name, row in found.get("speed", {}).items():
        line = (
            f"prefill {row['prefill_tokens_per_second']:8.1f} tokens/s   decode {row['decode_tokens_per_second']:7.2f}"
        )
        print(f"  {name:10} {line} tokens/s")
    if "decode_ratio" in found:
        print(f"  ratio      prefill {found['prefill_ratio']:8.3f}            decode {found['decode_ratio']:7.3f}")
    if "speed" in found:
        fraction = found["llamac_decode_fraction_of_read_bandwidth"]
        print(f"  plain memory read {found['read_bandwidth_gb_per_s']} GB/s; llamac decodes at {fraction:.0%} of it")
    if "first_character_seconds" in found:
        print(f"  llamac run, process start to first character: {found['first_character_seconds']} s", end="")
        print(f" ({found['first_run_seconds']} s the first time)")
    if "compile_warm_seconds" in found:
        print(f"  llamac compile: {found['compile_warm_seconds']} s warm, {found['compile_cold_seconds']} s cold cache")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = sys.executable if importlib.util.find_spec("llama_cpp") else None
    peer = os.environ.get("LLAMAC_BENCH_LLAMA_CPP", own)
    parser.add_argument("--llama-cpp", default=peer, metavar="PYTHON", help="an interpreter that has llama_cpp")
    parser.add_argument("--only", choices=PARTS, help="one part instead of all three")
    parser.add_argument("--threads", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="[%(default)s]")
    parser.add_argument("--new-tokens", type=int, default=128, help="[%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--artifact", type=Path, help="SmolLM2-135M compiled before, instead of a fresh one")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_args()


def main() -> int:
    """The program; figures only, whether goals are met is for the reader (the load of the machine decides)."""
    options = _options()
    print(machine_line(), file=sys.stderr)
    if os.getloadavg()[0] > 1:
        print("other processes are busy: wait until they are not, or these figures mean little", file=sys.stderr)
    if options.llama_cpp is None:
        print("llama.cpp is not timed: name a Python that has it, --llama-cpp PYTHON", file=sys.stderr)
    parts = [options.only] if options.only else list(PARTS)
    found: dict[str, Any] = {**machine(), "threads": options.threads}
    with tempfile.TemporaryDirectory(prefix="llamac-day-one-") as name:
        artifact = options.artifact or Path(name) / "smollm2-135m.llamac"
        if options.artifact is None and parts != ["compile"]:
            llamac.compile(EMBEDDED, output=artifact)
        if "speed" in parts:
            found |= time_speed(options, artifact)
        if "start" in parts:
            found |= time_start(artifact, options.repeats)
        if "compile" in parts:
            found |= time_compile(Path(name), min(options.repeats, 3))
    found["goals"] = GOALS
    print(json.dumps(found)) if options.json else print_table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
