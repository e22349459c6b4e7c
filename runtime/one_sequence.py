"""Devices for code that knows one sequence with explicit past: a ragged step becomes one call for each sequence.

    backend.forward(ids [T], positions [T], past, rows [R], pictures)  ->  logits [R, vocab], present

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
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamac.errors import LlamacError

from .kv_pages import Int64s, KvPages, Past
from .profile import Profile
from .run_plan import ImagePlan, MemoryPlan
from .sequence_pictures import SequencePictures, VisionCache, shown_to
from .step_pictures import StepPictures, check_pixels

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class SequenceBackend(Protocol):
    """A compiled model of one sequence, with explicit past. Calls never overlap.

    name: what errors call it. cache_shapes: (KV heads, head size) of each layer that attends to the text, then of each
    that attends to vision tokens. cache_dtype: the type of keys and values. threads: how many it works with. encodes:
    whether it has the model's image encoder.
    """

    name: str
    vocab_size: int
    cache_shapes: Sequence[tuple[int, int]]
    cache_dtype: npt.DTypeLike
    threads: int
    encodes: bool

    def forward(
        self, ids: Int32s, positions: Int32s, past: Past, rows: Int32s, pictures: SequencePictures | None
    ) -> tuple[Float32s, Past]:
        """Run T tokens at `positions`, which follow the P tokens of `past`: P .. P + T - 1.

        past: k.0, v.0, k.1, v.1 ..., each [KV heads, P, head size], C contiguous, P >= 0; it must stay as it is. rows:
        [R] indices into the T rows. Gives the logits of those rows, float32 [R, vocab], and the past of the next call:
        arrays [KV heads, P + T, head size], C contiguous, that the backend does not touch any more. pictures: what the
        rows show or see, None for nothing; never given to a backend that does not encode. Raises LLC0806.
        """

    def encode(self, pixels: Float32s, aspect_ratio: int, tokens: int) -> Past:
        """One pass of the image encoder, for float32 pixels [tiles, channels, height, width].

        Gives the embeddings of a tile, [rows, width]; or of a whole picture of the shape `aspect_ratio` the keys and
        values of its first `tokens` vision tokens, k.0, v.0 ... as in a past. Raises LLC0806.
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
    vision: Int32s | None = None
    """The pages of its vision tokens."""


class OneSequenceDevice:
    """`backend` behind the runtime's `step`, which may be called from any thread; one call at a time runs.

    page_counts: pages of each cache of `plan`. token_ids: how many ids can be fed, the vocabulary's unless given.
    image: what a pass of the encoder takes, where the model has one. Sequences of a step are run one after the other.
    The backend is closed with the device.
    """

    most_top = 0
    """No lists of best logits are ranked."""

    def __init__(
        self,
        backend: SequenceBackend,
        plan: MemoryPlan,
        page_counts: Sequence[int],
        token_ids: int | None = None,
        image: ImagePlan | None = None,
    ) -> None:
        self.plan = plan
        self.vocab_size = backend.vocab_size
        self.page_counts = list(page_counts)
        self.threads = backend.threads
        self._token_ids = token_ids or backend.vocab_size
        self._backend: SequenceBackend | None = backend
        self._name = backend.name
        self._lock = threading.Lock()
        self.image = image if backend.encodes else None
        shapes, dtype = backend.cache_shapes, backend.cache_dtype
        self._own = [place for place, cache in enumerate(plan.caches) if not cache.cross]
        self._caches = [plan.caches[place] for place in self._own]
        self._counts = [page_counts[place] for place in self._own]
        layers = sum(len(cache.layers) for cache in self._caches)
        self._pages = KvPages(self._caches, self._counts, plan.kv_page_tokens, shapes[:layers], dtype)
        self._vision: VisionCache | None = None
        for place, cache in enumerate(plan.caches):
            if cache.cross:
                pages = page_counts[place], plan.kv_page_tokens
                self._vision = VisionCache(place, cache, *pages, shapes[layers:], dtype)
        self._room = max(page_counts) * plan.kv_page_tokens
        self._stamp = 0
        self._remembered: OrderedDict[int, _Remembered] = OrderedDict()

    @property
    def kv_bytes(self) -> int:
        """Bytes reserved for the pages; what is remembered beside them takes as much again at most."""
        return self._pages.nbytes + (self._vision.nbytes if self._vision is not None else 0)

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
        """Run one ragged step, as `CpuDevice.step`; LLC0806 on refusal, LLC0939 for pictures it has no encoder for."""
        if pictures is not None:
            if self.image is None:
                raise self._cannot("take pictures")
            pictures.check(token_ids.size)
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
                shown = None if pictures is None else self._shown(part, pictures)
                found, present = self._backend.forward(ids, places, past, row_numbers, shown)
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
            tables = page_tables[self._own, sequence]
            self._check_pages(tables, start, start + rows.size, tokens)
            vision = None if self._vision is None else page_tables[self._vision.place, sequence]
            parts.append(_Part(rows, start, tables, np.flatnonzero(of_wanted == sequence), vision))
        return parts

    def _shown(self, part: _Part, pictures: StepPictures) -> SequencePictures:
        """What one sequence is shown, all checked: LLC0806 for rows and vision tokens that are not there."""
        shown, tokens = shown_to(pictures, part.rows), part.rows.size
        if shown.image_rows is not None and shown.image_embeddings is not None:
            count, width = shown.image_embeddings.shape
            if self.image is None or width != self.image.embeddings[1] or shown.image_rows.max() >= count:
                raise self._refused(tokens, "row of the image embeddings out of range")
        if shown.vision_start is None or shown.vision_stop is None:
            return shown
        stop = max(int(shown.vision_stop.max()), 0)
        if self._vision is None or part.vision is None or not self._vision.has(part.vision, stop):
            raise self._refused(tokens, "vision tokens out of range or missing")
        if shown.vision_start.min() < 0:
            raise self._refused(tokens, "vision tokens out of range or missing")
        if not (shown.vision_start < shown.vision_stop).any():
            return SequencePictures()
        return replace(shown, vision=self._vision.seen(part.vision, stop))

    def encode_image(
        self, pixels: Float32s, aspect_ratio: int = 0, pages: Int32s | None = None, first: int = 0
    ) -> Float32s | None:
        """Run the image encoder on the tiles of one picture, as `CpuDevice.encode_image`; LLC0939 without one."""
        if self.image is None:
            raise self._cannot("take pictures")
        check_pixels(pixels, self.image)
        rows, width = self.image.embeddings
        with self._lock:
            if self._backend is None:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            if not self.image.is_joint:
                made = [self._backend.encode(tile[None], 0, rows)[0] for tile in pixels]
                return np.ascontiguousarray(np.concatenate(made), np.float32).reshape(-1, width)
            most = self.image.pixels[0]
            tokens = len(pixels) * (rows // most)
            if self._vision is None or pages is None or first < 0 or not self._vision.has(pages, first + tokens):
                raise self._refused(tokens, "page of vision tokens out of range or missing")
            padding = np.zeros((most - len(pixels), *pixels.shape[1:]), np.float32)
            whole = np.concatenate([pixels, padding])
            self._vision.put(pages, first, self._backend.encode(whole, aspect_ratio, tokens))
        return None

    def _check_pages(self, tables: Int32s, start: int, stop: int, tokens: int) -> None:
        """Every row that is written, and every one that can be seen, must have a page of the cache."""
        size = self.plan.kv_page_tokens
        for table, cache, count in zip(tables, self._caches, self._counts, strict=True):
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
