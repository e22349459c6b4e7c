"""The low-level way to run a model: sequences in a paged cache, fed tokens together by one ragged step.

    session = Session(device, context=2048)
    first, second = session.open(), session.open()
    logits = session.step([Feed(first, ids), Feed(second, other_ids)])    # [2, vocab]: each one's last row

What a row gives does not depend on how its sequence was cut into steps, nor on which sequences it was stepped with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from llamac.errors import LlamacError

from .device_cpu import Float32s, Int32s
from .device_turns import DeviceTurns
from .images.placed import PromptImage
from .kv import CachedSequence, CopyPage, make_pools
from .pictures import encode, pictures_of
from .ranked import RankedRows
from .run_plan import MemoryPlan
from .step_pictures import StepPictures

WantedRows = Literal["last", "all", "none"]

StepRows = tuple[Int32s, Int32s, Int32s, Int32s, Int32s]
"""token_ids, positions, sequence_of_token, page_tables, logit_rows: see `StepDevice.step`."""


class StepDevice(Protocol):
    """What a session needs of a device; `CpuDevice` is one."""

    plan: MemoryPlan
    vocab_size: int

    @property
    def page_counts(self) -> Sequence[int]:
        """Pages of each cache."""

    def step(
        self,
        token_ids: Int32s,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        logit_rows: Int32s,
        logits: Float32s,
        pictures: StepPictures | None = None,
    ) -> None:
        """Run one ragged step and fill `logits`."""


@runtime_checkable
class RankingDevice(Protocol):
    """A device that can also rank the logits of a step while it computes them."""

    @property
    def most_top(self) -> int:
        """The longest list of best logits that a step ranks; 0: this model's code ranks none."""

    def step(
        self,
        token_ids: Int32s,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        logit_rows: Int32s,
        logits: Float32s | None,
        pictures: StepPictures | None = None,
        ranked: RankedRows | None = None,
    ) -> None:
        """Run one ragged step, fill `ranked`, and `logits` when given."""


@runtime_checkable
class DrawingDevice(Protocol):
    """A device that can also draw a token from each row of logits of a step, which then stay there."""

    draws_ahead: bool
    """Whether this model's code does."""

    def step_drawn(
        self,
        token_ids: Int32s,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        logit_rows: Int32s,
        sampling: Int32s,
        pictures: StepPictures | None = None,
    ) -> Int32s:
        """Run one ragged step; what was drawn, i32 [R, SAMPLED_WORDS]."""


@runtime_checkable
class PageCopyingDevice(Protocol):
    """A device that can copy a page of a cache: sequences on it can be forked."""

    def copy_page(self, cache: int, source: int, to: int) -> None:
        """Copy what page `source` of the cache with this number holds to page `to`."""


@dataclass(frozen=True)
class Feed:
    """Tokens to append to one sequence in a step, and which of their rows get logits.

    The sequence knows its pictures: positions that `Session.place` gave to one take its embeddings or see it.
    """

    sequence: CachedSequence
    ids: Sequence[int]
    rows: WantedRows = "last"


class Session:
    """Sequences of one model, each at most `context` tokens, sharing the pages of the device's KV memory."""

    def __init__(self, device: StepDevice, context: int, token_ids: int | None = None) -> None:
        self.device = device
        self.context = context
        self.token_ids = token_ids or device.vocab_size
        self.pools = make_pools(device.plan, device.page_counts)
        self.turns = DeviceTurns(device)
        self._copies_pages = isinstance(device, PageCopyingDevice)

    @property
    def max_step_tokens(self) -> int:
        """The most tokens that one step takes, over all its sequences."""
        return self.device.plan.max_step_tokens

    @property
    def _copy_page(self) -> CopyPage | None:
        """What copies a page; None on a device that cannot."""
        return self._copied if self._copies_pages else None

    def _copied(self, cache: int, source: int, to: int) -> None:
        assert isinstance(self.device, PageCopyingDevice)
        with self.turns.of():
            self.device.copy_page(cache, source, to)

    @property
    def most_top(self) -> int:
        """The longest list of best logits that `step_ranked` gives; 0: it cannot be used."""
        return self.device.most_top if isinstance(self.device, RankingDevice) else 0

    @property
    def draws(self) -> bool:
        """Whether `step_drawn` can be used."""
        return isinstance(self.device, DrawingDevice) and self.device.draws_ahead

    def open(self) -> CachedSequence:
        """A new, empty sequence; `close` it to give its pages back."""
        return CachedSequence(*self.pools)

    def fork(self, sequence: CachedSequence) -> CachedSequence:
        """Another sequence with the same tokens and pictures, which goes its own way from here; `close` it too.

        The two share their pages until one of them writes. On a device that cannot copy pages the tokens are computed
        again, and pictures cannot be taken along (LLC0815).
        """
        if self._copy_page is not None:
            return sequence.fork()
        if sequence.closed or sequence.images.placed:
            reason = "the sequence is closed, or holds pictures, which this device cannot copy"
            raise LlamacError("LLC0815", "KV cache", reason, "open a new sequence and place the pictures there")
        other = self.open()
        if sequence.ids:
            self.prefill(other, sequence.ids)
        return other

    def check_prompt(self, ids: Sequence[int]) -> None:
        """Refuse what cannot run: no ids (LLC0810), more than the context (LLC0809), ids not in the vocabulary."""
        if len(ids) == 0:
            raise LlamacError("LLC0810", "prompt", "it holds no tokens", "give at least one")
        self._check_length(len(ids))
        self._check_ids(ids)

    def _check_length(self, tokens: int) -> None:
        if tokens > self.context:
            reason = f"{tokens} tokens, the context holds {self.context}: {tokens - self.context} too many"
            raise LlamacError("LLC0809", "prompt", reason, "shorten it; nothing is cut off silently")

    def _check_ids(self, ids: Iterable[int]) -> None:
        for index, token_id in enumerate(ids):
            if not 0 <= token_id < self.token_ids:
                reason = f"token {index} has id {token_id}, the vocabulary holds 0..{self.token_ids - 1}"
                raise LlamacError("LLC0812", "prompt", reason, "encode the prompt with the artifact's own tokenizer")

    def place(self, sequence: CachedSequence, images: Sequence[PromptImage]) -> None:
        """Encode pictures for positions of `sequence` that have not been fed yet; its own pictures lie before them.

        LLC0839 when the cache has no room for their vision tokens.
        """
        for image in images:
            total = sequence.images.vision_tokens + image.vision_tokens
            sequence.reserve(len(sequence), total)
            sequence.cover_vision(image.vision_tokens, self._copy_page)
            with self.turns.of():
                made = encode(self.device, sequence, image)
            sequence.images.add(image, made)

    def step(self, feeds: Sequence[Feed], out: Float32s | None = None) -> Float32s:
        """Append each feed's ids to its sequence in one step; the wanted logit rows, [R, vocab], in feed order.

        At most `max_step_tokens` ids in all (ValueError: use `prefill` for long prompts). `out`, when given, is the
        [R, vocab] array to fill. Pages are taken as needed (LLC0808 when there are none left); a step that fails
        leaves every sequence where it was.
        """
        logits = np.empty((wanted_rows(feeds), self.device.vocab_size), np.float32) if out is None else out
        self._step(feeds, lambda rows, pictures: self._run(rows, pictures, logits, None))
        return logits

    def step_ranked(self, feeds: Sequence[Feed], ranked: RankedRows, out: Float32s | None = None) -> RankedRows:
        """As `step`, for the best logits of the wanted rows, and their sums when `ranked` has room for them.

        Each list holds as many as `ranked` has room for, at most `most_top`. The logits themselves are written
        only to `out`, when it is given.
        """
        self._step(feeds, lambda rows, pictures: self._run(rows, pictures, out, ranked))
        return ranked

    def step_drawn(self, feeds: Sequence[Feed], sampling: Int32s) -> Int32s:
        """As `step`, for a token drawn for each wanted row as `sampling_rows` says; i32 [R, SAMPLED_WORDS]."""
        device, found = self.device, np.empty((0, 0), np.int32)
        assert isinstance(device, DrawingDevice)

        def run(rows: StepRows, pictures: StepPictures | None) -> None:
            nonlocal found
            found = device.step_drawn(*rows, sampling, pictures)

        self._step(feeds, run)
        return found

    def _step(self, feeds: Sequence[Feed], run: Callable[[StepRows, StepPictures | None], None]) -> None:
        counts = [len(feed.ids) for feed in feeds]
        total = sum(counts)
        if not 0 < total <= self.max_step_tokens:
            raise ValueError(f"a step takes 1..{self.max_step_tokens} tokens, not {total}")
        for feed in feeds:
            self._check_length(len(feed.sequence) + len(feed.ids))
            self._check_ids(feed.ids)
            feed.sequence.reserve(len(feed.sequence) + len(feed.ids), feed.sequence.images.vision_tokens)
        for feed in feeds:
            feed.sequence.cover(len(feed.sequence) + len(feed.ids), self._copy_page)
        rows = _logit_rows(feeds, counts)
        arguments = (
            np.fromiter((token for feed in feeds for token in feed.ids), np.int32, total),
            np.concatenate([_positions(feed) for feed in feeds]),
            np.repeat(np.arange(len(feeds), dtype=np.int32), counts),
            page_tables(feeds),
            rows,
        )
        pictures = pictures_of([(feed.sequence, len(feed.ids)) for feed in feeds])
        with self.turns.of():
            run(arguments, pictures)
        for feed in feeds:
            feed.sequence.ids.extend(feed.ids)
            feed.sequence.images.fed(len(feed.sequence))

    def _run(
        self,
        rows: StepRows,
        pictures: StepPictures | None,
        logits: Float32s | None,
        ranked: RankedRows | None,
    ) -> None:
        if ranked is not None:
            assert isinstance(self.device, RankingDevice)
            self.device.step(*rows, logits, pictures, ranked)
            return
        assert logits is not None
        self.device.step(*rows, logits) if pictures is None else self.device.step(*rows, logits, pictures)

    def prefill(self, sequence: CachedSequence, ids: Sequence[int]) -> Float32s:
        """Append `ids` in steps of at most `max_step_tokens`; the logits of the last one, [vocab]."""
        sequence.reserve(len(sequence) + len(ids), sequence.images.vision_tokens)
        last = len(ids) - 1
        size = self.max_step_tokens
        for start in range(0, last + 1, size):
            part = ids[start : start + size]
            logits = self.step([Feed(sequence, part, "last" if start + len(part) > last else "none")])
        return np.asarray(logits[0])

    def all_logits(self, ids: Sequence[int]) -> Float32s:
        """The logits after every id of one fresh sequence, [len(ids), vocab]."""
        self.check_prompt(ids)
        logits = np.empty((len(ids), self.device.vocab_size), np.float32)
        sequence = self.open()
        try:
            for start in range(0, len(ids), self.max_step_tokens):
                stop = min(start + self.max_step_tokens, len(ids))
                self.step([Feed(sequence, ids[start:stop], "all")], logits[start:stop])
        finally:
            sequence.close()
        return logits


def wanted_rows(feeds: Sequence[Feed]) -> int:
    """How many rows of a step get logits."""
    return sum(len(f.ids) if f.rows == "all" else f.rows == "last" and len(f.ids) > 0 for f in feeds)


def _positions(feed: Feed) -> Int32s:
    start = len(feed.sequence)
    return np.arange(start, start + len(feed.ids), dtype=np.int32)


def page_tables(feeds: Sequence[Feed]) -> Int32s:
    """[caches, sequences, pages of the longest], -1 where a sequence has no page."""
    owned = [[table.pages for table in feed.sequence.tables] for feed in feeds]
    longest = max(len(pages) for row in owned for pages in row)
    tables = np.full((len(owned[0]), len(feeds), longest), -1, np.int32)
    for sequence, row in enumerate(owned):
        for cache, pages in enumerate(row):
            tables[cache, sequence, : len(pages)] = pages
    return tables


def _logit_rows(feeds: Sequence[Feed], counts: Sequence[int]) -> Int32s:
    """Which of the step's rows get logits, as indices into all its rows."""
    rows: list[int] = []
    end = 0
    for feed, count in zip(feeds, counts, strict=True):
        start, end = end, end + count
        if feed.rows == "all":
            rows.extend(range(start, end))
        elif feed.rows == "last" and count:
            rows.append(end - 1)
    return np.array(rows, dtype=np.int32)
