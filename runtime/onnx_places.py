"""Tells an ONNX graph in which file its weights lie: its external data, moved to another file at another offset.

The graph of an artifact names places within its member of weights; ONNX Runtime maps a weight only from a file that the
graph names. So the graph is written again with the artifact's own name, and every offset further by where the member
begins. Only the few messages on the way to those entries are touched; field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llamac.errors import LlamacError

_GRAPH, _INITIALIZER, _EXTERNAL, _KEY, _VALUE = 7, 5, 13, 1, 2
_BYTES = 2


def moved(graph: bytes, location: str, shift: int, where: str) -> bytes:
    """`graph` with its external data `shift` bytes further on, in the file `location`; LLC0711 when it is damaged."""

    def entry(message: memoryview) -> bytes:
        return _moved_entry(message, location, shift)

    def tensor(message: memoryview) -> bytes:
        return _rewritten(message, _EXTERNAL, entry)

    def whole(message: memoryview) -> bytes:
        return _rewritten(message, _INITIALIZER, tensor)

    try:
        return _rewritten(memoryview(graph), _GRAPH, whole)
    except (IndexError, ValueError) as error:
        reason = f"the graph is damaged: {error}"
        raise LlamacError("LLC0711", where, reason, "get the file again from its source, or compile it again") from None


def _moved_entry(message: memoryview, location: str, shift: int) -> bytes:
    texts = {number: bytes(payload) for number, payload, _ in _fields(message)}
    key, value = texts.get(_KEY, b""), texts.get(_VALUE, b"")
    if key == b"location":
        value = location.encode()
    elif key == b"offset":
        value = str(int(value) + shift).encode()
    return _field(_KEY, key) + _field(_VALUE, value)


def _rewritten(message: memoryview, number: int, change: Callable[[memoryview], bytes]) -> bytes:
    """A message with every field `number` changed, all others as they are."""
    return b"".join(
        _field(number, change(payload)) if found == number else bytes(raw) for found, payload, raw in _fields(message)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """(number, payload, the whole field) of every field; ValueError for one that ends behind the message."""
    place = 0
    while place < len(message):
        start = place
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind == 0:
            end = _varint(message, place)[1]
            size = end - place
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if place + size > len(message):
            raise ValueError("a field ends behind what holds it")
        yield key >> 3, message[place : place + size], message[start : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        byte = message[place]
        place += 1
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 10 bytes")


def _field(number: int, payload: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(payload)) + payload


def _number(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
