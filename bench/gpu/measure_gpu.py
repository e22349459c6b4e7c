"""The table of docs/benchmarks/gpu.md, on the GPU of this machine: `make gpu-bench`.

    python bench/gpu/measure_gpu.py build/gpu --out build/gpu/result.json --page docs/benchmarks/gpu.md

Needs numpy, torch and cuda-bindings, and the files that `bench/gpu/compile_cases.py` compiled for this GPU. Every step
is timed by the GPU, greedy, with the head and the choice of the token; the floor is its bytes at the rate of a copy
measured in the same run. The peer is the same model in torch, compiled, replayed as a CUDA graph; peers come last,
since torch compiles each for a minute.

A number is a process of its own with a limit of time (`measured_row.py`), so that one that fails is a `failed` in the
table and no more. The result is written after each; a run over a result of the same GPU goes on where that one ended,
and tries again what failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from children import Ended, run_child
from gpu_cases import ROWS
from gpu_page import write_page

PEERS = frozenset({"1b-bf16", "8b-bf16"})
"""Cases that torch has a fast form of too."""

SECONDS = {"limits": 90.0, "row": 120.0, "peer": 240.0}
"""The most that one number may take."""

PROGRAM = Path(__file__).with_name("measured_row.py")
Run = Callable[..., Ended]


class Measurement:
    """The result so far, on the disk after every number.

    run: how a program is run, with its limit in seconds.
    """

    def __init__(self, out: Path, page: Path | None, minutes: float, run: Run = run_child) -> None:
        self.out, self.page, self._run = out, page, run
        self._end = time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {}

    def start(self) -> None:
        """Measure what the GPU reaches; go on with the result that is there if it is of this GPU (SystemExit: none)."""
        limits = self.number("limits")
        if limits is None or "failed" in limits:
            raise SystemExit(f"the GPU cannot be measured: {(limits or {}).get('failed', 'no time')}")
        earlier = json.loads(self.out.read_text()) if self.out.is_file() else {}
        kept = [row for row in earlier.get("rows", []) if "failed" not in row] if _same_gpu(earlier, limits) else []
        self.found = {**limits, "date": datetime.date.today().isoformat(), "rows": kept}
        self.write()

    def number(self, what: str, *arguments: str) -> dict[str, Any] | None:
        """What `measured_row.py` found, or how it failed; None where no time is left."""
        seconds = min(SECONDS[what], self._end - time.monotonic())
        if seconds < 5:
            return None
        command = [sys.executable, str(PROGRAM), what, *arguments]
        ended = self._run(command, seconds, stdout=subprocess.PIPE)
        lines = [line for line in ended.output.splitlines() if line.startswith("{")]
        if ended.status != 0 or not lines:
            return {"failed": ended.how}
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    def row(self, number: int, path: Path) -> None:
        """Measure a row that is not there yet."""
        if self._row(number) is not None:
            return
        found = self.number("row", str(number), str(path))
        if found is None:
            return
        row = ROWS[number]
        about = {"case": row.case, "batch": row.batch, "context": row.context, "prefill": row.prefill}
        if "bytes" in found:
            found["floor"] = found["bytes"] / self.found["limits"]["copy"]
        self.found["rows"].append(about | found)
        self.write()
        print(json.dumps(about | found), file=sys.stderr, flush=True)

    def peer(self, number: int, path: Path) -> None:
        """Measure torch beside a row that is there."""
        row, found = ROWS[number], self._row(number)
        wanted = row.case in PEERS and not row.prefill
        if found is None or not wanted or "seconds" not in found or "peer_seconds" in found:
            return
        peer = self.number("peer", str(number), str(path))
        if peer is not None:
            found |= peer if "peer_seconds" in peer else {"peer_failed": peer["failed"]}
            self.write()
            print(json.dumps(found), file=sys.stderr, flush=True)

    def _row(self, number: int) -> dict[str, Any] | None:
        row = ROWS[number]
        key = (row.case, row.batch, row.context, row.prefill)
        return next((r for r in self.found["rows"] if (r["case"], r["batch"], r["context"], r["prefill"]) == key), None)

    def write(self) -> None:
        """The result, and the page."""
        self.out.write_text(json.dumps(self.found, indent=1))
        if self.page is not None:
            write_page(self.page, self.found)


def main() -> int:
    """Measure what the folder has code for, as far as the time goes; 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/gpu/result.json"))
    parser.add_argument("--page", type=Path, help="write the page with the result")
    parser.add_argument("--minutes", type=float, default=9.0, help="the run ends after so long")
    parser.add_argument("--no-peer", action="store_true", help="leave torch's rows out")
    options = parser.parse_args()
    files = {path.name.rsplit("-", 1)[0]: path for path in sorted(options.folder.glob("*.zip"))}
    measurement = Measurement(options.out, options.page, options.minutes)
    measurement.start()
    for number, path in _rows(files):
        measurement.row(number, path)
    if not options.no_peer:
        for number, path in _rows(files):
            measurement.peer(number, path)
    failed = [row for row in measurement.found["rows"] if "failed" in row]
    print(f"{options.out}: {len(measurement.found['rows'])} rows, {len(failed)} of them failed", file=sys.stderr)
    return 1 if failed else 0


def _rows(files: dict[str, Path]) -> Iterator[tuple[int, Path]]:
    return ((number, files[row.case]) for number, row in enumerate(ROWS) if row.case in files)


def _same_gpu(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one.get("gpu") == other["gpu"])


if __name__ == "__main__":
    sys.exit(main())
