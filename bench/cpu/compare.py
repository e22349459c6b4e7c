"""llamac beside llama.cpp on the same random GGUF files and threads, interleaved, and both beside the machine's limits.

    python bench/cpu/compare.py --llama-cpp PYTHON                      all rows
    python bench/cpu/compare.py --row 1b-q4 --pairs 15 --threads 2

Every row is one model shape in one GGUF block type. llamac compiles the file with `--quantize keep`: the same integers
and scales, activations in int8 with a scale per 32 as llama.cpp has them. A pair is a run of each, in turns first and
second, with the peak of the int8 (or bf16) unit and a plain read of memory measured before, between and after. Figures
are medians over the pairs, ratios medians of the ratios within a pair, with their quartiles. A row's share of the peak
counts two operations for each weight of a matrix and token, and four for each pair of positions, head and element in
attention; its share of the read counts the bytes of weights that a token reads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _llama_cpp import LlamaCpp
from _machine import machine, machine_line
from limits import peak
from random_gguf import write_random_gguf

import llamac
from llamac.models.llama.config import LlamaConfig
from llamac.models.presets import preset
from llamac.runtime.benchmark import bench_prompt, run_once
from llamac.runtime.model import Model
from llamac.runtime.read_bandwidth import ReadBandwidth


@dataclass(frozen=True)
class Row:
    """One comparison: a shape, the block types of its matrices and tables, and the sizes of a run."""

    shape: str
    blocks: str
    table: str
    prompt: int
    new: int
    unit: str


ROWS = {
    "1b-q4": Row("llama-3.2-1b", "q4_0", "q8_0", 512, 64, "int8"),
    "1b-q8": Row("llama-3.2-1b", "q8_0", "q8_0", 512, 48, "int8"),
    "1b-bf16": Row("llama-3.2-1b", "bf16", "bf16", 256, 32, "bf16"),
    "smollm2-q4": Row("smollm2-135m", "q4_0", "q8_0", 512, 128, "int8"),
    "8b-q4": Row("llama-3.1-8b", "q4_0", "q8_0", 256, 24, "int8"),
}


def operations(config: LlamaConfig, tokens: int) -> float:
    """Operations of a prefill: one row of logits."""
    attention = config.hidden_size * config.head_dim * 2 * (config.heads + config.kv_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    scores = 4 * config.heads * config.head_dim * tokens * (tokens + 1) / 2
    return 2 * (config.layers * layer * tokens + config.vocab_size * config.hidden_size) + config.layers * scores


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row."""
    row = ROWS[name]
    config = replace(preset(row.shape), context_length=4096)
    source, artifact = folder / "model.gguf", folder / "model.llamac"
    write_random_gguf(config, row.blocks, row.table, source)
    llamac.compile(source, output=artifact, quantize="keep", tokenizer=False, validate=False)
    with llamac.load(artifact, threads=options.threads) as model:
        if options.llama_cpp is None:
            return _figures(name, model, config, _pairs(row, options, model, None))
        with LlamaCpp(options.llama_cpp, source, options.threads, row.prompt + row.new) as peer:
            return _figures(name, model, config, _pairs(row, options, model, peer))


def _pairs(row: Row, options: argparse.Namespace, model: Model, peer: LlamaCpp | None) -> list[dict[str, Any]]:
    prompt = bench_prompt(row.prompt, model.vocab_size)
    runs = {"llamac": lambda: run_once(model, prompt, row.new)}
    if peer is not None:
        runs["llama.cpp"] = lambda: peer.run(prompt, row.new)
    bandwidth = ReadBandwidth(options.threads)
    for run in runs.values():
        run()
    pairs = []
    for number in range(options.pairs):
        found: dict[str, Any] = {"read": [bandwidth.measure()], "peak": [peak(row.unit, options.threads)]}
        for who in sorted(runs, reverse=number % 2 == 1):
            first, rest = runs[who]()
            found[who] = (row.prompt / first, (row.new - 1) / rest)
            found["read"].append(bandwidth.measure())
            found["peak"].append(peak(row.unit, options.threads))
        pairs.append(found)
        speeds = ", ".join(f"{who} {found[who][0]:.0f} / {found[who][1]:.1f}" for who in runs)
        print(f"pair {number + 1} of {options.pairs}: prefill / decode tokens/s: {speeds}", file=sys.stderr)
    return pairs


def _figures(name: str, model: Model, config: LlamaConfig, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    row, weights = ROWS[name], model.plan.memory.weight_bytes_per_token
    rate = operations(config, row.prompt) / row.prompt
    found: dict[str, Any] = {"row": name, "pairs": len(pairs), "bytes_per_token": weights}
    for who in ("llamac", "llama.cpp"):
        if who in pairs[0]:
            found[who] = {
                "prefill_tokens_per_second": round(statistics.median(p[who][0] for p in pairs), 1),
                "decode_tokens_per_second": round(statistics.median(p[who][1] for p in pairs), 2),
            }
    peaks = [p["llamac"][0] * rate / statistics.mean(p["peak"]) for p in pairs]
    reads = [p["llamac"][1] * weights / statistics.mean(p["read"]) for p in pairs]
    found["prefill_share_of_peak"] = _spread(peaks)
    found["decode_share_of_read"] = _spread(reads)
    if "llama.cpp" in pairs[0]:
        found["prefill_ratio"] = _spread([p["llamac"][0] / p["llama.cpp"][0] for p in pairs])
        found["decode_ratio"] = _spread([p["llamac"][1] / p["llama.cpp"][1] for p in pairs])
    return found


def _spread(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return [round(low, 3), round(middle, 3), round(high, 3)]


def print_row(found: dict[str, Any]) -> None:
    """One row for people."""
    for who in ("llamac", "llama.cpp"):
        if who in found:
            speeds = found[who]
            print(
                f"{found['row']:12s} {who:10s} prefill {speeds['prefill_tokens_per_second']:8.1f}, "
                f"decode {speeds['decode_tokens_per_second']:7.2f} tokens/s"
            )
    for key in ("prefill_ratio", "decode_ratio", "prefill_share_of_peak", "decode_share_of_read"):
        if key in found:
            low, middle, high = found[key]
            print(f"{'':12s} {key.replace('_', ' '):22s} {middle:6.3f}  ({low:.3f} to {high:.3f})")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="only this one")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama-cpp", default=os.environ.get("LLAMAC_BENCH_LLAMA_CPP"), metavar="PYTHON")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    rows = []
    for name in options.row or ROWS:
        with tempfile.TemporaryDirectory(prefix="llamac-cpu-") as folder:
            rows.append(measure(name, options, Path(folder)))
        if not options.json:
            print_row(rows[-1])
    if options.json:
        print(json.dumps({"threads": options.threads, "rows": rows, **machine()}))


if __name__ == "__main__":
    main()
