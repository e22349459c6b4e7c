"""How speed falls with length: prefill against the prompt, decode against the context, beside the floor of memory.

    python bench/cpu/context.py                                    llama-3.2-1b, int4, cache f16 and int8, up to 128k
    python bench/cpu/context.py --contexts 131072 --prompts 32768 --kv int8    a real prompt of 32k beside, minutes
    python bench/cpu/context.py model.llamac --json

A decode step at context n reads the weights of a token and the keys and values of n positions. Its floor is that many
bytes over the plain read of memory by as many threads, which is measured before and after each step that is timed;
figures are medians over the pairs. A context is not prefilled: one page of keys and values is computed and copied to
all others, which costs a step the same. Prefill is timed whole, in steps of --max-step-tokens; a prompt of more than
8192 tokens once. At each context its last step is timed too, and what the process holds is looked at meanwhile: the
most, beyond what it held with the caches full, should not grow with the context. The time of a whole prompt that long
is estimated from those steps, their cost being a straight line between contexts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from _machine import machine, machine_line

import llamac
from llamac.runtime.device_cpu import CpuDevice
from llamac.runtime.model import Model
from llamac.runtime.read_bandwidth import ReadBandwidth
from llamac.runtime.run_plan import CachePlan
from llamac.runtime.session import Feed

LONG_PROMPT = 8192
"""Tokens; a longer prompt is timed once."""


@dataclass(frozen=True)
class Decode:
    """One decode step at a context, in seconds and bytes; `ratio` is its time over the floor's."""

    context: int
    seconds: float
    weight_bytes: int
    kv_bytes: int
    read_bytes_per_second: float
    ratio: float


@dataclass(frozen=True)
class LastStep:
    """The last step of a prompt that fills a context: its rows and seconds; what the process held at most, in bytes.

    grown_bytes: how much of that came with the step. plan_bytes: weights, arena and the pages of the context.
    """

    context: int
    tokens: int
    seconds: float
    peak_bytes: int
    grown_bytes: int
    plan_bytes: int


@dataclass(frozen=True)
class Prefill:
    """A whole prompt, in seconds."""

    tokens: int
    seconds: float


def kv_bytes(cache: CachePlan, page_tokens: int, context: int) -> int:
    """Bytes of the keys and values of text that a row sees at the end of a context."""
    if cache.cross:
        return 0
    first = (context - 1) // cache.chunk * cache.chunk if cache.chunk else 0
    return cache.page_bytes * (context - first) // page_tokens


def fill(model: Model, device: CpuDevice, context: int) -> np.ndarray:
    """Put keys and values into the pages of a context and give their page tables, [caches, 1, pages]."""
    size = device.plan.kv_page_tokens
    count = -(-context // size)
    pages = np.arange(count, dtype=np.int32)
    tables = np.ascontiguousarray(np.broadcast_to(pages, (len(device.page_counts), 1, count)))
    step = min(size, device.plan.max_step_tokens)
    for start in range(0, size, step):
        rows = np.arange(start, min(start + step, size), dtype=np.int32)
        one_step(device, (rows * 7919) % model.session.token_ids, rows, tables)
    # The device's caches lie between its weights and its arena.
    for memory, cache in zip(device._buffers[1:-1], device.plan.caches, strict=True):
        filled = memory[: count * cache.page_bytes].reshape(count, cache.page_bytes)
        filled[1:] = filled[0]
    return tables


def one_step(device: CpuDevice, ids: np.ndarray, positions: np.ndarray, tables: np.ndarray) -> float:
    """Run rows of one sequence, the last of which gets logits; seconds."""
    logits = np.empty((1, device.vocab_size), np.float32)
    ids = np.ascontiguousarray(ids, np.int32)
    last = np.array([ids.size - 1], np.int32)
    started = time.perf_counter()
    device.step(ids, positions, np.zeros_like(ids), tables, last, logits)
    return time.perf_counter() - started


def decode(model: Model, context: int, pairs: int, bandwidth: ReadBandwidth) -> Decode:
    """Decode steps at the end of a context, each between two reads."""
    device = model.session.device
    assert isinstance(device, CpuDevice)
    tables = fill(model, device, context)
    position = np.array([context - 1], np.int32)
    weights = device.plan.weight_bytes_per_token
    kept = sum(kv_bytes(cache, device.plan.kv_page_tokens, context) for cache in device.plan.caches)
    seconds, reads, ratios = [], [bandwidth.measure()], []
    for pair in range(pairs + 1):
        taken = statistics.median(one_step(device, np.array([pair]), position, tables) for _ in range(3))
        reads.append(bandwidth.measure())
        if pair:  # the first one finds cold weights
            seconds.append(taken)
            ratios.append(taken * (reads[-2] + reads[-1]) / 2 / (weights + kept))
    read, ratio = statistics.median(reads), statistics.median(ratios)
    return Decode(context, statistics.median(seconds), weights, kept, read, ratio)


def held(name: str = "VmRSS") -> int:
    """Bytes that this process holds now, or (VmHWM) held at most since `forget_peak`."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) * 1024


def forget_peak() -> None:
    """Count the most that the process holds from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def last_step(model: Model, context: int) -> LastStep:
    """The last rows of a prompt of `context` tokens, all in one step."""
    device = model.session.device
    assert isinstance(device, CpuDevice)
    tables, plan = fill(model, device, context), device.plan
    count = min(plan.max_step_tokens, context)
    rows = np.arange(context - count, context, dtype=np.int32)
    ids = (rows * 7919) % model.session.token_ids
    one_step(device, ids[-1:], rows[-1:], tables)  # weights are in memory
    forget_peak()
    before = held()
    seconds = one_step(device, ids, rows, tables)
    peak = held("VmHWM")
    pages = sum(cache.page_bytes for cache in plan.caches) * tables.shape[2]
    planned = plan.weight_bytes + plan.arena_bytes + pages
    return LastStep(context, count, seconds, peak, peak - before, planned)


def estimated(steps: list[LastStep], tokens: int) -> float:
    """Seconds of a whole prompt: the cost of a token is taken to be a straight line between the measured contexts."""
    known = sorted((step.context - step.tokens / 2, step.seconds / step.tokens) for step in steps)
    at = np.arange(tokens)
    return float(np.interp(at, [x for x, _ in known], [y for _, y in known]).sum())


def prefill(model: Model, tokens: int, repeats: int) -> Prefill:
    """A prompt from nothing to the logits of its last token."""
    session, taken = model.session, []
    ids = [(i * 7919) % session.token_ids for i in range(tokens)]
    for _ in range(repeats if tokens <= LONG_PROMPT else 1):
        sequence = session.open()
        started = time.perf_counter()
        for start in range(0, tokens, session.max_step_tokens):
            session.step([Feed(sequence, ids[start : start + session.max_step_tokens])])
        taken.append(time.perf_counter() - started)
        sequence.close()
    return Prefill(tokens, statistics.median(taken))


def measure(path: Path, words: argparse.Namespace) -> tuple[list[Prefill], list[Decode], list[LastStep]]:
    """All prompts and contexts of one artifact, shorter contexts first: memory that was touched stays."""
    longest = max([*words.prompts, *words.contexts])
    bandwidth = ReadBandwidth(words.threads)
    with llamac.load(path, threads=words.threads, context=longest, device="cpu") as model:
        prompts = [prefill(model, n, words.repeats) for n in words.prompts]
        steps = [last_step(model, n) for n in sorted(words.contexts)]
        return prompts, [decode(model, n, words.pairs, bandwidth) for n in words.contexts], steps


def artifacts(words: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """What to measure, by name: the artifact given, or the model compiled with each cache."""
    if words.source.endswith(".llamac"):
        return {Path(words.source).stem: Path(words.source)}
    made = {}
    for kv in words.kv:
        made[f"{words.source} {words.quantize}, {kv} cache"] = path = folder / f"{kv}.llamac"
        options = {"quantize": words.quantize, "kv": kv, "max_step_tokens": words.max_step_tokens, "validate": False}
        llamac.compile(words.source, output=path, random_weights=0, tokenizer=False, **options)
    return made


def show(name: str, prompts: list[Prefill], contexts: list[Decode], steps: list[LastStep]) -> None:
    """One artifact's figures for people."""
    print(name)
    for p in prompts:
        print(f"  prefill {p.tokens:7d} tokens  {p.tokens / p.seconds:8.1f} tokens/s")
    for d in contexts:
        floor = (d.weight_bytes + d.kv_bytes) / d.read_bytes_per_second
        print(
            f"  decode at {d.context:7d}      {1 / d.seconds:8.1f} tokens/s, floor {1 / floor:.1f} "
            f"({d.weight_bytes / 1e6:.0f} + {d.kv_bytes / 1e6:.0f} MB at {d.read_bytes_per_second / 1e9:.1f} GB/s), "
            f"{d.ratio:.2f} times the floor's time"
        )
    for s in steps:
        whole = estimated(steps, s.context)
        print(
            f"  last {s.tokens} rows of {s.context:7d}  {s.tokens / s.seconds:8.1f} tokens/s, at most "
            f"{s.peak_bytes / 1e6:.0f} MB held ({s.plan_bytes / 1e6:.0f} by plan), {s.grown_bytes / 1e6:.1f} MB of it "
            f"new; the whole prompt about {whole:.1f} s ({s.context / whole:.1f} tokens/s)"
        )


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="llama-3.2-1b", help="an artifact, or a preset (random weights)")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--kv", nargs="+", default=["f16", "int8"])
    parser.add_argument("--contexts", nargs="*", type=int, default=[512, 2048, 8192, 32768, 131072])
    parser.add_argument("--prompts", nargs="*", type=int, default=[128, 512, 2048])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="of each prompt")
    parser.add_argument("--max-step-tokens", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    if not words.contexts and not words.prompts:
        parser.error("nothing to measure: give --contexts or --prompts")
    return words


def main() -> None:
    """Measure and print."""
    words, found = options(), {}
    print(machine_line(), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="llamac-context-") as folder:
        for name, path in artifacts(words, Path(folder)).items():
            prompts, contexts, steps = measure(path, words)
            found[name] = {"prefill": [asdict(p) for p in prompts], "decode": [asdict(d) for d in contexts]}
            found[name]["last_step"] = [asdict(s) for s in steps]
            if not words.json:
                show(name, prompts, contexts, steps)
    if words.json:
        print(json.dumps({**machine(), "threads": words.threads, "models": found}))


if __name__ == "__main__":
    main()
