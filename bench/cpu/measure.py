"""Measures one row: every engine with its model loaded, run in turns, the machine's limits read around every run."""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
from _peer import Peer
from figures import Measured, Timing, figures, multiples
from limits import MappedRead, peak
from random_gguf import write_random_gguf
from rows import CONTEXT, ROWS, SEED, Point, Row

import llamac
from llamac.models.llama.config import LlamaConfig
from llamac.models.presets import preset
from llamac.runtime.benchmark import bench_prompt, run_once
from llamac.runtime.model import Model
from llamac.runtime.ranked import RankedRows
from llamac.runtime.read_bandwidth import ReadBandwidth
from llamac.runtime.session import Feed, Session

PAUSE = 0.2
"""Seconds before every run: the pools of some engines spin for a while after their work."""
Run = Callable[[Point, list[int]], Timing]


class Limits:
    """The machine's limits, read several times around a run."""

    def __init__(self, unit: str | None, threads: int, artifact: Path) -> None:
        self._unit, self._threads = unit, threads
        self._memory = ReadBandwidth(threads)
        self._mapped = MappedRead(artifact, threads)

    def measure(self) -> Timing:
        """The limits now, of three readings each: the best of the peak, which is only less when a core was stolen."""
        top = max(peak(self._unit, self._threads) for _ in range(3)) if self._unit else 0.0
        return Timing(peak=top, read=_median(self._memory.measure), mapped_read=_median(self._mapped.measure))

    def close(self) -> None:
        """Give the map back."""
        self._mapped.close()


def _median(measure_once: Callable[[], float]) -> float:
    return statistics.median(measure_once() for _ in range(3))


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row, with everything that a reader needs to judge it."""
    row = ROWS[name]
    config = replace(preset(row.shape), context_length=CONTEXT)
    found: dict[str, Any] = {
        "row": name,
        "title": row.title,
        "shape": row.shape,
        "recipe": row.recipe,
        "unit": row.unit,
        "threads": options.threads,
    }
    with ExitStack() as stack:
        source = source_file(row, config, options.models)
        artifact = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.models))) / "model.llamac"
        most = max(point.sequences for point in row.points)
        compile_row(row, source, artifact)
        model = stack.enter_context(
            llamac.load(artifact, threads=options.threads, target=_target(row), context=_length(row), sequences=most)
        )
        runs: dict[str, Run] = {"llamac": _own_run(model)}
        engines: dict[str, Any] = {"llamac": {"version": f"for {model.target.name}", "weights": _own_weights(row)}}
        for engine, python in _usable(row, options):
            assert source is not None
            peer = stack.enter_context(peers.start(engine, python, source, options.threads, _length(row), most))
            runs[engine.name] = _peer_run(peer)
            engines[engine.name] = {"version": peer.version, "weights": _peer_weights(row, engine)}
        limits = Limits(row.unit, options.threads, artifact)
        pairs = min(options.pairs, row.most_pairs or options.pairs)
        measured = _interleaved(row, runs, limits, pairs, model.vocab_size)
        limits.close()
        weight_bytes = model.plan.memory.weight_bytes_per_token
    points = [figures(point, config, weight_bytes) for point in measured]
    for point, found_point in zip(measured, points, strict=True):
        if point.point.sequences > 1 and measured[0].point.sequences == 1:
            found_point["multiple"] = multiples(measured[0], point)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {**found, "pairs": pairs, "date": date, "engines": engines, "points": points}


def _own_weights(row: Row) -> str:
    if row.file is None or row.scheme != "keep":
        return f"random weights compiled with --quantize {row.scheme}"
    return f"random {row.file[0]} blocks, tables {row.file[1]}, --quantize keep"


def _peer_weights(row: Row, engine: peers.Engine) -> str:
    if row.scheme == "keep" or row.file is None:
        return engine.weights
    return f"random {row.file[0]} blocks, tables {row.file[1]}"


def source_file(row: Row, config: LlamaConfig, models: Path) -> Path | None:
    """The random GGUF file of a row, written where it is missing; None for rows without one."""
    if row.file is None:
        return None
    blocks, table = row.file
    path = models / f"{row.shape}-{blocks}-{table}-{CONTEXT}.gguf"
    if not path.exists():
        print(f"writing {path.name}", file=sys.stderr)
        half = path.with_suffix(".partial")
        write_random_gguf(config, blocks, table, half, SEED)
        half.rename(path)
    return path


def compile_row(row: Row, source: Path | None, output: Path) -> None:
    """llamac's artifact of a row."""
    options: dict[str, Any] = {"target": row.target, "tokenizer": False, "validate": False}
    if row.scheme == "keep":
        assert source is not None
        llamac.compile(source, output=output, quantize="keep", **options)
    else:
        options |= {"random_weights": SEED, "context": CONTEXT}
        llamac.compile(row.shape, output=output, quantize=row.scheme, **options)


def _target(row: Row) -> str | None:
    return None if row.target == "cpu" else row.target


def _length(row: Row) -> int:
    """Tokens of the longest sequence, in whole pages of every engine."""
    return -(-max(point.prompt + point.new for point in row.points) // 256) * 256


def _usable(row: Row, options: argparse.Namespace) -> list[tuple[peers.Engine, str]]:
    """The row's engines that have an interpreter; each that has none is named on stderr."""
    found = []
    for name in row.peers:
        engine = peers.ENGINES[name]
        python = getattr(options, engine.option.strip("-").replace("-", "_")) or engine.python
        if python is None:
            print(f"without {name}: no interpreter has it (make bench-peers, or {engine.option})", file=sys.stderr)
        else:
            found.append((engine, python))
    return found


def _interleaved(row: Row, runs: dict[str, Run], limits: Limits, pairs: int, vocab_size: int) -> list[Measured]:
    measured = [Measured(point, {who: [] for who in runs}) for point in row.points]
    for run in runs.values():
        run(replace(row.points[0], new=min(4, row.points[0].new)), bench_prompt(row.points[0].prompt, vocab_size))
    for number in range(pairs):
        for case in measured:
            prompt = bench_prompt(case.point.prompt, vocab_size)
            before = limits.measure()
            for who in sorted(runs, reverse=number % 2 == 1):
                time.sleep(PAUSE)
                timing = runs[who](case.point, prompt)
                after = limits.measure()
                timing.peak = max(before.peak, after.peak)
                timing.read = statistics.mean((before.read, after.read))
                timing.mapped_read = statistics.mean((before.mapped_read, after.mapped_read))
                case.timings[who].append(timing)
                before = after
            _tell(number, pairs, case)
    return measured


def _tell(number: int, pairs: int, case: Measured) -> None:
    last = ", ".join(f"{who} {rows[-1].prefill:.0f} / {rows[-1].decode:.1f}" for who, rows in case.timings.items())
    point = f"{case.point.sequences} x {case.point.prompt}"
    print(f"pair {number + 1} of {pairs}, {point}: prefill / decode tokens/s: {last}", file=sys.stderr)


def _own_run(model: Model) -> Run:
    def run(point: Point, prompt: list[int]) -> Timing:
        if point.sequences == 1:
            return _timing(point, *run_once(model, prompt, point.new))
        return _together_timing(point, _together(model, prompt, point))

    return run


def _peer_run(peer: Peer) -> Run:
    def run(point: Point, prompt: list[int]) -> Timing:
        if point.sequences == 1:
            return _timing(point, *peer.run(prompt, point.new))
        return _together_timing(point, peer.together(prompt, point.new, point.sequences))

    return run


def _timing(point: Point, first: float, rest: float) -> Timing:
    return Timing(prefill=point.prompt / first, decode=(point.new - 1) / rest if point.new > 1 else 0.0)


def _together_timing(point: Point, seconds: float) -> Timing:
    return Timing(decode=point.sequences * (point.new - 1) / seconds)


def _together(model: Model, prompt: list[int], point: Point) -> float:
    """Seconds of the greedy decode of several sequences in the same steps, each after a prompt of its own."""
    sequences = [model.session.open() for _ in range(point.sequences)]
    try:
        tokens = [
            int(model.session.prefill(sequence, prompt[number:] + prompt[:number]).argmax())
            for number, sequence in enumerate(sequences)
        ]
        likeliest = _likeliest(model.session, point.sequences)
        started = time.perf_counter()
        for _ in range(point.new - 1):
            tokens = likeliest([Feed(sequence, [token]) for sequence, token in zip(sequences, tokens, strict=True)])
        return time.perf_counter() - started
    finally:
        for sequence in sequences:
            sequence.close()


def _likeliest(session: Session, rows: int) -> Callable[[list[Feed]], list[int]]:
    """A step that gives every row's likeliest id, as generation does it: ranked by the code where it can."""
    if session.most_top:
        ranked = RankedRows.empty(rows, 1)
        return lambda feeds: [int(token) for token in session.step_ranked(feeds, ranked).ids[:, 0]]
    return lambda feeds: [int(token) for token in session.step(feeds).argmax(axis=1)]
