"""Steps that follow one another without the host in between: each takes its tokens from the one before.

What a step found travels to the host while the next one runs; two pinned places take turns.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamac.artifact.launch_plan import SAMPLED_WORDS

from .driver import Driver
from .memory import PlannedMemory
from .upload import host_bytes

Int32s = npt.NDArray[np.int32]
MOST_IN_FLIGHT = 2
"""Steps whose results have not been taken."""


@dataclass(frozen=True)
class OnItsWay:
    """A step whose result has not been taken: its pinned place, its tokens on the GPU, rows and words of a row."""

    place: int
    tokens: int
    rows: int
    words: int


class StepsAhead:
    """The results that are on their way, oldest first."""

    def __init__(self, driver: Driver, memory: PlannedMemory, most_rows: int) -> None:
        self._driver = driver
        size = 4 * SAMPLED_WORDS * most_rows
        self._addresses = [memory.pinned(size) for _ in range(MOST_IN_FLIGHT)]
        self._places = [host_bytes(address, size).view(np.int32) for address in self._addresses]
        self._events = [driver.new_event() for _ in range(MOST_IN_FLIGHT)]
        self._waiting: deque[OnItsWay] = deque()
        self._turn = 0

    @property
    def in_flight(self) -> int:
        """Steps whose results have not been taken."""
        return len(self._waiting)

    def feed_back(self, token_ids: int, stream: int) -> None:
        """Let the next step's tokens, at address `token_ids`, be those that the last one found."""
        last = self._waiting[-1]
        self._driver.copy_within(token_ids, last.tokens, 4 * last.rows, stream)

    def send(self, tokens: int, result: int, rows: int, words: int, stream: int) -> None:
        """Send what the step that was put on the stream last has found to the host: `words` i32 a row."""
        self._driver.copy_out(self._addresses[self._turn], result, 4 * rows * words, stream)
        self._driver.mark(self._events[self._turn], stream)
        self._waiting.append(OnItsWay(self._turn, tokens, rows, words))
        self._turn = (self._turn + 1) % MOST_IN_FLIGHT

    def take(self) -> Int32s:
        """Wait for the oldest result, i32 [rows, words] (ValueError where none is on its way)."""
        if not self._waiting:
            raise ValueError("no step is on its way")
        oldest = self._waiting.popleft()
        self._driver.wait_for_event(self._events[oldest.place])
        return self._places[oldest.place][: oldest.rows * oldest.words].copy().reshape(oldest.rows, oldest.words)

    def forget(self) -> None:
        """Drop what is on its way."""
        self._waiting.clear()

    def close(self) -> None:
        """Forget the events; the memory is its owner's."""
        self._places = []
        while self._events:
            self._driver.end_event(self._events.pop())
