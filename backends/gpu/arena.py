"""Places for the memory of a step: slots that are not alive at the same launch share bytes of one arena.

A launch may start before the one before it has ended (programmatic dependent launch), but it touches nothing except
weights until that one's writes are visible; so a slot is free after the last launch that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .calls import Call, Slot

ALIGNMENT = 256


def place_slots(calls: Sequence[Call]) -> tuple[dict[Slot, int], int]:
    """The offset of every slot that the calls use, and the bytes of the arena; first fit in order of first use."""
    last = {slot: index for index, call in enumerate(calls) for slot in _slots(call)}
    places: dict[Slot, int] = {}
    alive: dict[int, tuple[int, int]] = {}  # offset -> (end, last launch)
    end = 0
    for index, call in enumerate(calls):
        alive = {start: (stop, until) for start, (stop, until) in alive.items() if until >= index}
        for slot in _slots(call):
            if slot not in places:
                start = _gap(alive, slot.bytes)
                places[slot] = start
                alive[start] = (start + _padded(slot.bytes), last[slot])
                end = max(end, start + _padded(slot.bytes))
    return places, end


def _slots(call: Call) -> list[Slot]:
    return [passed for passed in call.arguments.values() if isinstance(passed, Slot)]


def _padded(size: int) -> int:
    return max(-(-size // ALIGNMENT), 1) * ALIGNMENT


def _gap(alive: dict[int, tuple[int, int]], size: int) -> int:
    """The first offset with so many free bytes."""
    start = 0
    for taken, (stop, _) in sorted(alive.items()):
        if taken - start >= _padded(size):
            break
        start = max(start, stop)
    return start
