"""Devices for code that knows one sequence with explicit past: a ragged step becomes one call for each sequence.

    backend.forward(ids [T], positions [T], past, rows [R])  ->  logits [R, vocab], present

The pages of the runtime's cache stay the truth: what a call adds to a sequence is written to its pages. Its whole
present is remembered beside them, and is the next call's past as long as the pages still hold the same, so a token
costs no copy of the past here. Where they do not (the sequence went back by more than its last step, pages were used by
another sequence, a sequence shares pages that another has written) the past is read from the pages again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamac.errors import LlamacError

from .kv_pages import Int64s, KvPages, Past
from .profile import Profile
from .run_plan import MemoryPlan
from .step_pictures import StepPictures

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class SequenceBackend(Protocol):
    """A compiled model of one sequence, with explicit past. Calls never overlap.

    name: what errors call it. cache_shapes: (KV heads, head size) of each layer. cache_dtype: the type of keys and
    values. threads: how many it works with.
    """

    name: str
    vocab_size: int
    cache_shapes: Sequence[tuple[int, int]]
    cache_dtype: npt.DTypeLike
    threads: int

    def forward(self, ids: Int32s, positions: Int32s, past: Past, rows: Int32s) -> tuple[Float32s, Past]:
        """Run T tokens at `positions`, which follow the P tokens of `past`: P .. P + T - 1.

        past: k.0, v.0, k.1, v.1 ..., each [KV heads, P, head size], C contiguous, P >= 0; it must stay as it is. rows:
        [R] indices into the T rows. Gives the logits of those rows, float32 [R, vocab], and the past of the next call:
        arrays [KV heads, P + T, head size], C contiguous, that the backend does not touch any more. Raises LLC0806.
        """

    def close(self) -> None:
        """Let go of code and memory."""


@dataclass(frozen=True)
class _Remembered:
    """The present after a sequence's last call, with the pages that held it then and the stamps they had."""

    present: Past
    pages: list[Int32s]
    stamps: list[Int64s]

    @property
    def length(self) -> int:
        return int(self.present[0].shape[1])


@dataclass(frozen=True)
class _Part:
    """What one sequence has in a step: its rows, the position of the first, its page tables, the rows with logits."""

    rows: npt.NDArray[np.intp]
    start: int
    tables: Int32s
    wanted: npt.NDArray[np.intp]
    """Places in the step's list of logit rows."""


class OneSequenceDevice:
    """`backend` behind the runtime's `step`, which may be called from any thread; one call at a time runs.

    page_counts: pages of each cache of `plan`. token_ids: how many ids can be fed, the vocabulary's unless given.
    Sequences of a step are run one after the other. The backend is closed with the device.
    """

    most_top = 0
    """No lists of best logits are ranked."""

    def __init__(
        self, backend: SequenceBackend, plan: MemoryPlan, page_counts: Sequence[int], token_ids: int | None = None
    ) -> None:
        self.plan = plan
        self.vocab_size = backend.vocab_size
        self.page_counts = list(page_counts)
        self.threads = backend.threads
        self._token_ids = token_ids or backend.vocab_size
        self._backend: SequenceBackend | None = backend
        self._name = backend.name
        self._lock = threading.Lock()
        if any(cache.cross for cache in plan.caches):
            raise self._cannot("keep vision tokens in a cache")
        shapes, dtype = backend.cache_shapes, backend.cache_dtype
        self._pages = KvPages(plan.caches, page_counts, plan.kv_page_tokens, shapes, dtype)
        self._room = max(page_counts) * plan.kv_page_tokens
        self._stamp = 0
        self._remembered: OrderedDict[int, _Remembered] = OrderedDict()

    @property
    def kv_bytes(self) -> int:
        """Bytes reserved for the pages; what is remembered beside them takes as much again at most."""
        return self._pages.nbytes

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
        """Run one ragged step, as `CpuDevice.step`; LLC0806 on refusal, LLC0939 for pictures."""
        if pictures is not None:
            raise self._cannot("take pictures")
        if logits.dtype != np.float32 or logits.shape != (logit_rows.size, self.vocab_size):
            raise ValueError(f"step needs float32 logits of shape ({logit_rows.size}, {self.vocab_size})")
        with self._lock:
            if self._backend is None:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            for part in self._parts(token_ids, positions, sequence_of_token, page_tables, logit_rows):
                recalled = self._recall(part)
                past = self._past(part, recalled)
                row_numbers = np.searchsorted(part.rows, logit_rows[part.wanted]).astype(np.int32)
                ids, places = token_ids[part.rows], positions[part.rows]
                found, present = self._backend.forward(ids, places, past, row_numbers)
                logits[part.wanted] = found
                self._keep(part, present, recalled)

    def _parts(
        self, token_ids: Int32s, positions: Int32s, sequence_of_token: Int32s, page_tables: Int32s, logit_rows: Int32s
    ) -> list[_Part]:
        """The step by sequence, all checked before anything runs: LLC0806 for numbers out of their range."""
        if not token_ids.shape == positions.shape == sequence_of_token.shape or page_tables.ndim != 3:
            raise ValueError(
                "step needs token_ids, positions, sequence_of_token of one length and page_tables[C, S, P]"
            )
        if page_tables.shape[0] != len(self.page_counts):
            raise ValueError(f"step needs the page tables of {len(self.page_counts)} caches")
        sequences, tokens = page_tables.shape[1], token_ids.size
        ranges = (
            (token_ids, self._token_ids, "token id"),
            (sequence_of_token, sequences, "sequence index"),
            (logit_rows, tokens, "logit row"),
        )
        for values, stop, name in ranges:
            if values.size and not (values.min() >= 0 and values.max() < stop):
                raise self._refused(tokens, f"{name} out of range")
        of_wanted = sequence_of_token[logit_rows]
        parts = []
        for sequence in dict.fromkeys(sequence_of_token.tolist()):
            rows = np.flatnonzero(sequence_of_token == sequence)
            start = int(positions[rows[0]])
            if start < 0 or not np.array_equal(positions[rows], np.arange(start, start + rows.size)):
                raise self._refused(tokens, f"the positions of sequence {sequence} do not follow one another")
            tables = page_tables[:, sequence]
            self._check_pages(tables, start, start + rows.size, tokens)
            parts.append(_Part(rows, start, tables, np.flatnonzero(of_wanted == sequence)))
        return parts

    def _check_pages(self, tables: Int32s, start: int, stop: int, tokens: int) -> None:
        """Every row that is written, and every one that can be seen, must have a page of the cache."""
        size = self.plan.kv_page_tokens
        for table, cache, count in zip(tables, self.plan.caches, self.page_counts, strict=True):
            seen = start // cache.chunk * cache.chunk if cache.chunk else 0
            pages = table[seen // size : -(-stop // size)]
            if len(pages) < -(-stop // size) - seen // size or (pages < 0).any() or table.max() >= count:
                raise self._refused(tokens, "page out of range or missing")

    def _past(self, part: _Part, recalled: int | None) -> Past:
        """The keys and values before a sequence's first row."""
        if part.start == 0:
            return self._pages.empty()
        if recalled is None:
            return self._pages.read(part.tables, part.start)
        found = self._remembered[recalled]
        if found.length == part.start:
            return found.present
        return [np.ascontiguousarray(array[:, : part.start]) for array in found.present]

    def _recall(self, part: _Part) -> int | None:
        """The number of the call whose present begins with what these pages hold; None when there is none."""
        if part.start == 0:
            return None
        last = (part.start - 1) // self.plan.kv_page_tokens
        written = [int(s[t[last]]) for s, t in zip(self._pages.stamps, part.tables, strict=True) if t[last] >= 0]
        number = max(written, default=0)
        found = self._remembered.get(number)
        if found is None or found.length < part.start:
            return None
        pages = self._pages.pages_of(part.tables, 0, part.start)
        for stamps, own, then, old in zip(self._pages.stamps, pages, found.pages, found.stamps, strict=True):
            count = len(own)
            same = (own == then[:count]) & (stamps[own] == old[:count])
            if not (same | (own < 0)).all():
                return None
        return number

    def _keep(self, part: _Part, present: Past, recalled: int | None) -> None:
        """Write a sequence's new rows to its pages, and remember its present; the one that it continues is dropped."""
        stop = int(present[0].shape[1])
        if stop != part.start + part.rows.size:
            raise self._refused(part.rows.size, f"its code gives the keys of {stop} tokens")
        touched = self._pages.pages_of(part.tables, part.start, stop)
        overwritten = {n for s, pages in zip(self._pages.stamps, touched, strict=True) for n in s[pages].tolist()}
        for number in (recalled, *overwritten):
            self._remembered.pop(number or 0, None)
        self._stamp += 1
        self._pages.write(part.tables, part.start, present, self._stamp)
        held = [table.copy() for table in self._pages.pages_of(part.tables, 0, stop)]
        stamps = [own[table] for own, table in zip(self._pages.stamps, held, strict=True)]
        self._remembered[self._stamp] = _Remembered(present, held, stamps)
        while sum(entry.length for entry in self._remembered.values()) > self._room:
            self._remembered.popitem(last=False)

    def _refused(self, tokens: int, reason: str) -> LlamacError:
        return LlamacError(
            "LLC0806", self._name, f"step of {tokens} tokens: {reason}", "check the file with `llamac verify`"
        )

    def _cannot(self, what: str) -> LlamacError:
        return LlamacError("LLC0939", self._name, f"this device does not {what}", "run the model on the CPU target")

    def expert_counts(self) -> npt.NDArray[np.uint64]:
        """Empty: nothing counts here."""
        return np.zeros((1, 0), np.uint64)

    def profiled(self) -> AbstractContextManager[Profile]:
        """LLC0939: no profile is taken of code that is not llamac's."""
        raise self._cannot("take a profile")

    def close(self) -> None:
        """Close the backend and forget the cache; `step` refuses afterwards."""
        with self._lock:
            backend, self._backend = self._backend, None
            self._remembered.clear()
        if backend is not None:
            backend.close()
