"""Brings weights from the mapped file to the GPU: through two pinned buffers, so that reading and copying overlap."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack, suppress

import numpy as np
import numpy.typing as npt

from llamac.errors import LlamacError

from .driver import Driver

CHUNK_BYTES = 64 << 20
Bytes = npt.NDArray[np.uint8]


def host_bytes(address: int, size: int) -> Bytes:
    """Host memory as an array; whoever owns the memory must outlive it."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def upload(driver: Driver, source: Bytes, to: int, stream: int, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Copy `source` to the GPU at address `to` and wait until it is there.

    The file is read by the copy into pinned memory: chunk n + 1 comes from the disk while the GPU fetches chunk n.
    """
    size = min(chunk_bytes, source.nbytes)
    with ExitStack() as owned:
        buffers, events = [], []
        for _ in range(2 if source.nbytes > size else 1):
            buffers.append(driver.allocate_pinned(max(size, 1)))
            owned.callback(driver.free_pinned, buffers[-1])
            events.append(driver.new_event())
            owned.callback(driver.end_event, events[-1])
        owned.callback(settle, driver, stream)
        for number, start in enumerate(range(0, source.nbytes, size)):
            place = number % len(buffers)
            if number >= len(buffers):
                driver.wait_for_event(events[place])
            part = source[start : start + size]
            host_bytes(buffers[place], part.nbytes)[:] = part
            driver.copy_in(to + start, buffers[place], part.nbytes, stream)
            driver.mark(events[place], stream)
        driver.wait_for_stream(stream)


def settle(driver: Driver, stream: int) -> None:
    """Let a stream come to its end before its memory goes; an error on the way has been raised already."""
    with suppress(LlamacError):
        driver.wait_for_stream(stream)
