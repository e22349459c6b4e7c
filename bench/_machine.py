"""What a figure was measured on: processor, load and date, printed beside every result."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The processor, how many cores may be used, the load of the last minute, and today's date."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def machine_line() -> str:
    """The same as one line of text."""
    found = machine()
    return f"{found['cpu']}, {found['cores']} cores, load {found['load_1_minute']} at the start, {found['date']}"


def _cpu_name() -> str:
    rows = dict(_row(line) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    number = f" family {rows['cpu family']} model {rows['model']}" if "cpu family" in rows else ""
    return rows.get("model name", "unknown") + number


def _row(line: str) -> tuple[str, str]:
    key, value = line.split(":", 1)
    return key.strip(), value.strip()
