"""Time and peak anonymous memory of compiling large models to int4: a 1B bf16 checkpoint, and an 8B of random weights.

    python bench/compile_memory.py                  both; needs 6 GB of free disk at a time
    python bench/compile_memory.py --case llama-3.2-1b --quantize int8
    python bench/compile_memory.py --case llama-3.1-8b --quantize fp8 --target h100,mi300x    GPU code; 10 GB of disk

The 1B checkpoint is a Hugging Face folder with the shape of Llama 3.2 1B and random weights, written first and deleted
afterwards, as is the artifact. The compiler runs in a process of its own. Every 10 ms the anonymous pages (RssAnon:
heap and stacks, not the cached pages of files) of it and of the C compilers that it starts are added up.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import machine, machine_line
from _processes import anonymous_bytes, family

from llamac.models.checkpoint import Checkpoint
from llamac.models.llama.weights import LAYER_NAMES, OUTER_NAMES
from llamac.models.sources import open_source

HF_CASE, RANDOM_CASE = "llama-3.2-1b", "llama-3.1-8b"
GOAL_BYTES = 1 << 30
POLL_SECONDS = 0.01
_CHUNK_ROWS = 2048

_COMPILE = """
import json, sys, llamac
options = json.loads(sys.argv[1])
llamac.compile(options.pop("source"), tokenizer=False, **options)
"""


def write_checkpoint(name: str, folder: Path) -> int:
    """Write preset `name` with random bf16 weights as a Hugging Face folder, streaming; its bytes of weights."""
    checkpoint = open_source(name, random_weights=1)
    config, scaling = checkpoint.config, checkpoint.config.rope_scaling
    assert config.dtype == "bf16" and scaling is not None and scaling.kind == "llama3"
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": "bfloat16",
        "rope_theta": config.rope_theta,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
    }
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return _write_safetensors(checkpoint, folder / "model.safetensors")


def _write_safetensors(checkpoint: Checkpoint, path: Path) -> int:
    header: dict[str, Any] = {}
    size = 0
    for name, tensor in checkpoint.tensors.items():
        offsets = [size, size + tensor.nbytes]
        header[_stored_name(name)] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        size += tensor.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in checkpoint.tensors.items():
            for start in range(0, tensor.rows, _CHUNK_ROWS):
                file.write(checkpoint.read_rows(name, start, min(start + _CHUNK_ROWS, tensor.rows)).data)
    return size


def _stored_name(name: str) -> str:
    """The Hugging Face name of a weight."""
    for model, stored, _ in OUTER_NAMES:
        if name == model:
            return f"{stored}.weight"
    _, layer, rest = name.split(".", 2)
    stored = next(stored for model, stored, _ in LAYER_NAMES if model == rest)
    return f"model.layers.{layer}.{stored}.weight"


def run_compile(options: dict[str, Any]) -> dict[str, Any]:
    """Compile in a process of its own; seconds, and the peaks of the compiler alone and with its children."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", _COMPILE, json.dumps(options)])
    own = together = 0
    while process.poll() is None:
        pages = [anonymous_bytes(pid) for pid in family(process.pid)]
        own, together = max(own, pages[0]), max(together, sum(pages))
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"compiling {options['source']} failed with exit code {process.returncode}")
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "peak_anonymous_bytes": own, "peak_anonymous_bytes_with_children": together}


def measure(case: str, quantize: str, target: str | None, folder: Path) -> dict[str, Any]:
    """Compile one case in `folder`; a dict of figures. No target is that of `llamac compile`, this machine."""
    output = folder / "out.llamac"
    options: dict[str, Any] = {"source": case, "output": str(output), "quantize": quantize}
    if target is not None:
        options["target"] = target.split(",")
    if case == HF_CASE:
        options["source"] = str(folder)
        source_bytes = write_checkpoint(case, folder)
    else:
        options["random_weights"] = 1
        source_bytes = sum(tensor.nbytes for tensor in open_source(case, random_weights=1).tensors.values())
    found = run_compile(options)
    seconds = found["seconds"]
    return {
        "case": case,
        "source": "hf" if case == HF_CASE else "random",
        "quantize": quantize,
        "target": target,
        "source_bytes": source_bytes,
        "artifact_bytes": output.stat().st_size,
        **found,
        "source_mb_per_second": round(source_bytes / seconds / 1e6, 1),
        "artifact_mb_per_second": round(output.stat().st_size / seconds / 1e6, 1),
        "within_goal": found["peak_anonymous_bytes_with_children"] < GOAL_BYTES,
    }


def print_row(row: dict[str, Any]) -> None:
    """One case for people."""
    own, together = (row[key] / 2**20 for key in ("peak_anonymous_bytes", "peak_anonymous_bytes_with_children"))
    print(f"{row['case']} ({row['source']}, {row['source_bytes'] / 1e9:.2f} GB) to {row['quantize']}", end=" ")
    print(f"for {row['target']}:" if row["target"] else "for this machine:", end=" ")
    print(f"{row['seconds']:.1f} s, {row['source_mb_per_second']:.0f} MB/s read", end="; ")
    print(f"peak anonymous memory {own:.0f} MiB, {together:.0f} MiB with the compilers of code", end=" ")
    print("(goal: under 1 GiB)" if row["within_goal"] else "(MISSES the goal of 1 GiB)")


def main() -> int:
    """The program; exit code 1 when a case misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=(HF_CASE, RANDOM_CASE), help="only this one")
    parser.add_argument("--quantize", default="int4", help="[%(default)s]")
    parser.add_argument("--target", help="as `llamac compile` takes it [this machine]")
    parser.add_argument(
        "--folder", type=Path, help="where to put checkpoint and artifact for a while [a temporary one]"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    rows = []
    for case in options.case or (HF_CASE, RANDOM_CASE):
        with tempfile.TemporaryDirectory(prefix="llamac-memory-", dir=options.folder) as name:
            rows.append(measure(case, options.quantize, options.target, Path(name)))
        if not options.json:
            print_row(rows[-1])
    if options.json:
        print(json.dumps({"cases": rows, **machine()}))
    return 0 if all(row["within_goal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
