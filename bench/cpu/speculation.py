"""What guessing tokens brings: steps of several rows beside one, the ranking head, prompt lookup, and a draft.

python bench/cpu/speculation.py                                    (SmolLM2-135M, an int4 copy of it as the draft)
python bench/cpu/speculation.py --artifact big.llamac --draft small.llamac --repeats 9 --json

Whatever is compared is timed in turn, and figures are medians of the ratios within a turn. Every guessed text is
compared with the plain one: they must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from _machine import machine, machine_line

import llamac
from llamac.runtime.model import Model
from llamac.runtime.ranked import RankedRows
from llamac.runtime.sampler import Sampler, SamplerOptions
from llamac.runtime.session import Feed, Session

ROWS = (1, 2, 3, 4, 5, 6, 7, 8)
PAST = 64
"""Tokens in the cache before the steps that are timed."""

STORY = (
    "Anna has three apples, two pears and a small red box. She puts the small red box under the old oak table, "
    "because the small red box is a present for her brother, who likes apples, pears and small boxes."
)
TEXTS = {
    "copy": f"Copy this text exactly.\nText: {STORY}\nCopy: {STORY}\nText: {STORY}\nCopy: {STORY[:24]}",
    "edit": f"Text: {STORY}\nThe same text with Ben for Anna: {STORY.replace('Anna', 'Ben')[:24]}",
    "story": "Once upon a time, in a village by the sea,",
}
"""Name -> prompt: one that is repeated whole, one that is repeated with changes, one with nothing to repeat."""


def in_turn(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, one run of each after the other."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    for _ in range(repeats):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return times


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios within a turn."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 4)


def batches(model: Model, repeats: int) -> list[dict[str, float]]:
    """A step of several rows of one text, beside a step of one."""
    session = model.session
    sequence = session.open()
    ids = [(7919 * n + 11) % model.vocab_size for n in range(PAST + max(ROWS))]
    session.prefill(sequence, ids[:PAST])

    def step(rows: int) -> Callable[[], None]:
        def run() -> None:
            ranked = RankedRows.empty(rows, 1)
            session.step_ranked([Feed(sequence, ids[PAST : PAST + rows], "all")], ranked)
            sequence.truncate(PAST)

        return run

    times = in_turn({str(rows): step(rows) for rows in ROWS}, 8 * repeats)
    sequence.close()
    return [
        {
            "rows": rows,
            "ms": round(statistics.median(times[str(rows)]) * 1e3, 4),
            "cost": (cost := median_ratio(times[str(rows)], times["1"])),
            "tokens_per_cost": round(rows / cost, 3),
        }
        for rows in ROWS
    ]


def heads(model: Model, repeats: int) -> dict[str, float]:
    """A token with ranked logits, beside one with all of them: seconds of the former over those of the latter."""
    ways = {
        "greedy": {"temperature": 0.0},
        "top_k": {"temperature": 0.8, "top_k": 40},
        "top_p": {"temperature": 0.8, "top_p": 0.9},
    }
    found = {}
    for name, options in ways.items():
        given: Any = {"max_new_tokens": 24, "ignore_stop_ids": True, "seed": 1, **options}

        def ranked(given: Any = given) -> None:
            model.generate(TEXTS["story"], **given)

        def whole(given: Any = given) -> None:
            with _whole_rows():
                model.generate(TEXTS["story"], **given)

        times = in_turn({"ranked": ranked, "whole": whole}, 2 * repeats)
        found[name] = median_ratio(times["ranked"], times["whole"])
    return found


class _whole_rows:
    """Inside, nothing is ranked: every row of logits is written and read."""

    def __enter__(self) -> None:
        self._plain = Session.most_top
        Session.most_top = property(lambda session: 0)  # type: ignore[method-assign,assignment]

    def __exit__(self, *_: object) -> None:
        Session.most_top = self._plain  # type: ignore[method-assign]


def guessing(model: Model, way: str, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Texts with guesses and without, at their own speeds after the first token."""
    rows = []
    for name, prompt in TEXTS.items():
        given: Any = {"max_new_tokens": tokens, "temperature": 0.0, "ignore_stop_ids": True}
        rates: dict[str, list[float]] = {"off": [], way: []}
        for _ in range(repeats + 1):
            outcomes = {each: model.generate(prompt, speculate=each, **given) for each in rates}
            assert outcomes["off"].token_ids == outcomes[way].token_ids, "guesses changed the text"
            for each, outcome in outcomes.items():
                seconds = outcome.timings.total_seconds - outcome.timings.first_token_seconds
                rates[each].append((len(outcome.token_ids) - 1) / seconds)
        counts = outcomes[way].speculation
        assert counts is not None
        rows.append(
            {
                "text": name,
                "plain_tokens_per_second": round(statistics.median(rates["off"][1:]), 1),
                "tokens_per_second": round(statistics.median(rates[way][1:]), 1),
                "ratio": median_ratio(rates[way][1:], rates["off"][1:]),
                **counts.to_json(),
            }
        )
    return rows


def draws(vocabulary: int, repeats: int) -> dict[str, float]:
    """Microseconds of a draw from a whole row of this many logits: what a ranked list mostly saves."""
    row = (np.random.default_rng(1).standard_normal(vocabulary) * 4).astype(np.float32)
    found = {}
    for name, options in {"top_k": {"top_k": 40}, "top_p": {"top_p": 0.9}, "plain": {}}.items():
        sampler = Sampler(SamplerOptions(temperature=0.8, seed=1, **options))  # type: ignore[arg-type]
        times = in_turn({"draw": lambda sampler=sampler: sampler.sample(row) and None}, 5 * repeats)  # type: ignore[misc]
        found[name] = round(statistics.median(times["draw"]) * 1e6, 1)
    return found


def measure(target: Path, draft: Path | None, threads: int, tokens: int, repeats: int) -> dict[str, Any]:
    """All figures of one model."""
    with llamac.load(target, threads=threads, context=1024, draft=draft) as model:
        return {
            **machine(),
            "model": model.name,
            "target": model.target.name,
            "threads": threads,
            "rows": batches(model, repeats),
            "ranked_over_whole_rows": heads(model, repeats),
            "draw_microseconds": draws(model.vocab_size, repeats),
            "lookup": guessing(model, "lookup", tokens, repeats),
            "draft": [] if draft is None else guessing(model, "draft", tokens, repeats),
        }


def print_table(found: dict[str, Any]) -> None:
    """The figures as text."""
    print(f"{found['model']} ({found['target']}, {found['threads']} threads)\n")
    print("rows of a step   ms      of one row   tokens a unit of cost, were every guess right")
    for row in found["rows"]:
        print(f"{row['rows']:8}   {row['ms']:9.3f}   {row['cost']:8.2f}   {row['tokens_per_cost']:10.2f}")
    print("\ntime of a token with ranked logits, of that with whole rows")
    for name, ratio in found["ranked_over_whole_rows"].items():
        print(f"  {name:7} {ratio:.3f}")
    print("a draw from a whole row:", ", ".join(f"{k} {v:.0f} us" for k, v in found["draw_microseconds"].items()))
    for way in ("lookup", "draft"):
        for row in found[way]:
            speeds = f"{row['plain_tokens_per_second']:8.1f} -> {row['tokens_per_second']:8.1f} tokens/s"
            print(
                f"{way:7} {row['text']:6} {speeds} ({row['ratio']:.2f}x), {row['accepted']} of {row['drafted']} right, "
                f"{row['tokens_per_step']:.2f} tokens a step"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="the model; SmolLM2-135M as it is unless given")
    parser.add_argument("--draft", type=Path, help="its draft; an int4 copy of SmolLM2 unless a model is given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="llamac-speculation-") as folder:
        target, draft = given.artifact, given.draft
        if target is None:
            target, draft = Path(folder) / "keep.llamac", draft or Path(folder) / "int4.llamac"
            llamac.compile("smollm2-135m", output=target)
            if given.draft is None:
                llamac.compile("smollm2-135m", output=draft, quantize="int4")
        found = measure(target, draft, given.threads, given.new_tokens, given.repeats)
    if given.json:
        print(json.dumps(found))
    else:
        print_table(found)


if __name__ == "__main__":
    main()
