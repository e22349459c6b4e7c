"""What routing saves: a layer with the sizes of Llama 4 Scout, with 16 experts, against the all-experts form.

    python bench/experts.py                         int4; needs 4 GB of free disk
    python bench/experts.py --quantize int8 --tokens 1 --tokens 64

Three artifacts of one layer with random weights: every token to its best expert (`routed`), every token to all 16
(`dense`: what the references compute), and no experts at all (`rest`: attention, shared expert, embedding, head). All
three run steps of 1, 8, 64 and 512 tokens in turn, and medians are taken. The experts alone are a form's time less that
of `rest`; their floor is the larger of the bytes of the chosen experts over the plain read of memory measured in the
same run, and their share of the dense form's operations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine, machine_line

import llamac
from llamac.models.llama.config import LlamaConfig, MixtureOfExperts
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.runtime.model import Model
from llamac.runtime.read_bandwidth import ReadBandwidth
from llamac.runtime.session import Feed

FORMS = ("routed", "dense", "rest")
TOKENS = (1, 8, 64, 512)
VOCABULARY = 1024


def layer_config(form: str) -> LlamaConfig:
    """One layer of Scout (chunked, rotated, normed) with a small vocabulary."""
    scout = preset("llama-4-scout")
    assert scout.moe is not None and scout.attention is not None
    chosen = {"routed": 1, "dense": scout.moe.experts, "rest": 1}[form]
    moe = MixtureOfExperts(scout.moe.experts, chosen, scout.moe.intermediate_size, (0,))
    dense = form == "rest"
    return replace(
        scout,
        name=f"scout-layer-{form}",
        layers=1,
        vocab_size=VOCABULARY,
        vision=None,
        context_length=8192,
        attention=replace(scout.attention, unrotated=()),
        moe=None if dense else moe,
        # The shared expert is as wide as a routed one.
        intermediate_size=scout.moe.intermediate_size if dense else scout.intermediate_size,
    )


def build(form: str, quantize: str, folder: Path) -> Path:
    """The artifact of one form."""
    path = folder / f"{form}.llamac"
    config = layer_config(form)
    started = time.perf_counter()
    llamac.compile(random_checkpoint(config, 4), output=path, quantize=quantize, tokenizer=False, validate=False)
    size = path.stat().st_size / 1e9
    print(f"{form}: {size:.2f} GB, compiled in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return path


def step_seconds(model: Model, tokens: int) -> float:
    """One step of `tokens` tokens of a fresh sequence."""
    ids = np.random.default_rng(tokens).integers(0, VOCABULARY, tokens).tolist()
    sequence = model.session.open()
    started = time.perf_counter()
    model.session.step([Feed(sequence, ids)])
    seconds = time.perf_counter() - started
    sequence.close()
    return seconds


def measure(models: dict[str, Model], tokens: int, repeats: int) -> dict[str, Any]:
    """Medians of the forms, run in turn, and what they say about the experts."""
    before = {layer: np.array(row) for layer, row in models["routed"].expert_counts().items()}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    reads = []
    for _ in range(repeats):
        bandwidth = ReadBandwidth(models["routed"].threads)
        reads.append(bandwidth.measure())
        for form in FORMS:
            times[form].append(step_seconds(models[form], tokens))
    counts = np.array(models["routed"].expert_counts()[0]) - before.get(0, 0)
    median = {form: statistics.median(times[form]) for form in FORMS}
    chosen = int((counts > 0).sum())
    expert_bytes = (models["dense"].plan.memory.weight_bytes - models["rest"].plan.memory.weight_bytes) / len(counts)
    experts = {form: median[form] - median["rest"] for form in ("routed", "dense")}
    return {
        "tokens": tokens,
        **{f"{form}_ms": round(median[form] * 1e3, 3) for form in FORMS},
        "experts_chosen": chosen,
        "tokens_per_expert": (counts // repeats).tolist(),
        "dense_over_routed": round(experts["dense"] / experts["routed"], 2),
        "read_floor_ms": round(chosen * expert_bytes / statistics.median(reads) * 1e3, 3),
        "share_of_operations_floor_ms": round(experts["dense"] / len(counts) * 1e3, 3),
        "experts_routed_ms": round(experts["routed"] * 1e3, 3),
    }


def print_row(row: dict[str, Any]) -> None:
    """One row for people."""
    print(
        f"{row['tokens']:4d} tokens: step {row['routed_ms']:8.1f} ms routed, {row['dense_ms']:8.1f} dense, "
        f"{row['rest_ms']:7.1f} without experts; experts alone {row['experts_routed_ms']:8.1f} ms, "
        f"{row['dense_over_routed']:5.1f} times less than dense; floors {row['read_floor_ms']:.1f} ms (reading "
        f"{row['experts_chosen']} experts), {row['share_of_operations_floor_ms']:.1f} ms (operations)"
    )
    print(f"      tokens per expert: {row['tokens_per_expert']}")


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantize", default="int4", help="[%(default)s]")
    parser.add_argument("--tokens", type=int, action="append", help="tokens in a step [1, 8, 64, 512]")
    parser.add_argument("--repeats", type=int, default=7, help="[%(default)s]")
    parser.add_argument("--folder", type=Path, help="where to put the artifacts for a while [a temporary one]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    rows = []
    with tempfile.TemporaryDirectory(prefix="llamac-experts-", dir=options.folder) as name:
        paths = {form: build(form, options.quantize, Path(name)) for form in FORMS}
        models = {form: llamac.load(path, context=1024) for form, path in paths.items()}
        for tokens in options.tokens or TOKENS:
            for model in models.values():
                step_seconds(model, tokens)
            rows.append(measure(models, tokens, options.repeats))
            if not options.json:
                print_row(rows[-1])
        for model in models.values():
            model.close()
    if options.json:
        print(json.dumps({"quantize": options.quantize, "rows": rows, **machine()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
