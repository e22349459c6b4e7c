"""How long the compiler's own stages take on large graphs: build, verify, every pass, print, parse.

    python bench/pipeline_scaling.py                            # Llama 3.1 405B, Scout, Maverick, then 5k and 20k ops
    python bench/pipeline_scaling.py --kind gpu --quantize fp8  # the same through the pipeline of h100

No weights are read. Prints seconds a stage, peak memory of the process, and whether time grows with the number of ops.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Callable
from typing import TypeVar

from _machine import machine_line

from llamac.ir.graph import Module
from llamac.ir.parser import parse_module
from llamac.ir.printer import print_module
from llamac.ir.verifier import verify
from llamac.layer_kinds import layer_counts
from llamac.models.graph import build_graph
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.shrink import small_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.models.presets import preset
from llamac.passes.pipelines import parse_quantization, target_pipeline
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pipeline

Result = TypeVar("Result")


def main() -> None:
    """Time the largest models and two graphs a factor of four apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help=f"[{', '.join(PRESETS)}]")
    parser.add_argument("--quantize", default="int4", help="scheme of the pipeline")
    parser.add_argument("--kind", choices=["cpu", "gpu"], default="cpu", help="whose pipeline")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    how = (words.quantize, words.kind)
    rows = [measure(preset(name), *how) for name in words.preset or PRESETS]
    config = preset("llama-3.1-405b")
    for layers in (62, 248):
        rows.append(measure(dataclasses.replace(config, layers=layers, name=f"{layers} layers"), *how))
    small, large = rows[-2:]
    growth = (large["total"] / small["total"]) / (large["captured_ops"] / small["captured_ops"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if words.json:
        print(json.dumps({"machine": machine_line(), "rows": rows, "growth": growth, "peak_rss_bytes": peak}))
        return
    print(machine_line())
    for row in rows:
        stages = ", ".join(f"{k} {v:.2f} s" for k, v in row.items() if k in STAGES)
        print(f"{row['name']}: {row['captured_ops']} ops captured, {row['total']:.2f} s ({stages})")
    print(f"time per op, {large['captured_ops']} against {small['captured_ops']} ops: {growth:.2f} times")
    print(f"peak memory of the process: {peak / 1e6:.0f} MB")


PRESETS = ("llama-3.1-405b", "llama-4-scout", "llama-4-maverick")
STAGES = ("build", "verify", "passes", "print", "parse")


def measure(config: LlamaConfig, scheme: str, kind: str) -> dict[str, float | int | str]:
    """Seconds of every stage for one config, the passes of a kind of target with verification after each."""
    encodings = dict.fromkeys(expected_shapes(config), config.dtype)
    tensors = small_tensors(config, encodings)
    row: dict[str, float | int | str] = {"name": config.name}

    def timed(stage: str, work: Callable[[], Result]) -> Result:
        started = time.perf_counter()
        found = work()
        row[stage] = time.perf_counter() - started
        return found

    module: Module = timed("build", lambda: build_graph(config, tensors))
    row["captured_ops"] = len(module.step.ops)
    timed("verify", lambda: verify(module))
    steps = target_pipeline(kind, layer_counts(config), parse_quantization(scheme), "f16", 512)
    timed("passes", lambda: run_pipeline(module, steps, PassContext()))
    text = timed("print", lambda: print_module(module))
    again = timed("parse", lambda: parse_module(text))
    assert print_module(again) == text
    row["total"] = sum(float(row[stage]) for stage in STAGES)
    return row


if __name__ == "__main__":
    main()
