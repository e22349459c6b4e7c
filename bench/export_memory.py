"""Time and peak anonymous memory of exporting a 1B bf16 checkpoint of random weights to every folder form.

    python bench/export_memory.py                                  all; needs 4 GB of free disk at a time
    python bench/export_memory.py --form compressed-tensors:int4

The source has the shape of Llama 3.2 1B, its weights are made up as they are read. The exporter runs in a process of
its own, without --check. Every 10 ms its anonymous pages (RssAnon: heap and stacks, not the cached pages of files) are
read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import machine, machine_line
from _processes import anonymous_bytes

SOURCE, SEED = "llama-3.2-1b", 1
FORMS = ("hf:keep", "meta:keep", "compressed-tensors:fp8", "compressed-tensors:int4", "modelopt:fp8")
GOAL_BYTES = 512 << 20
POLL_SECONDS = 0.01

_EXPORT = """
import json, sys
from llamac.export.entry import export
options = json.loads(sys.argv[1])
print(export(options.pop("source"), **options).bytes)
"""


def measure(form: str, folder: Path) -> dict[str, Any]:
    """Export in a process of its own; a dict of figures."""
    to, _, scheme = form.partition(":")
    options = {"source": SOURCE, "random_weights": SEED, "to": to, "quantize": scheme, "output": str(folder / "out")}
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-c", _EXPORT, json.dumps(options)], stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(POLL_SECONDS)
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"exporting to {form} failed with exit code {process.returncode}")
    seconds, written = time.perf_counter() - started, int(said)
    return {
        "form": form,
        "bytes": written,
        "seconds": round(seconds, 2),
        "mb_per_second": round(written / seconds / 1e6, 1),
        "peak_anonymous_bytes": peak,
        "within_goal": peak < GOAL_BYTES,
    }


def main() -> int:
    """The program; exit code 1 when a form misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", action="append", help="FORM:SCHEME; only this one")
    parser.add_argument("--folder", type=Path, help="where to put what is written for a while [a temporary one]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    print(machine_line(), file=sys.stderr)
    rows = []
    for form in options.form or FORMS:
        with tempfile.TemporaryDirectory(prefix="llamac-export-", dir=options.folder) as name:
            rows.append(measure(form, Path(name)))
        row = rows[-1]
        if not options.json:
            goal = "(goal: under 512 MiB)" if row["within_goal"] else "(MISSES the goal of 512 MiB)"
            peak = row["peak_anonymous_bytes"] / 2**20
            print(f"{form}: {row['bytes'] / 1e9:.2f} GB in {row['seconds']:.1f} s; peak {peak:.0f} MiB {goal}")
    if options.json:
        print(json.dumps({"cases": rows, **machine()}))
    return 0 if all(row["within_goal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
