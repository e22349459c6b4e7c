"""CRC-32 and SHA-256 of a member, computed while its bytes stream past: once when writing, once when verifying."""

from __future__ import annotations

import hashlib
import zlib

BLOCK_BYTES = 64 << 20
"""Weights carry one SHA-256 for every block of this many bytes (the last block may be shorter)."""


class MemberHasher:
    """Feeds a member's bytes to a CRC-32 and to SHA-256, one digest a block (`block_bytes=None`: one for the whole)."""

    def __init__(self, block_bytes: int | None = None) -> None:
        self.crc = 0
        self.digests: list[str] = []
        self._block_bytes = block_bytes
        self._filled = 0
        self._sha256 = hashlib.sha256()

    def update(self, data: memoryview) -> None:
        """Takes the next bytes; `data` is a one-dimensional view of bytes."""
        while len(data):
            room = len(data) if self._block_bytes is None else self._block_bytes - self._filled
            piece, data = data[:room], data[room:]
            self.crc = zlib.crc32(piece, self.crc)
            self._sha256.update(piece)
            self._filled += len(piece)
            if self._filled == self._block_bytes:
                self._close_block()

    def finish(self) -> list[str]:
        """Hex digests in order: one a block (none for an empty blocked member), or the one of the whole member."""
        if self._filled or self._block_bytes is None:
            self._close_block()
        return self.digests

    def _close_block(self) -> None:
        self.digests.append(self._sha256.hexdigest())
        self._sha256 = hashlib.sha256()
        self._filled = 0
