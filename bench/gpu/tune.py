"""Measures ways to divide the work of kernels; the fastest become rows of `backends/gpu/tuning`: `make gpu-tune`.

    python bench/gpu/tune.py compile --target h100 -o build/gpu    where Triton is: compiles the candidates
    python bench/gpu/tune.py run build/gpu/tune-sm_90.zip          where the GPU is: needs numpy and cuda-bindings

What a run has measured stays in TABLE (default: `backends/gpu/tuning/ARCHITECTURE.json`) and is not measured again, so
a run that was cut off goes on. Every candidate must give what the cost model's choice gives, which `make gpu-test`
compares with numpy; one that does not, or writes nothing, is no row. Cases run in processes of a minute each: one that
takes its process down is noted beside the table, in ARCHITECTURE.failed, and the others are measured. `--rehearse` goes
through everything on a driver that computes nothing: times are then marked as a rehearsal's, which no compiler reads.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from children import Ended, run_child
from tuning_run import TuningRun

ROOT = Path(__file__).parents[2]
SLICE, STUCK = 1.0, 45.0
"""Minutes that one process measures, and seconds beyond that after which it is stuck."""

MORE = 3
"""The exit status of a process whose minute is over with cases left."""

HOPELESS = 8
"""Cases that fail, with no row at all, after which the rest is not tried."""


def main() -> int:
    """Compile, or run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("compile")
    making.add_argument("--target", default="h100")
    making.add_argument("--model", action="append", help="only these presets")
    making.add_argument("-o", "--output", type=Path, default=Path("build/gpu"))
    for name in ("run", "work"):
        running = commands.add_parser(name)
        running.add_argument("archive", type=Path)
        running.add_argument("--table", type=Path)
        running.add_argument("--minutes", type=float, default=9.0, help="start no kernel after so long")
        running.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.command == "compile":
        compile_models(options.target, options.model, options.output)
        return 0
    table = options.table or ROOT / f"backends/gpu/tuning/{options.archive.stem.removeprefix('tune-')}.json"
    given = (options.archive, table, options.minutes, options.rehearse)
    return work(*given) if options.command == "work" else min(1, supervise(*given))


def compile_models(target: str, models: list[str] | None, folder: Path) -> None:
    """The candidates of every model in one file for the target's instruction set."""
    from tuning_cases import MODELS, RECIPES, model_cases

    from llamac.target import find_target, units_of

    row = find_target(target)
    cases = [
        case
        for name in models or MODELS
        for quantize, kv in RECIPES
        for case in model_cases(row.cpu, units_of(row.base), name, quantize, kv)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tune-{row.cpu}.zip"
    write_cases(path, row.cpu, cases)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


def write_cases(path: Path, target: str, cases: list[Any]) -> None:
    """Code of every candidate that compiles without spilling, and what is needed to launch it."""
    from llamac.backends.gpu.build import identity
    from llamac.backends.gpu.tuned_rows import key_of

    once = {key_of(case.shape): case for case in cases}
    wanted = {identity(c.request, target): (c.request, target) for case in once.values() for c in case.candidates}
    made = compile_each(wanted)
    rows: list[dict[str, Any]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, kernel in sorted(made.items()):
            archive.writestr(key, kernel.code)
        for case in once.values():
            kept: list[dict[str, Any]] = []
            for candidate in case.candidates:
                key = identity(candidate.request, target)
                if key in made and not (kept and made[key].spilled_bytes):
                    kept.append(_candidate(key, candidate, made[key]))
            constants = {n: v for n, v in case.candidates[0].request.constants.items() if isinstance(v, int)}
            if len(kept) > 1 and kept[0]["code"] == identity(case.candidates[0].request, target):
                rows.append({**asdict(replace(case, candidates=[])), "candidates": kept, "constants": constants})
        archive.writestr("cases.json", json.dumps({"architecture": target, "cases": rows}))


def _candidate(key: str, candidate: Any, made: Any) -> dict[str, Any]:
    options = candidate.request.options
    return {
        "code": key, "name": made.name, "parameters": [[p.name, p.type] for p in made.parameters],
        "warps": options.warps, "stages": options.stages, "threads": made.warps, "shared_bytes": made.shared_bytes,
        "choices": candidate.choices, "grid": candidate.grid, "dependent": made.dependent_launch,
    }  # fmt: skip


def compile_each(wanted: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """What compiles of the wanted kernels, side by side; what takes more memory than there is does not."""
    from llamac.backends.gpu.compile_process import CompileProcess
    from llamac.errors import LlamacError

    workers = min(os.cpu_count() or 1, len(wanted))
    idle: SimpleQueue[CompileProcess] = SimpleQueue()
    found = {}

    def one(key: str) -> tuple[str, Any]:
        process = idle.get()
        try:
            return key, process.compile(*wanted[key])
        except LlamacError as error:
            return key, error
        finally:
            idle.put(process)

    with ExitStack() as processes, ThreadPoolExecutor(max(workers, 1)) as pool:
        for _ in range(workers):
            idle.put(processes.enter_context(CompileProcess()))
        for number, (key, made) in enumerate(pool.map(one, wanted), 1):
            print(f"\r{number} of {len(wanted)} kernels", end="", file=sys.stderr)
            if isinstance(made, LlamacError):
                print(f"\n{wanted[key][0].label}: {made.reason[:200]}", file=sys.stderr)
            else:
                found[key] = made
    return found


def run(archive: Path, table: Path, minutes: float, rehearse: bool) -> dict[str, Any]:
    """Measure what the table lacks; the table as it then is. A rehearsal leaves one that says so.

    The case in hand stands in `Noted.doing`: who finds the process dead knows what it was about.
    """
    from llamac.backends.gpu.tuned_rows import key_of

    with zipfile.ZipFile(archive) as found:
        members = {name: found.read(name) for name in found.namelist()}
    given = json.loads(members["cases.json"])
    kept = json.loads(table.read_text()) if table.is_file() else {"rows": []}
    if bool(kept.get("rehearsal")) != rehearse and kept["rows"]:
        raise SystemExit(f"{table} is {'no' if rehearse else 'a'} rehearsal's: name another --table")
    result = {"architecture": given["architecture"], **({"rehearsal": True} if rehearse else {}), "rows": kept["rows"]}
    noted = Noted(table)
    done = {key_of(row["shape"]) for row in result["rows"]} | noted.failures.keys()
    end = time.monotonic() + 60 * minutes
    with TuningRun(given["architecture"], members, rehearse) as machine:
        about = {"gpu": machine.gpu.name, "driver": ".".join(map(str, machine.gpu.driver))}
        for case in given["cases"]:
            key = key_of(case["shape"])
            if key in done or time.monotonic() > end:
                continue
            noted.doing.write_text(key)
            best = machine.fastest(case)
            if best is None:
                noted.failed(key, "not even the cost model's choice wrote its result")
            else:
                date = datetime.date.today().isoformat()
                result["rows"].append({"shape": case["shape"], **best, **about, "date": date})
                write_whole(table, json.dumps(result, indent=1) + "\n")
            noted.doing.unlink()
    return result


def measured_rows(table: Path) -> list[dict[str, Any]]:
    """The rows of a table, none where there is no such file."""
    found: list[dict[str, Any]] = json.loads(table.read_text())["rows"] if table.is_file() else []
    return found


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there as a whole or as it was: the process may be ended at any moment."""
    draft = path.with_name(f"{path.name}.partial")
    draft.write_text(text)
    draft.replace(path)


class Noted:
    """Files beside a table: the case in hand, and those that failed, which are not tried again."""

    def __init__(self, table: Path) -> None:
        self.doing = table.with_suffix(".doing")
        self.place = table.with_suffix(".failed")

    @property
    def failures(self) -> dict[str, str]:
        """The shape of a case -> why there is no row for it."""
        found: dict[str, str] = json.loads(self.place.read_text()) if self.place.is_file() else {}
        return found

    def failed(self, key: str, reason: str) -> None:
        """Note a case that failed."""
        write_whole(self.place, json.dumps(self.failures | {key: reason}, indent=1))


def supervise(archive: Path, table: Path, minutes: float, rehearse: bool, run: Callable[..., Ended] = run_child) -> int:
    """`run` in processes of a minute each, as long as cases are left; the cases that failed.

    A candidate that reads wild, or does not end, ends its process: its case is noted, and the next process goes on.
    """
    noted, end = Noted(table), time.monotonic() + 60 * minutes
    noted.doing.unlink(missing_ok=True)
    while (left := end - time.monotonic()) > 5:
        slice_minutes = min(SLICE, left / 60)
        command = [sys.executable, str(Path(__file__).resolve()), "work", str(archive), "--table", str(table)]
        command += ["--minutes", str(slice_minutes), *(["--rehearse"] if rehearse else [])]
        ended = run(command, 60 * slice_minutes + STUCK)
        if noted.doing.is_file():
            key = noted.doing.read_text()
            noted.failed(key, f"the process ended: {ended.how}")
            noted.doing.unlink()
            print(f"failed ({ended.how}): {key}", file=sys.stderr, flush=True)
            if len(noted.failures) >= HOPELESS and not measured_rows(table):
                raise SystemExit(f"the first {HOPELESS} cases failed: see {noted.place}")
        elif ended.status not in (0, MORE):
            raise SystemExit(f"nothing can be measured: {ended.how}")
        elif ended.status == 0:
            break
    rows = measured_rows(table)
    print(f"{table}: {len(rows)} rows, {len(noted.failures)} failed", file=sys.stderr)
    return len(noted.failures)


def work(archive: Path, table: Path, minutes: float, rehearse: bool) -> int:
    """One process of `supervise`; MORE where cases are left."""
    from llamac.backends.gpu.tuned_rows import key_of

    with zipfile.ZipFile(archive) as found:
        wanted = {key_of(case["shape"]) for case in json.loads(found.read("cases.json"))["cases"]}
    rows = run(archive, table, minutes, rehearse)["rows"]
    return MORE if wanted - {key_of(row["shape"]) for row in rows} - Noted(table).failures.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
