"""Pinned memory that step inputs travel through: two blocks, one is filled while the GPU still reads the other."""

from __future__ import annotations

from .driver import Driver
from .memory import PlannedMemory
from .upload import Bytes, host_bytes


class Staging:
    """Two pinned blocks of `size` bytes, each with the event after which it may be written again."""

    def __init__(self, driver: Driver, memory: PlannedMemory, size: int) -> None:
        self._driver = driver
        self._addresses = [memory.pinned(size) for _ in range(2)]
        self._blocks = [host_bytes(address, size) for address in self._addresses]
        self._events = [driver.new_event() for _ in range(2)]
        self._used = [False, False]
        self._turn = 0

    def next_block(self) -> Bytes:
        """The block to fill now; waits until the GPU has read it."""
        if self._used[self._turn]:
            self._driver.wait_for_event(self._events[self._turn])
        return self._blocks[self._turn]

    def send(self, to: int, start: int, size: int, stream: int) -> None:
        """Copy bytes start..start + size of the block to the GPU at `to`; the other block is next."""
        self._driver.copy_in(to, self._addresses[self._turn] + start, size, stream)
        self._driver.mark(self._events[self._turn], stream)
        self._used[self._turn] = True
        self._turn = 1 - self._turn

    def close(self) -> None:
        """Forget the events; the memory is its owner's."""
        self._blocks = []
        while self._events:
            self._driver.end_event(self._events.pop())
