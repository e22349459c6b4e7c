"""Compiles small artifacts for this kind of processor and for GPUs, to be compared on a machine with both.

    python tests/gpu/compile_files.py --target h100 -o build/gpu

Random weights: a dense model, a Llama 4 with experts and chunks, in bf16, fp8 with a cache in fp8, and int4.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import llamac
from llamac.models.llama.config import AttentionPattern, LlamaConfig, MixtureOfExperts
from llamac.models.random_weights import random_checkpoint

HOST = "x86-64-v3"
RECIPES = {"bf16": {"kv": "bf16"}, "fp8": {"quantize": "fp8", "kv": "fp8"}, "int4": {"quantize": "int4:g64"}}
FILES = ("dense-bf16", "dense-fp8", "dense-int4", "experts-bf16", "experts-int4")


def config(kind: str) -> LlamaConfig:
    """`dense` or `experts`: sizes like a real model's, only fewer."""
    experts = kind == "experts"
    return LlamaConfig(
        name=kind, hidden_size=512, intermediate_size=1024, layers=4, heads=8, kv_heads=2, head_dim=64, vocab_size=2048,
        rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=None, context_length=2048, tied_head=False, dtype="bf16",
        moe=MixtureOfExperts(8, 1, 512, (1, 3)) if experts else None,
        attention=AttentionPattern((3,), 256, True, 512.0, 0.1) if experts else None,
        rope_style="interleaved" if experts else "half_split", architecture="llama4" if experts else "llama",
    )  # fmt: skip


def main() -> int:
    """Compile all of them into FOLDER/files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="h100", help="names as `llamac targets` lists them, with commas")
    parser.add_argument("--file", action="append", choices=FILES, help="only these")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/gpu"))
    options = parser.parse_args()
    folder = options.output / "files"
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.file or FILES:
        kind, _, recipe = name.partition("-")
        path, given = folder / f"{name}.llamac", dict[str, Any](RECIPES[recipe])
        checkpoint = random_checkpoint(config(kind), 5)
        llamac.compile(checkpoint, target=[HOST, *options.target.split(",")], output=path, tokenizer=False, **given)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
