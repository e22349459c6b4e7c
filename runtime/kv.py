"""The paged KV cache: which sequence owns which page, and the arithmetic when there are none left.

A page holds `page_tokens` consecutive tokens of one sequence. The token at position t of a sequence lives in page
`table[t // page_tokens]`, slot `t % page_tokens`; the memory itself belongs to the device.
"""

from __future__ import annotations

import threading

from llamac.errors import LlamacError


class PagePool:
    """Hands out and takes back the pages of one KV memory; the page freed last is handed out first (it is warm).

    Sequences of several threads may share one.
    """

    def __init__(self, page_count: int, page_tokens: int) -> None:
        self.page_count = page_count
        self.page_tokens = page_tokens
        self._lock = threading.Lock()
        self._free = list(range(page_count - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        """Pages that no sequence owns."""
        return len(self._free)

    def pages_for(self, tokens: int) -> int:
        """How many pages `tokens` tokens of one sequence fill, the last one perhaps in part."""
        return -(-tokens // self.page_tokens)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages, all or none; LLC0808 when fewer are free."""
        with self._lock:
            if count > len(self._free):
                raise self._exhausted(count)
            return [self._free.pop() for _ in range(count)]

    def release(self, pages: list[int]) -> None:
        """Give pages back; the caller drops its table."""
        with self._lock:
            self._free.extend(reversed(pages))

    def _exhausted(self, count: int) -> LlamacError:
        used = self.page_count - len(self._free)
        reason = (
            f"{count} more pages of {self.page_tokens} tokens are needed, {len(self._free)} are free: "
            f"{used} of {self.page_count} are in use ({self.page_count} x {self.page_tokens} = "
            f"{self.page_count * self.page_tokens} tokens in all)"
        )
        return LlamacError("LLC0808", "KV cache", reason, "load the model with more sequences, or close some first")


class CachedSequence:
    """One sequence in the cache: the ids whose keys and values are there, and the pages that hold them."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self.ids: list[int] = []
        self.pages: list[int] = []
        self.closed = False

    def __len__(self) -> int:
        """Tokens in the cache: the position that the next token gets."""
        return len(self.ids)

    def reserve(self, tokens: int) -> None:
        """Own enough pages for `tokens` tokens in all; LLC0808 (and nothing taken) when the pool has too few."""
        if self.closed:
            raise LlamacError("LLC0815", "KV cache", "the sequence is closed", "open a new one")
        missing = self._pool.pages_for(tokens) - len(self.pages)
        if missing > 0:
            self.pages += self._pool.allocate(missing)

    def truncate(self, tokens: int) -> None:
        """Forget everything from position `tokens` on; the pages stay owned until `trim` or `close`."""
        del self.ids[tokens:]

    def trim(self) -> None:
        """Give back the pages beyond the last token."""
        kept = self._pool.pages_for(len(self.ids))
        self._pool.release(self.pages[kept:])
        del self.pages[kept:]

    def close(self) -> None:
        """Give every page back; the sequence cannot be used afterwards."""
        self._pool.release(self.pages)
        self.ids, self.pages, self.closed = [], [], True
