"""How fast this machine reads memory: the roof under every memory-bound figure, measured beside it.

The C library's `memchr` looks for a byte that is not there: it reads every cache line with the widest loads, computes
almost nothing, and (called through ctypes) holds no interpreter lock, so one Python thread a core saturates memory.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time

import numpy as np

BUFFER_BYTES = 512 << 20
"""Far beyond any cache of the machines in question."""


class ReadBandwidth:
    """A buffer of `size` bytes (BUFFER_BYTES unless given), really in memory, and the multi-threaded read of it."""

    def __init__(self, threads: int, size: int | None = None) -> None:
        self.threads = threads
        size = size or BUFFER_BYTES
        # Writing puts real pages behind the buffer: untouched ones would all be the kernel's one page of zeros.
        self._buffer = np.full(size, 0x5A, dtype=np.uint8)
        share = -(-size // threads)
        self._shares = [self._buffer[start : start + share] for start in range(0, size, share)]
        self._read = _reader()

    def measure(self) -> float:
        """Read the whole buffer once; bytes per second.

        The caller reads a share itself: one thread more than processors would leave it waiting for one, and code that
        it runs next would take the machine for crowded.
        """
        workers = [threading.Thread(target=self._read, args=(share,)) for share in self._shares[1:]]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        self._read(self._shares[0])
        for worker in workers:
            worker.join()
        return self._buffer.nbytes / (time.perf_counter() - started)


class _MemchrReader:
    def __init__(self) -> None:
        self._memchr = ctypes.CDLL(None).memchr
        self._memchr.restype = ctypes.c_void_p
        self._memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

    def __call__(self, share: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        self._memchr(share.ctypes.data, 0, share.nbytes)


class _MaximumReader:
    """Where there is no C library to call: numpy's own vector loop, 10 to 20% slower."""

    def __call__(self, share: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        share.max()


def _reader() -> _MemchrReader | _MaximumReader:
    return _MaximumReader() if sys.platform == "win32" else _MemchrReader()
