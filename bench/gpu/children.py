"""Programs of this folder run one another with a limit of time: what goes wrong on a GPU ends one process, not all."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, None where its time was over; what it printed; how long it took."""

    status: int | None
    output: str
    seconds: float

    @property
    def how(self) -> str:
        """For people: `exit status 1` or `no end after 60 s`."""
        return f"no end after {self.seconds:.0f} s" if self.status is None else f"exit status {self.status}"


def run_child(command: Sequence[str], seconds: float, **given: object) -> Ended:
    """Run a program; when its time is over, end it and all that it started.

    given: as for `subprocess.Popen`; with `stdout=subprocess.PIPE` the output is kept.
    """
    start = time.monotonic()
    process: subprocess.Popen[bytes] = subprocess.Popen(command, start_new_session=True, **given)  # type: ignore[call-overload]
    status: int | None
    try:
        output, _ = process.communicate(timeout=max(seconds, 1.0))
        status = process.returncode
    except subprocess.TimeoutExpired:
        output, status = b"", None
        end_group(process)
    except BaseException:
        end_group(process)
        raise
    return Ended(status, (output or b"").decode(errors="replace"), time.monotonic() - start)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, with what it started; one that the GPU's driver holds is left behind."""
    with suppress(ProcessLookupError):  # it has ended, and all of its own
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=10)
