"""An artifact behind transformers' `generate()`, and `torch.compile(backend="llamac")`, beside transformers itself.

    python bench/torch_adapters.py [--pairs 5] [--threads 2] [--json]

SmolLM2-135M in f32 on both sides, the same threads, one after the other in pairs; medians of seconds. Tokens must be
equal, and logits within 1e-4 of the largest, or the program fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import machine
from _reference import TransformersReference

import llamac

Run = Callable[[], Any]
PROMPTS = ("The capital of France is", "Once upon a time there was", "Water boils when")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        rows = [_measured(*case, options.pairs) for case in _cases(Path(folder), options.threads)]
    if options.json:
        print(json.dumps({"machine": machine(), "threads": options.threads, "pairs": options.pairs, "rows": rows}))
        return
    print(f"{machine()}, {options.threads} threads, medians of {options.pairs} pairs")
    for row in rows:
        print(f"{row['case']:<34} llamac {row['llamac']:7.3f} s   torch {row['torch']:7.3f} s   {row['ratio']:.2f}x")


def _cases(folder: Path, threads: int) -> list[tuple[str, Run, Run, bool]]:
    """(name, ours, theirs, whether results are tokens)."""
    import torch

    from llamac.torch import LlamacModel, tokenizer_of

    llamac.compile("smollm2-135m", output=folder / "f32.llamac", quantize="f32")
    theirs = TransformersReference("smollm2-135m")._model
    ours = LlamacModel.from_artifact(folder / "f32.llamac", threads=threads)
    tokenizer = tokenizer_of(ours)
    compiled = torch.compile(copy.deepcopy(theirs), backend="llamac", options={"threads": threads})
    stepping = copy.deepcopy(theirs)
    stepping.forward = torch.compile(stepping.forward, backend="llamac", options={"threads": threads})
    found = []
    for kind in ("dynamic", "static"):
        batch = dict(tokenizer([PROMPTS[0]], return_tensors="pt"))
        how = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False, "cache_implementation": kind}
        runs = [lambda m=model, b=batch, h=how: m.generate(**b, **h) for model in (stepping, theirs)]
        found.append((f"compiled forward, {kind} cache, 48", *runs, True))
    for name, prompts, steps, beams in (("1 prompt", 1, 48, 1), ("3 prompts", 3, 32, 1), ("4 beams", 1, 24, 4)):
        batch = dict(tokenizer(list(PROMPTS[:prompts]), return_tensors="pt", padding=True))
        how = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "num_beams": beams}
        runs = [lambda m=model, b=batch, h=how: m.generate(**b, **h) for model in (ours, theirs)]
        found.append((f"generate, {name}, {steps} tokens", *runs, True))
    for rows, tokens in ((1, 128), (4, 32)):
        ids = torch.randint(0, 40000, (rows, tokens), generator=torch.Generator().manual_seed(1))
        runs = [lambda m=model, i=ids: m(i, use_cache=False).logits for model in (compiled, theirs)]
        found.append((f"forward, {rows} x {tokens} tokens", *runs, False))
    return found


def _measured(name: str, ours: Run, theirs: Run, are_tokens: bool, pairs: int) -> dict[str, Any]:
    """Medians of both, after one run each whose results are compared."""
    a, b = ours(), theirs()
    distance = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
    if distance > (0 if are_tokens else 1e-4 * float(b.abs().max())):
        raise SystemExit(f"{name}: the results differ by {distance}")
    seconds: list[list[float]] = [[], []]
    for _ in range(pairs):
        for run, found in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    own, other = map(statistics.median, seconds)
    return {"case": name, "llamac": own, "torch": other, "ratio": other / own, "difference": distance}


if __name__ == "__main__":
    main()
