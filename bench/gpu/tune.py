"""Measures ways to divide the work of kernels; the fastest become rows of `backends/gpu/tuning`: `make gpu-tune`.

    python bench/gpu/tune.py compile --target h100 -o build/gpu    where Triton is: compiles the candidates
    python bench/gpu/tune.py run build/gpu/tune-sm_90.zip          where the GPU is: needs numpy and cuda-bindings

What a run has measured stays in TABLE (default: `backends/gpu/tuning/ARCHITECTURE.json`) and is not measured again, so
a run that was cut off goes on. Every candidate must give what the cost model's choice gives, which `make gpu-test`
compares with numpy; one that does not, or writes nothing, is no row. `--rehearse` goes through everything on a driver
that computes nothing: times are then marked as a rehearsal's, which no compiler reads.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from tuning_run import TuningRun

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Compile, or run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("compile")
    making.add_argument("--target", default="h100")
    making.add_argument("--model", action="append", help="only these presets")
    making.add_argument("-o", "--output", type=Path, default=Path("build/gpu"))
    running = commands.add_parser("run")
    running.add_argument("archive", type=Path)
    running.add_argument("--table", type=Path)
    running.add_argument("--minutes", type=float, default=9.0, help="start no kernel after so long")
    running.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.command == "compile":
        compile_models(options.target, options.model, options.output)
    else:
        name = f"{options.archive.stem.removeprefix('tune-')}.json"
        run(options.archive, options.table or ROOT / "backends/gpu/tuning" / name, options.minutes, options.rehearse)


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
    """Measure what the table lacks; the table as it then is. A rehearsal leaves one that says so."""
    from llamac.backends.gpu.tuned_rows import key_of

    with zipfile.ZipFile(archive) as found:
        members = {name: found.read(name) for name in found.namelist()}
    given = json.loads(members["cases.json"])
    kept = json.loads(table.read_text()) if table.is_file() else {"rows": []}
    if bool(kept.get("rehearsal")) != rehearse and kept["rows"]:
        raise SystemExit(f"{table} is {'no' if rehearse else 'a'} rehearsal's: name another --table")
    result = {"architecture": given["architecture"], **({"rehearsal": True} if rehearse else {}), "rows": kept["rows"]}
    done = {key_of(row["shape"]) for row in result["rows"]}
    end = time.monotonic() + 60 * minutes
    with TuningRun(given["architecture"], members, rehearse) as machine:
        about = {"gpu": machine.gpu.name, "driver": ".".join(map(str, machine.gpu.driver))}
        for case in given["cases"]:
            if key_of(case["shape"]) in done or time.monotonic() > end:
                continue
            best = machine.fastest(case)
            if best is not None:
                date = datetime.date.today().isoformat()
                result["rows"].append({"shape": case["shape"], **best, **about, "date": date})
                table.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{table}: {len(result['rows'])} rows", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
