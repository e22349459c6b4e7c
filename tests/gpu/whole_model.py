"""One case on a GPU against torch in fp32, with the same weights: python tests/gpu/whole_model.py FILE [--careful].

Prompts, decode steps of every size, the same again, and greedy text with steps on their way ahead. --careful: one
launch at a time (`careful_driver`).
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "gpu"))
from careful_driver import CarefulDriver
from opened_case import OpenedCase

from llamac.runtime.running_ahead import Draws, rows_ahead
from llamac.runtime.sampler import SamplerOptions
from llamac.runtime.session import Feed

CONTEXT = 1024
TOGETHER = (1, 2, 3, 8, 16, 40)
"""Sequences of a decode step: a bucket each."""

AHEAD = 12
"""Steps that run ahead."""

TOLERANCE = {"bf16": 3e-2, "fp8": 6e-2, "f16": 2e-2, "fp8-activations": 0.15}
"""Largest error of a logit against fp32, relative to the largest logit, by what is rounded most."""

SHOWN = 12
"""Lines of one kind."""

NEARLY_BEST = 1e-3
"""How far a token's logit may lie below the largest of a plain step, relative to that: other kernels found it."""


def main() -> int:
    """The exit code: 0 when everything was right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--careful", action="store_true")
    options = parser.parse_args()
    with OpenedCase(options.file, CONTEXT, max(TOGETHER), CarefulDriver if options.careful else None) as case:
        about, weights = case.about, case.weights
        found = steps(case)
        failed = said(about, unequal(found, steps(case)))
        failed += said(about, ahead(case, None))
        failed += said(about, ahead(case, lambda step: [(SamplerOptions(), 0)]))
    failed += said(about, wrong(about, found, reference(about, weights)))
    said(about, [] if failed else ["is right"])
    return 1 if failed else 0


def said(about: dict[str, Any], lines: list[str]) -> int:
    """Print what was found of the case at once, for something worse may follow; how many lines."""
    for line in lines[:SHOWN]:
        print(f"{about['case']}: {line}", flush=True)
    if len(lines) > SHOWN:
        print(f"{about['case']}: ... and {len(lines) - SHOWN} more", flush=True)
    return len(lines)


def prompts(vocab: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, vocab, size).tolist() for size in (700, 19, 1)]


def steps(case: OpenedCase) -> dict[str, Any]:
    """The last logits of each prompt: all of it in one step, and the last token decoded beside others.

    What each is called ends in the number of its prompt.
    """
    session, texts = case.session, prompts(case.device.vocab_size)
    found: dict[str, Any] = {}
    for number, ids in enumerate(texts):
        sequence = session.open()
        found[f"prompt {number}"] = session.prefill(sequence, ids).copy()
        sequence.close()
    for count in TOGETHER:
        chosen = [n % len(texts) for n in range(count)]
        sequences = [session.open() for _ in chosen]
        for sequence, number in zip(sequences, chosen, strict=True):
            if texts[number][:-1]:
                session.prefill(sequence, texts[number][:-1])
        together = session.step([Feed(s, texts[n][-1:]) for s, n in zip(sequences, chosen, strict=True)])
        for row, number in enumerate(chosen):
            found[f"row {row} of {count}, prompt {number}"] = together[row].copy()
        for sequence in sequences:
            sequence.close()
    return found


def unequal(found: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """The steps that gave other bits the second time."""
    return [f"{name}: the same step gave other bits again" for name in found if not _same(found[name], again[name])]


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(one.view(np.int32), other.view(np.int32))


def ahead(case: OpenedCase, draws: Draws | None) -> list[str]:
    """Greedy text of which each step takes its token from the one before on the GPU, against plain steps."""
    session, (_, ids, _) = case.session, prompts(case.device.vocab_size)
    first, second = session.open(), session.open()
    tokens = [int(session.prefill(first, ids).argmax())]
    first.reserve(len(ids) + AHEAD + 1)
    tokens += [int(row[0, 0]) for row in rows_ahead(session, [first], tokens, AHEAD, draws)]
    session.prefill(second, ids)
    kind, failed = "greedy" if draws is None else "drawn", []
    for place, (token, following) in enumerate(pairwise(tokens)):
        logits = session.step([Feed(second, [token])])[0]
        below = (logits.max() - logits[following]) / np.abs(logits).max() if 0 <= following < logits.size else np.inf
        if not below <= NEARLY_BEST:
            failed.append(f"{kind} token {place}: {following} is {below:.2g} below the best, {logits.argmax()}")
    first.close()
    second.close()
    return failed


def wrong(about: dict[str, Any], found: dict[str, Any], expected: list[Any]) -> list[str]:
    """The steps whose logits are further from torch's than the types allow; the worst of each kind is printed."""
    kinds = [kind for kind in ("fp8-activations", "fp8") if kind in about["quantize"] or kind == about["kv"]]
    tolerance = TOLERANCE[(*kinds, about["kv"])[0]]
    failed, worst = [], dict[str, float]()
    for name, logits in found.items():
        wanted = expected[int(name[-1])]
        error = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
        kind = "prompts" if name.startswith("prompt") else f"decoding {name.partition(' of ')[2].partition(',')[0]}"
        worst[kind] = max(error, worst.get(kind, 0.0)) if error == error else np.inf
        if not error < tolerance:
            failed.append(f"{name}: relative error {error:.2g}, at most {tolerance}")
    shown = ", ".join(f"{kind} {error:.2g}" for kind, error in worst.items())
    print(f"{about['case']}: relative errors {shown} (at most {tolerance})", flush=True)
    return failed


def reference(about: dict[str, Any], weights: Any) -> list[Any]:
    """The last logits of each prompt from torch in fp32."""
    import torch
    from torch_llama import TorchLlama

    torch.backends.cuda.matmul.allow_tf32 = False
    model = TorchLlama(about, weights, torch.float32, 1, CONTEXT)
    expected = []
    with torch.no_grad():
        for ids in prompts(about["config"]["vocab_size"]):
            given = torch.tensor([ids], device="cuda")
            expected.append(model(given, torch.arange(len(ids), device="cuda"))[0, -1].float().cpu().numpy())
    return expected


if __name__ == "__main__":
    sys.exit(main())
