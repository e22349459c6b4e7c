"""Greedy steps that follow one another without the host in between: each takes its tokens from the one before.

The ids of a step travel to the host while the next one runs; two pinned places take turns.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from .driver import Driver
from .memory import PlannedMemory
from .upload import host_bytes

Int32s = npt.NDArray[np.int32]
MOST_IN_FLIGHT = 2
"""Steps whose ids have not been taken."""


class GreedySteps:
    """The ids that are on their way, oldest first."""

    def __init__(self, driver: Driver, memory: PlannedMemory, most_rows: int) -> None:
        self._driver = driver
        size = 4 * most_rows
        self._addresses = [memory.pinned(size) for _ in range(MOST_IN_FLIGHT)]
        self._places = [host_bytes(address, size).view(np.int32) for address in self._addresses]
        self._events = [driver.new_event() for _ in range(MOST_IN_FLIGHT)]
        self._waiting: deque[tuple[int, int]] = deque()
        self._turn = 0

    @property
    def in_flight(self) -> int:
        """Steps whose ids have not been taken."""
        return len(self._waiting)

    def feed_back(self, token_ids: int, best: int, stream: int) -> None:
        """Let the next step's tokens, at address `token_ids`, be the best ids of the last one."""
        rows = self._waiting[-1][1]
        self._driver.copy_within(token_ids, best, 4 * rows, stream)

    def send(self, best: int, rows: int, stream: int) -> None:
        """Send the ids of the step that was put on the stream last to the host."""
        self._driver.copy_out(self._addresses[self._turn], best, 4 * rows, stream)
        self._driver.mark(self._events[self._turn], stream)
        self._waiting.append((self._turn, rows))
        self._turn = (self._turn + 1) % MOST_IN_FLIGHT

    def take(self) -> Int32s:
        """Wait for the oldest ids."""
        place, rows = self._waiting.popleft()
        self._driver.wait_for_event(self._events[place])
        return self._places[place][:rows].copy()

    def forget(self) -> None:
        """Drop what is on its way."""
        self._waiting.clear()

    def close(self) -> None:
        """Forget the events; the memory is its owner's."""
        self._places = []
        while self._events:
            self._driver.end_event(self._events.pop())
