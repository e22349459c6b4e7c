"""Two full-width layers of the largest models, compiled and run here: planned memory against measured.

    python bench/slices.py                                    all; needs 10 GB of free disk at a time
    python bench/slices.py --case llama-4-scout --quantize int8

Each slice keeps the sizes, vocabulary and kinds of layer of its model, with random weights. It is compiled and then run
in a process of its own: 1024 tokens of prefill and 8 of decode at a context of 4096, and a picture where it has an
encoder. The plan is what `llamac plan` counts from the config alone (weights, cache and arena). Measured are the bytes
of the weight member, and by how much the anonymous memory of the process grew from before loading to its end: caches,
arena, and a little of Python's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from _machine import machine, machine_line
from _processes import anonymous_bytes

import llamac
from llamac.models.llama.config import LlamaConfig
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.passes.pipelines import parse_quantization
from llamac.planning.machine import find_machine
from llamac.planning.plan import Subject, plan_memory
from llamac.planning.request import Request

CASES = ("llama-3.1-405b", "llama-4-scout", "llama-4-maverick", "llama-3.2-11b-vision")
CONTEXT, PROMPT, NEW, STEP = 4096, 1024, 8, 512
PYTHON_BYTES = 24 << 20
"""What running may add beside the planned memory: numpy, page tables, a row of logits."""

_RUN = """
import json, sys, time
import numpy as np
import llamac
from llamac.runtime.session import Feed
options = json.loads(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
with llamac.load(options["path"], context=options["context"]) as model:
    ids = np.random.default_rng(0).integers(0, model.vocab_size, options["prompt"]).tolist()
    sequence = model.session.open()
    started = time.perf_counter()
    token = int(np.argmax(model.session.prefill(sequence, ids)))
    prefill = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(options["new"]):
        token = int(np.argmax(model.session.step([Feed(sequence, [token])])))
    decode = time.perf_counter() - started
    sequence.close()
    image = 0.0
    if "image" in model.manifest:
        from PIL import Image

        noise = np.random.default_rng(1).integers(0, 256, (600, 900, 3), np.uint8)
        started = time.perf_counter()
        model.generate(ids[:16], images=[Image.fromarray(noise)], max_new_tokens=1)
        image = time.perf_counter() - started
    memory = model.plan.memory
    print(json.dumps({
        "image_s": image, "prefill_s": prefill, "decode_s": decode, "arena": memory.arena_bytes,
        "kv": model.session.device.kv_bytes, "weights": memory.weight_bytes,
    }), flush=True)
    sys.stdin.readline()
"""


def slice_config(name: str) -> LlamaConfig:
    """Two layers of a model that show its kinds: of Llama 4 a rotated one, and one without rotation, with experts."""
    config = preset(name)
    config = replace(config, name=f"{name}-slice", layers=2, vision=None)
    if config.attention is not None and config.moe is not None:
        moe_layers = (0, 1) if 0 in config.moe.layers else (1,)
        config = replace(
            config,
            attention=replace(config.attention, unrotated=(1,)),
            moe=replace(config.moe, layers=moe_layers),
        )
    if config.cross_layers:
        config = replace(config, cross_layers=(1,), vision=preset(name).vision)
    return config


def planned_bytes(config: LlamaConfig, quantize: str) -> dict[str, int]:
    """What `llamac plan` counts for one sequence, from the config alone."""
    encodings = {name: tensor.encoding for name, tensor in random_checkpoint(config, 0).tensors.items()}
    request = Request(parse_quantization(quantize), "f16", CONTEXT, 1, 1, 1, STEP, PROMPT)
    memory, _ = plan_memory(Subject(config.name, config, encodings), request, find_machine("cpu"))
    return {"weights": memory.weights, "kv": memory.kv, "arena": memory.arena}


def run_slice(path: Path) -> dict[str, Any]:
    """Run the artifact in a process of its own; its report, and how much anonymous memory it took."""
    options = {"path": str(path), "context": CONTEXT, "prompt": PROMPT, "new": NEW}
    command = [sys.executable, "-c", _RUN, json.dumps(options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    before = anonymous_bytes(process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    after = anonymous_bytes(process.pid)
    process.communicate("\n")
    if not line:
        raise SystemExit(f"running {path.name} failed")
    return {**json.loads(line), "anonymous": after - before}


def measure(name: str, quantize: str, folder: Path) -> dict[str, Any]:
    """Plan, compile and run one slice."""
    config, path = slice_config(name), folder / "slice.llamac"
    planned = planned_bytes(config, quantize)
    started = time.perf_counter()
    checkpoint = random_checkpoint(config, 4)
    llamac.compile(checkpoint, output=path, quantize=quantize, tokenizer=False, max_step_tokens=STEP, context=CONTEXT)
    compiled = time.perf_counter() - started
    found = run_slice(path)
    return {
        "case": name,
        "quantize": quantize,
        "compile_s": round(compiled, 1),
        "artifact_bytes": path.stat().st_size,
        "planned": planned,
        "allocated": {key: found[key] for key in ("weights", "kv", "arena")},
        "anonymous_bytes": found["anonymous"],
        "image_s": round(found["image_s"], 1),
        "prefill_tokens_per_second": round(PROMPT / found["prefill_s"], 1),
        "decode_tokens_per_second": round(NEW / found["decode_s"], 2),
        "within_plan": planned == {key: found[key] for key in ("weights", "kv", "arena")}
        and found["anonymous"] <= planned["kv"] + planned["arena"] + PYTHON_BYTES,
    }


def print_row(row: dict[str, Any]) -> None:
    """One slice for people."""
    planned, allocated = row["planned"], row["allocated"]
    sizes = ", ".join(f"{key} {planned[key] / 2**20:.1f} / {allocated[key] / 2**20:.1f}" for key in planned)
    verdict = "within the plan" if row["within_plan"] else "OUTSIDE THE PLAN"
    print(
        f"{row['case']}, 2 layers, {row['quantize']}: planned / allocated MiB: {sizes}; anonymous memory grew by "
        f"{row['anonymous_bytes'] / 2**20:.1f} MiB: {verdict}. Compiled in {row['compile_s']:.1f} s, prefill "
        f"{row['prefill_tokens_per_second']:.0f} and decode {row['decode_tokens_per_second']:.1f} tokens/s"
        + (f", a picture in {row['image_s']:.1f} s" if row["image_s"] else "")
    )


def main() -> int:
    """The program; exit code 1 when a slice leaves its plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="only this one")
    parser.add_argument("--quantize", default="int4", help="[%(default)s]")
    parser.add_argument("--folder", type=Path, help="where to put the artifact for a while [a temporary one]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    rows = []
    for case in options.case or CASES:
        with tempfile.TemporaryDirectory(prefix="llamac-slices-", dir=options.folder) as name:
            rows.append(measure(case, options.quantize, Path(name)))
        if not options.json:
            print_row(rows[-1])
    if options.json:
        print(json.dumps({"cases": rows, **machine()}))
    return 0 if all(row["within_plan"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
