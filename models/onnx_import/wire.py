"""The wire format of protocol buffers, read in place: fields of a message as numbers, or as ranges of the file.

Nothing is decoded before it is asked for, so a weight of any size costs its place in the file and no memory. The format
is described at protobuf.dev/programming-guides/encoding; every length is checked against what encloses it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import numpy as np

from llamac.errors import LlamacError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10

Buffer = bytes | mmap.mmap


class Message:
    """The bytes [start, stop) of a file, as a message. Errors are LLC0936 and name the file."""

    __slots__ = ("data", "file", "start", "stop")

    def __init__(self, data: Buffer, start: int, stop: int, file: str) -> None:
        self.data, self.start, self.stop, self.file = data, start, stop, file

    def fields(self) -> Iterator[tuple[int, Field]]:
        """(number, field) in the order of the file."""
        place = self.start
        while place < self.stop:
            key, place = self._varint(place)
            number, kind = key >> 3, key & 7
            if kind == VARINT:
                value, place = self._varint(place)
                yield number, Field(self, kind, value, place)
            elif kind in (FIXED64, FIXED32):
                size = 8 if kind == FIXED64 else 4
                self._need(place + size)
                yield number, Field(self, kind, place, place + size)
                place += size
            elif kind == BYTES:
                size, place = self._varint(place)
                self._need(place + size)
                yield number, Field(self, kind, place, place + size)
                place += size
            else:
                raise self.damaged(f"a field of kind {kind} at byte {place}")

    def _varint(self, place: int) -> tuple[int, int]:
        value = 0
        for index in range(_LONGEST_VARINT):
            self._need(place + 1)
            byte = self.data[place]
            place += 1
            value |= (byte & 127) << (7 * index)
            if byte < 128:
                return value & (2**64 - 1), place
        raise self.damaged(f"a number of more than {_LONGEST_VARINT} bytes at byte {place}")

    def _need(self, stop: int) -> None:
        if stop > self.stop:
            raise self.damaged(f"a field ends at byte {stop}, what holds it at byte {self.stop}")

    def damaged(self, reason: str) -> LlamacError:
        """LLC0936 for this file."""
        return LlamacError("LLC0936", self.file, reason, "export the model again, or download the file again")


class Field:
    """One field: `start` is a number's value or the place of its bytes, which end at `stop`."""

    __slots__ = ("kind", "owner", "start", "stop")

    def __init__(self, owner: Message, kind: int, start: int, stop: int) -> None:
        self.owner, self.kind, self.start, self.stop = owner, kind, start, stop

    def _check(self, kind: int) -> None:
        if self.kind != kind:
            raise self.owner.damaged(f"a field before byte {self.stop} has kind {self.kind}, expected {kind}")

    def integer(self) -> int:
        """A signed number."""
        self._check(VARINT)
        return self.start - (1 << 64) if self.start >> 63 else self.start

    def number(self) -> float:
        """A 32-bit float, as the shortest decimal that is rounded to it: 1e-05, as somebody wrote it."""
        self._check(FIXED32)
        return meant(struct.unpack("<f", self.owner.data[self.start : self.stop])[0])

    def text(self, limit: int = 4096) -> str:
        """UTF-8 text; LLC0936 when it is longer than `limit` bytes."""
        data = self.bytes(limit)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.owner.damaged(f"the text at byte {self.start} is not UTF-8") from None

    def bytes(self, limit: int) -> bytes:
        """The bytes themselves, at most `limit`."""
        self._check(BYTES)
        if self.stop - self.start > limit:
            raise self.owner.damaged(f"{self.stop - self.start} bytes at byte {self.start}, expected at most {limit}")
        return bytes(self.owner.data[self.start : self.stop])

    def message(self) -> Message:
        """The bytes as a message of their own."""
        self._check(BYTES)
        return Message(self.owner.data, self.start, self.stop, self.owner.file)

    def integers(self) -> Iterator[int]:
        """One signed number, or a packed run of them."""
        if self.kind == VARINT:
            yield self.integer()
            return
        run = self.message()
        place = run.start
        while place < run.stop:
            value, place = run._varint(place)
            yield value - (1 << 64) if value >> 63 else value

    def numbers(self) -> Iterator[float]:
        """One 32-bit float, or a packed run of them."""
        if self.kind == FIXED32:
            yield self.number()
            return
        self._check(BYTES)
        if (self.stop - self.start) % 4:
            raise self.owner.damaged(f"a run of floats at byte {self.start} is no multiple of 4 bytes")
        for (value,) in struct.iter_unpack("<f", self.owner.data[self.start : self.stop]):
            yield meant(value)


def meant(value: float) -> float:
    """The shortest decimal that is `value` in 32 bits."""
    return float(str(np.float32(value)))
