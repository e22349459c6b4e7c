"""Times a loaded model: first token, prefill and decode, each repeat beside a plain read of memory.

Memory speed on shared machines wanders by tens of percent within minutes, so the read is measured before and after
every repeat, and all figures are medians over the repeats.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamac.errors import LlamacError

from .model import GenerateOptions, Model
from .ranked import RankedRows
from .read_bandwidth import ReadBandwidth
from .session import Feed, Session
from .speculation.proposal import SpeculationCounts


@dataclass(frozen=True)
class Repeat:
    """One timed run, in seconds, and the memory read around it, in bytes per second.

    decode_steps: tokens after the first one. speculation: what guessing did, None without.
    """

    first_token_seconds: float
    decode_seconds: float
    decode_steps: int
    read_bytes_per_second: float
    speculation: SpeculationCounts | None = None


def bench_prompt(tokens: int, vocab_size: int) -> list[int]:
    """A fixed prompt of ids spread over the vocabulary: speed does not depend on what they mean."""
    return [(7919 * index + 11) % vocab_size for index in range(tokens)]


def check_sizes(model: Model, prompt_tokens: int, new_tokens: int) -> None:
    """LLC0809 when prompt and continuation do not fit the context together."""
    total = prompt_tokens + new_tokens - 1
    if total > model.context:
        reason = f"{prompt_tokens} + {new_tokens} tokens need {total} places, the context holds {model.context}"
        raise LlamacError("LLC0809", "bench", reason, "ask for fewer tokens")


def run_once(model: Model, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """Prefill and greedy decode of a fresh sequence; (seconds to the first token, seconds for all the others)."""
    sequence = model.session.open()
    likeliest = _likeliest(model.session)
    try:
        started = time.perf_counter()
        token = int(np.argmax(model.session.prefill(sequence, prompt)))
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = likeliest(Feed(sequence, [token]))
        return first - started, time.perf_counter() - first
    finally:
        sequence.close()


def _likeliest(session: Session) -> Callable[[Feed], int]:
    """A step of one row that gives the likeliest id, as generation does it: ranked by the code where it can."""
    if session.most_top:
        ranked = RankedRows.empty(1, 1)
        return lambda feed: int(session.step_ranked([feed], ranked).ids[0, 0])
    row = np.empty((1, session.device.vocab_size), np.float32)
    return lambda feed: int(np.argmax(session.step([feed], row)))


def speculate_once(
    model: Model, prompt: list[int], new_tokens: int, options: GenerateOptions
) -> tuple[float, float, SpeculationCounts | None]:
    """As `run_once`, with tokens guessed as the options say; also what became of the guesses."""
    given: GenerateOptions = {**options, "max_new_tokens": new_tokens, "temperature": 0.0, "ignore_stop_ids": True}
    outcome = model.generate(prompt, **given)
    timings = outcome.timings
    return timings.first_token_seconds, timings.total_seconds - timings.first_token_seconds, outcome.speculation


def repeat_runs(
    model: Model, prompt_tokens: int, new_tokens: int, repeats: int, options: GenerateOptions | None = None
) -> Iterator[Repeat]:
    """`repeats` timed runs, each between two reads of memory; `options`, when given, say how tokens are guessed."""
    prompt = bench_prompt(prompt_tokens, model.vocab_size)
    bandwidth = ReadBandwidth(model.threads)
    before = bandwidth.measure()
    for _ in range(repeats):
        counts = None
        if options is None:
            first, rest = run_once(model, prompt, new_tokens)
        else:
            first, rest, counts = speculate_once(model, prompt, new_tokens, options)
        after = bandwidth.measure()
        yield Repeat(first, rest, new_tokens - 1, (before + after) / 2, counts)
        before = after


def summarize(rows: list[Repeat], prompt_tokens: int, weight_bytes_per_token: int) -> dict[str, Any]:
    """Medians over the repeats, under the names of `llamac bench --json`; None for decode when nothing was decoded."""
    first = statistics.median(row.first_token_seconds for row in rows)
    read = statistics.median(row.read_bytes_per_second for row in rows)
    rates = [row.decode_steps / row.decode_seconds for row in rows if row.decode_steps]
    decode = statistics.median(rates) if rates else None
    weights = None if decode is None else decode * weight_bytes_per_token
    paired = [rate * weight_bytes_per_token / row.read_bytes_per_second for rate, row in zip(rates, rows, strict=False)]
    return {
        "time_to_first_token_ms": round(first * 1e3, 3),
        "prefill_tokens_per_second": round(prompt_tokens / first, 2),
        "decode_tokens_per_second": None if decode is None else round(decode, 2),
        "decode_ms_per_token": None if decode is None else round(1e3 / decode, 4),
        "weight_bytes_per_token": weight_bytes_per_token,
        "weight_read_gb_per_s": None if weights is None else round(weights / 1e9, 3),
        "read_bandwidth_gb_per_s": round(read / 1e9, 3),
        "decode_fraction_of_read_bandwidth": round(statistics.median(paired), 4) if paired else None,
        "speculation": _total(rows),
    }


def _total(rows: list[Repeat]) -> dict[str, float] | None:
    """What guessing did over all repeats."""
    found = [row.speculation for row in rows if row.speculation is not None]
    if not found:
        return None
    sums = (sum(getattr(counts, name) for counts in found) for name in ("steps", "drafted", "accepted"))
    return SpeculationCounts(*sums).to_json()
