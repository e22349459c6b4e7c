"""Writes the tables and plots of docs/benchmarks/cpu.md from the results of `compare.py` and the programs beside it.

    python bench/cpu/page.py                          from docs/benchmarks/cpu.json
    python bench/cpu/page.py --load FILE              takes what `load.py --json` printed into that file first;
                                                      --context and --speculation likewise

In the page a table stands between `<!-- NAME, written by bench/cpu/page.py -->` and `<!-- end -->`; everything else in
it is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plots import WORDS, plots
from rows import GOALS, RECIPES, ROWS, Goal

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
RESULTS = FOLDER / "cpu.json"
PAGE = FOLDER / "cpu.md"
SECTIONS = ("context", "load", "speculation")
"""Programs beside `compare.py` whose output is a section of the results."""
_TABLE = re.compile(r"(<!-- (\w+), written by bench/cpu/page\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def value_of(goal: Goal, results: dict[str, Any]) -> list[float] | None:
    """Quartiles and median of a goal's figure, one value for qualities; None where it was not measured."""
    kind, *path = goal.figure.split("/")
    if kind == "quality":
        return _quality_ratio(goal, path[0], results)
    if kind == "context":
        return _context_ratio(int(path[0]), results)
    if kind == "load":
        return _load_figure(path[0], results)
    if goal.row not in results["rows"]:
        return None
    found: Any = results["rows"][goal.row]["points"][goal.point].get(kind, {})
    for key in path:
        found = found.get(key, {})
    return found or None


def _quality_ratio(goal: Goal, peer: str, results: dict[str, Any]) -> list[float] | None:
    """KL of llamac's recipe of the row over that of the peer's file in the row.

    Where both ran in one recipe, a standard error of the comparison stands below and above it.
    """
    file = ROWS[goal.row].file
    own = results["quality"].get(ROWS[goal.row].recipe, {}).get("engines", {}).get("llamac")
    other = results["quality"].get(file[0] if file else "", {}).get("engines", {}).get(peer)
    if not own or not other:
        return None
    ratio = own["kl_mean"] / other["kl_mean"]
    if file is None or file[0] != ROWS[goal.row].recipe or "kl_excess" not in other:
        return [float(f"{ratio:.4g}")]
    error = other["kl_excess"][1] / other["kl_mean"]
    return [float(f"{value:.4g}") for value in (ratio - error, ratio, ratio + error)]


def _context_ratio(context: int, results: dict[str, Any]) -> list[float] | None:
    """A decode step's time over the floor's, with the first of the caches that were measured, the default one."""
    for model in results.get("context", {}).get("models", {}).values():
        return next(([row["ratio"]] for row in model["decode"] if row["context"] == context), None)
    return None


def _load_figure(name: str, results: dict[str, Any]) -> list[float] | None:
    """With mapped weights, the default of `load`."""
    if "load" not in results:
        return None
    found = results["load"]["weights"]["map"]
    return [found["held_bytes"] / found["planned_bytes"] if name == "held_of_plan" else found[name]]


def goals_table(results: dict[str, Any]) -> Iterator[str]:
    """Goal beside measured value."""
    yield "| row | figure | goal | stretch | measured (quartiles) | |"
    yield "|---|---|---|---|---|---|"
    for goal in GOALS:
        value = value_of(goal, results)
        sign = "<=" if goal.at_most else ">="
        stretch = "" if goal.stretch is None else f"{goal.stretch:g}"
        words = "not measured" if value is None else _text(value)
        yield f"| {goal.row} | {goal.words} | {sign} {goal.goal:g} | {stretch} | {words} | {_verdict(goal, value)} |"


def _verdict(goal: Goal, measured: list[float] | None) -> str:
    """By the median; a quality that misses by less than its standard error is equal."""
    if measured is None:
        return ""
    value = measured[len(measured) // 2]
    if goal.figure.startswith("quality") and measured[0] <= goal.goal < value:
        return "equal within its error"
    sign = -1 if goal.at_most else 1
    if goal.stretch is not None and sign * value >= sign * goal.stretch:
        return "stretch"
    return "yes" if sign * value >= sign * goal.goal else "no"


def speeds_table(results: dict[str, Any]) -> Iterator[str]:
    """Tokens a second of every engine in every row, with the quality of the recipe."""
    yield "| row | engine | prefill tokens/s | decode tokens/s | KL of its recipe | pairs |"
    yield "|---|---|---|---|---|---|"
    for row in _measured(results):
        for point in row["points"]:
            for who, speeds in point["speeds"].items():
                kinds = [_text(speeds[kind]) if kind in speeds else "" for kind in ("prefill", "decode")]
                kl = _kl(row, who, results)
                yield f"| {_where(row, point)} | {_name(who)} | {kinds[0]} | {kinds[1]} | {kl} | {row['pairs']} |"


def _measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [results["rows"][name] for name in ROWS if name in results["rows"]]


def _where(row: dict[str, Any], point: dict[str, Any]) -> str:
    together = f", {point['sequences']} together" if len(row["points"]) > 1 and point["sequences"] > 1 else ""
    sizes = f"{point['prompt']} + {point['new']}"
    return f"{row['row']} ({sizes}{together})"


def _kl(row: dict[str, Any], who: str, results: dict[str, Any]) -> str:
    """In the row's recipe, or in its file where the peers of a row run that and llamac another recipe."""
    file = ROWS[row["row"]].file
    for recipe in (row["recipe"], file[0] if file else ""):
        found = results["quality"].get(recipe, {}).get("engines", {}).get(who)
        if found:
            return f"{found['kl_mean']:.4f}"
    return ""


def shares_table(results: dict[str, Any]) -> Iterator[str]:
    """What part of the machine's limits llamac reaches."""
    yield "| row | prefill of the peak | decode of the read of the same map | of the read of huge pages | of the roof |"
    yield "|---|---|---|---|---|"
    for row in _measured(results):
        for point in row["points"]:
            shares = point["shares"]
            cells = [_text(shares[kind]) if kind in shares else "" for kind in ("peak", "mapped_read", "read", "roof")]
            yield f"| {_where(row, point)} | {' | '.join(cells)} |"


def ratios_table(results: dict[str, Any]) -> Iterator[str]:
    """llamac's speed over every peer's."""
    yield "| row | times | prefill | decode |"
    yield "|---|---|---|---|"
    for row in _measured(results):
        for point in row["points"]:
            for who, ratios in point["ratios"].items():
                kinds = [_text(ratios[kind]) if kind in ratios else "" for kind in ("prefill", "decode")]
                yield f"| {_where(row, point)} | {_name(who)} | {kinds[0]} | {kinds[1]} |"


def quality_table(results: dict[str, Any]) -> Iterator[str]:
    """KL divergence and the rest for every recipe and engine."""
    yield "| recipe | engine | KL mean | KL p99 | top-1 agreement | perplexity |"
    yield "|---|---|---|---|---|---|"
    for name in RECIPES:
        recipe = results["quality"].get(name, {"engines": {}})
        for who, row in recipe["engines"].items():
            kl, agreement = f"{row['kl_mean']:.5f} | {row['kl_p99']:.4f}", f"{row['top1_agreement']:.1%}"
            yield f"| {recipe['title']} | {_name(who)} | {kl} | {agreement} | {row['perplexity']:.3f} |"


def engines_table(results: dict[str, Any]) -> Iterator[str]:
    """Versions of the engines, and what weights they run."""
    yield "| engine | version | weights |"
    yield "|---|---|---|"
    seen: dict[str, dict[str, str]] = {}
    for row in _measured(results):
        for who, facts in row["engines"].items():
            if who != "llamac" and ROWS[row["row"]].scheme == "keep":
                seen.setdefault(who, facts)
    for who, facts in seen.items():
        yield f"| {_name(who)} | {facts['version']} | {facts['weights']} |"


def machine_text(results: dict[str, Any]) -> Iterator[str]:
    """Where and when."""
    machine, rows = results["machine"], _measured(results)
    dates = sorted({row["date"] for row in rows})
    threads = sorted({row["threads"] for row in rows})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    words = ", ".join(map(str, threads))
    yield f"{machine['cpu']}, {machine['cores']} cores, {words} threads, measured {days}. Limits in the same runs:"
    yield from ("", "| limit | median of the rows (least to most) |", "|---|---|")
    for words, kind, unit, chosen in (
        ("int8 (VNNI) peak", "peak", "G operations/s", "int8"),
        ("bf16 peak", "peak", "G operations/s", "bf16"),
        ("read of huge pages", "read", "GB/s", None),
        ("read of a mapped artifact", "mapped_read", "GB/s", None),
    ):
        values = [
            point["limits"][kind][1]
            for row in rows
            for point in row["points"]
            if point["limits"][kind][1] and chosen in (None, row["unit"])
        ]
        if values:
            low, middle, high = (f"{v / 1e9:.0f}" for v in (min(values), statistics.median(values), max(values)))
            yield f"| {words} | {middle} {unit} ({low} to {high}) |"


def load_table(results: dict[str, Any]) -> Iterator[str]:
    """From the start of a process to the first token, and the memory that it holds then."""
    if "load" not in results:
        yield "Not measured."
        return
    yield "| weights | import ms | load ms | load to first token ms | memory held MB | planned MB |"
    yield "|---|---|---|---|---|---|"
    for way, row in results["load"]["weights"].items():
        times = " | ".join(f"{row[name]:.0f}" for name in ("import_ms", "load_ms", "load_to_first_token_ms"))
        yield f"| {way} | {times} | {row['held_bytes'] / 1e6:.0f} | {row['planned_bytes'] / 1e6:.0f} |"


def context_table(results: dict[str, Any]) -> Iterator[str]:
    """Decode by context, and prefill by prompt, for every kind of cache."""
    if "context" not in results:
        yield "Not measured."
        return
    yield "| model | context | decode tokens/s | weights + cache MB | read GB/s | times the floor |"
    yield "|---|---|---|---|---|---|"
    for name, model in results["context"]["models"].items():
        for row in model["decode"]:
            sizes = f"{row['weight_bytes'] / 1e6:.0f} + {row['kv_bytes'] / 1e6:.0f}"
            read = f"{row['read_bytes_per_second'] / 1e9:.0f} | {row['ratio']:.2f}"
            yield f"| {name} | {row['context']} | {1 / row['seconds']:.1f} | {sizes} | {read} |"
    yield from ("", "| model | prompt | prefill tokens/s |", "|---|---|---|")
    for name, model in results["context"]["models"].items():
        for row in model["prefill"]:
            yield f"| {name} | {row['tokens']} | {row['tokens'] / row['seconds']:.0f} |"
    yield from ("", "![Decode by context](cpu-context.svg)")
    yield from _last_steps(results["context"]["models"])


def _last_steps(models: dict[str, Any]) -> Iterator[str]:
    """The last step of prompts that fill a context: its speed, and the memory that it takes."""
    yield from ("", "| model | context | rows | tokens/s | memory held MB | planned MB | of it new in the step MB |")
    yield "|---|---|---|---|---|---|---|"
    for name, model in models.items():
        for row in model.get("last_step", ()):
            speed = f"{row['tokens']} | {row['tokens'] / row['seconds']:.0f}"
            sizes = " | ".join(f"{row[kind] / 1e6:.1f}" for kind in ("peak_bytes", "plan_bytes", "grown_bytes"))
            yield f"| {name} | {row['context']} | {speed} | {sizes} |"


def speculation_table(results: dict[str, Any]) -> Iterator[str]:
    """Greedy texts with guessed tokens, which are the plain ones token for token."""
    if "speculation" not in results:
        yield "Not measured."
        return
    yield "| guesses from | text | plain tokens/s | with guesses | times | tokens a step |"
    yield "|---|---|---|---|---|---|"
    for way in ("lookup", "draft"):
        for row in results["speculation"][way]:
            plain, speed = row["plain_tokens_per_second"], row["tokens_per_second"]
            numbers = f"{plain:.0f} | {speed:.0f} | {row['ratio']:.2f} | {row['tokens_per_step']:.2f}"
            yield f"| {way} | {row['text']} | {numbers} |"


TABLES: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "goals": goals_table,
    "machine": machine_text,
    "speeds": speeds_table,
    "ratios": ratios_table,
    "shares": shares_table,
    "quality": quality_table,
    "engines": engines_table,
    "context": context_table,
    "load": load_table,
    "speculation": speculation_table,
}


def _text(spread: list[float]) -> str:
    """The median, and the quartiles where there are any."""
    if len(spread) == 1:
        return f"{spread[0]:.3g}"
    low, middle, high = (f"{value:.0f}" if value >= 1000 else f"{value:.3g}" for value in spread)
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def _name(engine: str) -> str:
    return WORDS.get(engine, engine)


def render(page: str, results: dict[str, Any]) -> str:
    """The page with its tables written anew."""

    def fill(match: re.Match[str]) -> str:
        lines = "\n".join(TABLES[match[2]](results))
        return f"{match[1]}\n{lines}\n\n{match[3]}"

    return _TABLE.sub(fill, page)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    for section in SECTIONS:
        parser.add_argument(f"--{section}", type=Path, metavar="JSON", help=f"the output of {section}.py --json")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    given = {name: getattr(options, name) for name in SECTIONS if getattr(options, name)}
    if given:
        results |= {name: json.loads(path.read_text(encoding="utf-8")) for name, path in given.items()}
        options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    for name, text in plots(results).items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.name} and {len(plots(results))} plots", file=sys.stderr)


if __name__ == "__main__":
    main()
