"""Who uses a device: one caller at a time, and of steps on their way those of one run alone.

A device that runs ahead keeps what a step finds until the next step takes its tokens from there. Whoever else uses the
device in between, another thread or another stream of the same one, writes over it. So the steps on their way are then
given up, and the run begins again with the tokens that the host knows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llamac.errors import LlamacError


class DeviceTurns:
    """The turns at one device. LLC0819 in a process that was forked after it was opened: its threads are not there."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._ahead: object | None = None
        self._batches: set[object] = set()

    @property
    def are_shared(self) -> bool:
        """Whether more than one batch of texts is being written, so that nobody's steps ahead would last."""
        return len(self._batches) > 1

    def enter(self, batch: object) -> None:
        """A batch of texts begins, which `leave` ends."""
        self._batches.add(batch)

    def leave(self, batch: object) -> None:
        """The batch has ended; it may never have begun."""
        self._batches.discard(batch)

    @contextmanager
    def of(self, run: object | None = None) -> Iterator[bool]:
        """The device is the caller's inside; steps on their way, other than those of `run`, are given up.

        run: who runs ahead, until `end`; None for a caller that does not. Gives whether its own are on their way still.
        """
        self._check_process()
        with self._lock:
            still = run is not None and self._ahead is run
            if not still:
                self._give_up()
            self._ahead = run
            yield still

    def end(self, run: object) -> None:
        """Nobody wants the steps of `run` that are on their way."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._ahead is run:
                self._give_up()

    def _give_up(self) -> None:
        if self._ahead is not None:
            self._ahead = None
            self._device.forget_ahead()

    def _check_process(self) -> None:
        """The lock too may be held here by a thread that was not copied."""
        if os.getpid() != self._process:
            reason = "the process was forked after the model was loaded, and the threads of its code stayed behind"
            raise LlamacError("LLC0819", "model", reason, "load the model in each process, or start processes by spawn")
