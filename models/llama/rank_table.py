"""Writes `ranks.table`, the hash table of ranks that the runtime uses in place (its reader describes the layout).

Equal ranks give equal bytes on every machine.
"""

from __future__ import annotations

import sys
from array import array
from binascii import crc32
from collections.abc import Sequence

RANK_TABLE_FILE = "ranks.table"
MAGIC = b"llamac ranks 1\n\0"


def rank_table(tokens: Sequence[bytes]) -> bytes:
    """The table of distinct tokens, given in the order of their ranks; at most half of its slots are in use."""
    slot_count = 1 << (2 * len(tokens)).bit_length()
    slots, longest_probe = [0] * slot_count, 0
    for rank, token in enumerate(tokens):
        slot, probe = crc32(token), 0
        while slots[(slot + probe) % slot_count]:
            probe += 1
        slots[(slot + probe) % slot_count] = rank + 1
        longest_probe = max(longest_probe, probe)
    ends, end = [], 0
    for token in tokens:
        end += len(token)
        ends.append(end)
    header = _words([len(tokens), slot_count, longest_probe, end])
    return b"".join([MAGIC, header, _words(ends), _words(slots), *tokens])


def _words(values: Sequence[int]) -> bytes:
    """Little-endian 32-bit numbers."""
    words = array("I", values)
    if sys.byteorder != "little":
        words.byteswap()
    return words.tobytes()
