"""Processes and their memory, from /proc."""

from __future__ import annotations

import os
from pathlib import Path


def family(pid: int) -> list[int]:
    """The process and everything below it, itself first."""
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
            # The C compilers are started by a thread of the compiler.
            threads = os.listdir(f"/proc/{parent}/task")
            children += " " + " ".join(
                Path(f"/proc/{parent}/task/{thread}/children").read_text()
                for thread in threads
                if int(thread) != parent
            )
        except OSError:
            continue
        found.extend(int(child) for child in children.split())
    return found


def anonymous_bytes(pid: int) -> int:
    """Heap and stacks of a process, not the cached pages of files."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0
