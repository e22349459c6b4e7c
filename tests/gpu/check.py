"""Everything on a real GPU against torch in fp32 and numpy: `make gpu-test`, on the code of `make gpu-code`.

    python tests/gpu/check.py build/gpu [--kind hip]

1. Every kernel: the tests of tests/backends/gpu with the GPU in the interpreter's place, memory behind arrays guarded.
2. Whole models of every case that is there: the tiny ones and 1B, logits of prompts and of decode steps in batches.
3. The same step twice gives the same bits; a prompt in one step and in several, within the tolerance.

The exit code is 0 only when all of it was right; what was left out, for lack of code or memory, is listed at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "gpu"))
from compile_kernels import ROOT, pytest_command
from opened_case import OpenedCase

from llamac.errors import LlamacError
from llamac.runtime.session import Feed

CONTEXT = 1024
TOLERANCE = {"bf16": 3e-2, "fp8": 6e-2, "f16": 2e-2}
"""Largest error of a logit against fp32, relative to the largest logit, by the type of the cache or of the products."""


def main() -> int:
    """Run all checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", default="cuda", choices=["cuda", "hip"])
    parser.add_argument("--case", default="1b", help="the cases whose names begin so")
    options = parser.parse_args()
    failed = kernels(options.folder, options.kind)
    left_out = []
    files = sorted(options.folder.glob(f"{options.case}*.zip"))
    for path in files:
        try:
            failed += whole_model(path)
        except LlamacError as error:
            left_out.append(f"{path.name}: {error}")
    if not files:
        left_out.append(f"whole models: no code for {options.case} in {options.folder} (make gpu-code)")
    print(
        "\n".join([*(f"LEFT OUT {line}" for line in left_out), *(f"FAILED {line}" for line in failed)] or ["all right"])
    )
    return 1 if failed or left_out else 0


def kernels(folder: Path, kind: str) -> list[str]:
    """The kernels' own tests, on the GPU."""
    environment = os.environ | {"LLAMAC_GPU_KERNELS": f"run {kind} {folder.resolve()}"}
    done = subprocess.run(pytest_command(), env=environment, cwd=ROOT, check=False)
    return [] if done.returncode == 0 else ["kernels: see pytest's report above"]


def whole_model(path: Path) -> list[str]:
    """Logits of one case in every kind of step against torch in fp32, with the same weights."""
    with OpenedCase(path, CONTEXT, 4) as case:
        found = steps(case)
        again = steps(case)
        about, weights = case.about, case.weights
    expected = reference(about, weights)
    tolerance = TOLERANCE["fp8" if "fp8" in (about["kv"], about["quantize"]) else about["kv"]]
    failed = []
    for name, logits in found.items():
        error = np.abs(logits - expected[name]).max() / np.abs(expected[name]).max()
        print(f"{about['case']} {name}: relative error {error:.2g} (at most {tolerance})")
        if not error < tolerance:
            failed.append(f"{about['case']} {name}: relative error {error:.2g}")
        if not np.array_equal(logits, again[name]):
            failed.append(f"{about['case']} {name}: the same step gave other bits the second time")
    return failed


def prompts(vocab: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, vocab, size).tolist() for size in (700, 19, 1)]


def steps(case: OpenedCase) -> dict[str, Any]:
    """The last logits of each prompt: all of it in one or several steps, the last token decoded with the others."""
    session, texts = case.session, prompts(case.device.vocab_size)
    found: dict[str, Any] = {}
    sequences = [session.open() for _ in texts]
    for number, (sequence, ids) in enumerate(zip(sequences, texts, strict=True)):
        if ids[:-1]:
            session.prefill(sequence, ids[:-1])
        sequence_alone = session.open()
        found[f"prompt {number}"] = session.prefill(sequence_alone, ids)
        sequence_alone.close()
    together = session.step([Feed(s, ids[-1:]) for s, ids in zip(sequences, texts, strict=True)])
    found |= {f"decoded {number}": row.copy() for number, row in enumerate(together)}
    for sequence in sequences:
        sequence.close()
    return found


def reference(about: dict[str, Any], weights: Any) -> dict[str, Any]:
    """The same from torch in fp32."""
    import torch
    from torch_llama import TorchLlama

    torch.backends.cuda.matmul.allow_tf32 = False
    model = TorchLlama(about, weights, torch.float32, 1, CONTEXT)
    expected = {}
    with torch.no_grad():
        for number, ids in enumerate(prompts(about["config"]["vocab_size"])):
            given = torch.tensor([ids], device="cuda")
            logits = model(given, torch.arange(len(ids), device="cuda"))[0, -1].float().cpu().numpy()
            expected |= {f"prompt {number}": logits, f"decoded {number}": logits}
    return expected


if __name__ == "__main__":
    sys.exit(main())
