"""Exported files in llama.cpp itself, which comes with llama-cpp-python, a build of some minutes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gguf_llama_cpp.py"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "llama4"])
def test_llama_cpp_loads_every_type_and_chooses_alike(model: str) -> None:
    """And its own quantizer makes the same blocks, or K blocks that are no better."""
    own = sys.executable if importlib.util.find_spec("llama_cpp") else None
    peer = os.environ.get("LLAMAC_BENCH_LLAMA_CPP", own)
    if peer is None:
        pytest.skip("no llama.cpp: make bench-peers, or LLAMAC_BENCH_LLAMA_CPP=PYTHON with llama-cpp-python")
    command = [sys.executable, str(BENCH), "--model", model, "--threads", "1", "--llama-cpp", peer]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("same choices") == 11
