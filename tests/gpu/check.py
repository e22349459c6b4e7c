"""Everything on a real GPU against torch in fp32 and numpy: `make gpu-test`, on the code of `make gpu-code`.

    python tests/gpu/check.py build/gpu [--kind hip] [--case 1b] [--only code,kernels,models] [--minutes 9]

1. code: every kernel of every case can be loaded.
2. kernels: the tests of tests/backends/gpu with the GPU in the interpreter's place, memory behind arrays guarded.
3. models: whole models of every case that is there, in every kind of step; the same step twice gives the same bits. One
   that fails runs again, a launch at a time, so that the launch that fails is named.

Each is a process of its own with a limit of time: a kernel that reads or writes wild ends its own process, and what
comes after it runs. What was found is printed as it is found; the exit code is 0 only when all of it was right, and
what was left out, for lack of code or time, is listed at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "gpu"))
from children import Ended, run_child
from compile_kernels import ROOT, pytest_command

HERE = Path(__file__).parent
PARTS = ("code", "kernels", "models")
SECONDS = {"code": 90.0, "kernels": 300.0, "models": 150.0}
"""The most that a part may take, of models each."""


class Report:
    """What was found so far; run: how a program is run, with its limit in seconds."""

    def __init__(self, minutes: float, run: Callable[..., Ended] = run_child) -> None:
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self._end = time.monotonic() + 60 * minutes
        self._run = run

    def child(self, name: str, part: str, command: list[str], **environment: str) -> bool:
        """Run one part; whether it was right. It is left out where the time is over."""
        seconds = min(SECONDS[part], self._end - time.monotonic())
        if seconds < 5:
            self.left_out.append(f"{name}: no time was left")
            return True
        print(f"== {name}", flush=True)
        ended = self._run(command, seconds, cwd=ROOT, env=os.environ | environment)
        if ended.status != 0:
            self.failed.append(f"{name}: {ended.how}")
        print(f"== {name}: {'right' if ended.status == 0 else ended.how}, {ended.seconds:.0f} s", flush=True)
        return ended.status == 0

    def lines(self) -> list[str]:
        """For the end of the output."""
        return [*(f"LEFT OUT {line}" for line in self.left_out), *(f"FAILED {line}" for line in self.failed)]


def main() -> int:
    """Run all checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", default="cuda", choices=["cuda", "hip"])
    parser.add_argument("--case", default="1b", help="the cases whose names begin so")
    parser.add_argument("--only", default=",".join(PARTS), help="with commas")
    parser.add_argument("--minutes", type=float, default=9.0)
    options = parser.parse_args()
    chosen = options.only.split(",")
    if not set(chosen) <= set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}")
    report = Report(options.minutes)
    folder = options.folder.resolve()
    if "code" in chosen:
        report.child("code", "code", _program("load_code.py", str(folder), "--kind", options.kind))
    if "kernels" in chosen:
        words = f"run {options.kind} {folder}"
        report.child("kernels", "kernels", pytest_command(), LLAMAC_GPU_KERNELS=words)
    if "models" in chosen:
        whole_models(report, folder, options.case)
    print("\n".join(report.lines() or ["all right"]))
    return 1 if report.failed or report.left_out else 0


def whole_models(report: Report, folder: Path, prefix: str) -> None:
    """Every case whose name begins so; one that fails again, one launch at a time."""
    files = sorted(folder.glob(f"{prefix}*.zip"))
    for path in files:
        command = _program("whole_model.py", str(path))
        if not report.child(path.stem, "models", command):
            report.child(f"{path.stem}, one launch at a time", "models", [*command, "--careful"])
    if not files:
        report.left_out.append(f"whole models: no code for {prefix} in {folder} (make gpu-code)")


def _program(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE / name), *arguments]


if __name__ == "__main__":
    sys.exit(main())
