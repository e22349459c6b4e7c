"""Reads `ranks.table`: the ranks of a tokenizer.model as a hash table that is used where it lies.

Little-endian. 16 bytes of magic, then four 32-bit numbers: tokens, slots (a power of two), the longest probe, bytes of
text; then the end of each token in the text, a slot each holding rank + 1 or 0, and the text of all tokens in the
order of their ranks. A token's first slot is its CRC-32 modulo the slots; the ones after it follow, around the end.
The compiler writes it (models/llama/rank_table.py), so that loading neither parses base64 nor fills a dictionary.
"""

from __future__ import annotations

import sys
from binascii import crc32

from .tokenizer_files import malformed

RANK_TABLE_FILE = "ranks.table"
MAGIC = b"llamac ranks 1\n\0"
HEADER = len(MAGIC) + 16
LONGEST_PROBE = 4096
"""Slots that a lookup may try: a table that is at most half full takes some dozens."""


class RankTable:
    """`len(table)` ranks; raises LLC0903 for bytes that are not such a table."""

    def __init__(self, data: bytes) -> None:
        if data[: len(MAGIC)] != MAGIC or len(data) < HEADER:
            raise malformed(RANK_TABLE_FILE, "it does not begin as a table of ranks")
        if sys.byteorder != "little":
            raise malformed(RANK_TABLE_FILE, "it is little-endian, this machine is not")
        view = memoryview(data)
        count, slots, self._longest_probe, text_bytes = view[len(MAGIC) : HEADER].cast("I")
        text_start = HEADER + 4 * (count + slots)
        if (
            slots & (slots - 1)
            or count >= slots
            or text_start + text_bytes != len(data)
            or self._longest_probe > LONGEST_PROBE
        ):
            raise malformed(RANK_TABLE_FILE, f"{len(data)} bytes do not hold {count} tokens in {slots} slots")
        self._ends = view[HEADER : HEADER + 4 * count].cast("I")
        self._slots = view[HEADER + 4 * count : text_start].cast("I")
        self._text = view[text_start:]
        self._count = count
        self._mask = slots - 1

    def __len__(self) -> int:
        return self._count

    def token(self, rank: int) -> bytes:
        """The bytes of the token of a rank below `len`."""
        start = self._ends[rank - 1] if rank else 0
        return bytes(self._text[start : self._ends[rank]])

    def rank(self, token: bytes) -> int | None:
        """The rank of a token, or None for bytes that are no token."""
        slot = crc32(token)
        for probe in range(self._longest_probe + 1):
            found = self._slots[(slot + probe) & self._mask]
            if not found or found > self._count:
                return None
            if self.token(found - 1) == token:
                return found - 1
        return None

    def all_ranks(self) -> dict[bytes, int]:
        """Every token with its rank, as tiktoken wants them."""
        return {self.token(rank): rank for rank in range(self._count)}
