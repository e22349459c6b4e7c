"""The paged KV cache: which sequence owns which page, and the arithmetic when there are none left.

A page holds `page_tokens` consecutive tokens of one sequence. The token at position t of a sequence lives in page
`table[t // page_tokens]`, slot `t % page_tokens`; the memory itself belongs to the device. Each kind of attention layer
has a pool of its own: where rows see only their own chunk of positions, a sequence uses the pages behind it again. The
pool of layers that attend to pictures holds vision tokens instead, as many as the pictures of a sequence have.

A fork of a sequence shares its pages; whoever first writes to a shared page takes a copy of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from llamac.errors import LlamacError

from .images.placed import PromptImage, SequenceImages
from .run_plan import MemoryPlan

CopyPage = Callable[[int, int, int], None]
"""(number of the cache, page to read, page to write): copies what a page holds."""


def window_pages(chunk: int, step_tokens: int, page_tokens: int) -> int:
    """The most pages that the rows of one step can see and write, in layers that see `chunk` positions.

    A step of n rows that begins in a chunk touches chunk - 1 + n positions at most, from the chunk's first on, which
    may lie inside a page.
    """
    return -(-(chunk - 1 + step_tokens) // page_tokens) + (1 if chunk % page_tokens else 0)


def make_pools(plan: MemoryPlan, page_counts: Sequence[int]) -> list[PagePool]:
    """The pools of a plan's caches, with so many pages each."""
    page, step = plan.kv_page_tokens, plan.max_step_tokens
    return [
        PagePool(n, page, cache.chunk, step, cache.cross) for n, cache in zip(page_counts, plan.caches, strict=True)
    ]


def pages_for(plan: MemoryPlan, tokens: int, vision_tokens: int = 0) -> list[int]:
    """The pages of each cache that one sequence of `tokens` tokens and so many vision tokens needs."""
    pools = make_pools(plan, [0] * len(plan.caches))
    return [pool.pages_for(vision_tokens if pool.cross else tokens) for pool in pools]


class PagePool:
    """Hands out and takes back the pages of one KV memory; the page freed last is handed out first (it is warm).

    chunk: the positions that a row sees (0: all before it); step_tokens: the most rows of a step, for such pools.
    cross: its tokens are vision tokens. Sequences of several threads may share one.
    """

    def __init__(
        self, page_count: int, page_tokens: int, chunk: int = 0, step_tokens: int = 1, cross: bool = False
    ) -> None:
        self.page_count = page_count
        self.page_tokens = page_tokens
        self.chunk = chunk
        self.cross = cross
        self._window = window_pages(chunk, step_tokens, page_tokens) if chunk else None
        self._lock = threading.Lock()
        self._free = list(range(page_count - 1, -1, -1))
        self._more_owners: dict[int, int] = {}
        self._returned: deque[Sequence[int]] = deque()

    @property
    def free_pages(self) -> int:
        """Pages that no sequence owns."""
        with self._lock:
            self._take_back()
            return len(self._free)

    def pages_for(self, tokens: int) -> int:
        """How many pages `tokens` tokens of one sequence need at most at a time, the last one perhaps in part."""
        pages = -(-tokens // self.page_tokens)
        return pages if self._window is None else min(pages, self._window)

    def first_visible(self, position: int) -> int:
        """The first position that a row at `position` sees."""
        return position // self.chunk * self.chunk if self.chunk else 0

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages, all or none; LLC0808 when fewer are free."""
        with self._lock:
            self._take_back()
            if count > len(self._free):
                raise self._exhausted(count)
            return [self._free.pop() for _ in range(count)]

    def share(self, pages: Sequence[int]) -> None:
        """Each of the pages has one owner more, who gives it back by `release` too."""
        with self._lock:
            for page in pages:
                self._more_owners[page] = self._more_owners.get(page, 0) + 1

    def is_shared(self, page: int) -> bool:
        """Whether the page has several owners: none of them may write to it."""
        return page in self._more_owners

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back; the caller drops its table. A shared page is free when its last owner has.

        Never waits: a stream that nobody holds is closed wherever Python collects it, in the middle of a call here too.
        """
        self._returned.append(list(pages))
        if self._lock.acquire(blocking=False):
            try:
                self._take_back()
            finally:
                self._lock.release()

    def _take_back(self) -> None:
        """Free what was given back; the lock is held."""
        while self._returned:
            for page in reversed(self._returned.popleft()):
                others = self._more_owners.pop(page, 0)
                if others == 0:
                    self._free.append(page)
                elif others > 1:
                    self._more_owners[page] = others - 1

    def _exhausted(self, count: int) -> LlamacError:
        if self.cross:
            room = f"{self.page_count} x {self.page_tokens} = {self.page_count * self.page_tokens}"
            reason = (
                f"{count} more pages of {self.page_tokens} vision tokens are needed, {len(self._free)} are free "
                f"({room} tokens in all)"
            )
            return LlamacError("LLC0839", "images", reason, "load the model with more images, or give fewer pictures")
        used = self.page_count - len(self._free)
        reason = (
            f"{count} more pages of {self.page_tokens} tokens are needed, {len(self._free)} are free: "
            f"{used} of {self.page_count} are in use ({self.page_count} x {self.page_tokens} = "
            f"{self.page_count * self.page_tokens} tokens in all)"
        )
        return LlamacError("LLC0808", "KV cache", reason, "load the model with more sequences, or close some first")


class PageTable:
    """The pages of one sequence in one pool: `pages[i]` holds its i-th page_tokens tokens, -1 where nothing does.

    No page before `_first` is held; pages that are owned and hold nothing wait in `_spare`.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.pages: list[int] = []
        self._spare: list[int] = []
        self._first = 0
        self._start = 0  # no position before it is held, though its page may be

    @property
    def owned(self) -> int:
        """Pages taken from the pool."""
        return sum(page >= 0 for page in self.pages[self._first :]) + len(self._spare)

    def missing(self, tokens: int, start: int = 0) -> int:
        """Pages to take from the pool, so that positions start..tokens - 1 can be written."""
        # Of a window every page comes to be written; elsewhere only those from `start` on.
        written = self._first if self.pool.chunk else start // self.pool.page_tokens
        lent = sum(page >= 0 and self.pool.is_shared(page) for page in self.pages[written:])
        return self.pool.pages_for(tokens) - self.owned + lent

    def reserve(self, tokens: int, start: int = 0) -> None:
        """Own enough pages for `tokens` tokens in all, those from `start` on still to be written."""
        missing = self.missing(tokens, start)
        if missing > 0:
            self._spare = self.pool.allocate(missing)[::-1] + self._spare

    def cover(self, start: int, stop: int, copy: Callable[[int, int], None] | None = None) -> None:
        """Have a page for every position that rows start..stop - 1 see; what lies behind them is used again.

        copy: (page to read, page to write), needed where the pages are shared.
        """
        size = self.pool.page_tokens
        behind = self.pool.first_visible(start) // size
        for index in range(self._first, behind):
            if self.pages[index] >= 0:
                self._put_aside(self.pages[index])
                self.pages[index] = -1
        self._first, self._start = behind, max(self._start, behind * size)
        self.pages += [-1] * (-(-stop // size) - len(self.pages))
        for index in range(behind, len(self.pages)):
            if self.pages[index] < 0:
                self.pages[index] = self._spare.pop()
            elif index >= start // size and self.pool.is_shared(self.pages[index]):
                self.pages[index] = self._own_copy(self.pages[index], copy)

    def _own_copy(self, page: int, copy: Callable[[int, int], None] | None) -> int:
        if copy is None:
            raise RuntimeError("a fork was made on a device that cannot copy pages")
        own = self._spare.pop()
        copy(page, own)
        self.pool.release([page])
        return own

    def _put_aside(self, page: int) -> None:
        """The page holds nothing that is needed: keep it for later, unless others need it."""
        if self.pool.is_shared(page):
            self.pool.release([page])
        else:
            self._spare.append(page)

    def fork(self) -> PageTable:
        """A table of the same pages."""
        other = PageTable(self.pool)
        other.pages, other._first, other._start = list(self.pages), self._first, self._start
        self.pool.share([page for page in self.pages if page >= 0])
        return other

    def resumable(self, tokens: int) -> int:
        """The last position up to `tokens` from which rows can go on: they need what they see of the rows before."""
        if tokens == 0:
            return 0
        seen = self.pool.first_visible(tokens)
        return tokens if seen == tokens or seen >= self._start else seen

    def truncate(self, tokens: int) -> None:
        """Forget everything from position `tokens` on; the pages stay owned."""
        kept = -(-tokens // self.pool.page_tokens)
        while len(self.pages) > kept:
            page = self.pages.pop()
            if page >= 0:
                self._put_aside(page)
        self._first, self._start = min(self._first, kept), min(self._start, tokens)

    def trim(self) -> None:
        """Give back the pages that hold nothing."""
        self.pool.release(self._spare)
        self._spare = []

    def close(self) -> None:
        """Give every page back."""
        self.pool.release([page for page in self.pages if page >= 0] + self._spare)
        self.pages, self._spare, self._first, self._start = [], [], 0, 0


class CachedSequence:
    """One sequence in the cache: ids whose keys and values are there, its pictures, and the pages that hold them."""

    def __init__(self, *pools: PagePool) -> None:
        self.tables = [PageTable(pool) for pool in pools]
        self.ids: list[int] = []
        self.images = SequenceImages()
        self.closed = False
        self._writer: object | None = None

    def __len__(self) -> int:
        """Tokens in the cache: the position that the next token gets."""
        return len(self.ids)

    @property
    def pages(self) -> list[int]:
        """The pages in the first pool."""
        return self.tables[0].pages

    @property
    def vision_pages(self) -> list[int]:
        """The pages that hold vision tokens; none where pictures come in otherwise."""
        return next((table.pages for table in self.tables if table.pool.cross), [])

    @property
    def takes_vision_tokens(self) -> bool:
        """Whether the model keeps pictures in a cache of their own."""
        return any(table.pool.cross for table in self.tables)

    def missing_pages(self, tokens: int, vision_tokens: int = 0) -> list[int]:
        """For each pool, how many pages more than it owns the sequence needs for so many tokens in all."""
        wanted = (vision_tokens, self.images.vision_tokens), (tokens, len(self.ids))
        return [table.missing(*wanted[0 if table.pool.cross else 1]) for table in self.tables]

    def _check_open(self) -> None:
        if self.closed:
            raise LlamacError("LLC0815", "KV cache", "the sequence is closed", "open a new one")

    def reserve(self, tokens: int, vision_tokens: int = 0) -> None:
        """Own enough pages for so many tokens in all; LLC0808, LLC0839 (and nothing taken) when a pool has too few."""
        self._check_open()
        for place, table in enumerate(self.tables):
            try:
                if table.pool.cross:
                    table.reserve(vision_tokens, self.images.vision_tokens)
                else:
                    table.reserve(tokens, len(self.ids))
            except LlamacError:
                for earlier in self.tables[:place]:
                    earlier.trim()
                raise

    def fork(self) -> CachedSequence:
        """Another sequence that holds the same and goes its own way; it shares the pages until one of the two writes.

        Only for a device that can copy pages (`Session.fork`); LLC0815 when the sequence is closed.
        """
        self._check_open()
        other = CachedSequence()
        other.tables = [table.fork() for table in self.tables]
        other.ids, other.images = list(self.ids), self.images.copy()
        return other

    def begin_text(self, owner: object) -> None:
        """`owner` writes here until `end_text`. LLC0820 while another does: each would write over the other."""
        if self._writer not in (None, owner):
            hint = "read that stream to its end or close it, or give each its own sequence"
            raise LlamacError("LLC0820", "KV cache", "another text is being written in the sequence", hint)
        self._writer = owner

    def end_text(self, owner: object) -> None:
        """`owner` has ended, if it is the one that writes here."""
        if self._writer is owner:
            self._writer = None

    def cover(self, stop: int, copy: CopyPage | None = None) -> None:
        """Make ready to append tokens up to position `stop`, which `reserve` has provided for."""
        for cache, table in enumerate(self.tables):
            if not table.pool.cross:
                table.cover(len(self.ids), stop, None if copy is None else partial(copy, cache))

    def cover_vision(self, tokens: int, copy: CopyPage | None = None) -> None:
        """Make ready to append so many vision tokens, which `reserve` has provided for."""
        start = self.images.vision_tokens
        for cache, table in enumerate(self.tables):
            if table.pool.cross:
                table.cover(start, start + tokens, None if copy is None else partial(copy, cache))

    def shared(self, ids: Sequence[int], images: Sequence[PromptImage] = ()) -> int:
        """How many leading positions agree with a prompt's, its pictures included."""
        limit = min(len(self.ids), len(ids))
        agreeing = next((index for index in range(limit) if self.ids[index] != ids[index]), limit)
        return self.images.agreeing(images, agreeing)

    def truncate(self, tokens: int) -> None:
        """Forget everything from position `tokens` on; the pages stay owned until `trim` or `close`.

        Where pages behind a chunk are gone, the sequence goes back to the chunk's first position, and from the middle
        of a picture to its beginning: compare its length.
        """
        kept, before = tokens, -1
        while kept != before:
            before = kept
            own = (table.resumable(kept) for table in self.tables if not table.pool.cross)
            kept = self.images.resumable(min([kept, *own]))
        del self.ids[kept:]
        self.images.truncate(kept)
        self._truncate_tables()

    def _truncate_tables(self) -> None:
        for table in self.tables:
            table.truncate(self.images.vision_tokens if table.pool.cross else len(self.ids))

    def trim(self) -> None:
        """Give back the pages beyond the last token."""
        self._truncate_tables()
        for table in self.tables:
            table.trim()

    def close(self) -> None:
        """Give every page back; the sequence cannot be used afterwards."""
        for table in self.tables:
            table.close()
        self.ids, self.images, self.closed = [], SequenceImages(), True
