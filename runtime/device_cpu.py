"""The CPU device: compiled code, mapped weights, arena and KV memory behind one `step` call."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from llamac.errors import LlamacError

from .cpu_memory import anonymous_memory, forget_pages, huge_memory, ranges_of
from .cpu_settings import CpuSettings
from .native import ImageInput, KvMemory, NativeLibrary, StepInput
from .profile import Profile
from .profiler import Profiler
from .ranked import RankedRows
from .read_bandwidth import ReadBandwidth
from .run_plan import ImagePlan, MemoryPlan
from .step_pictures import StepPictures, check_pixels

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class CpuDevice:
    """One compiled model with its memory; `step` may be called from any thread, one call at a time runs.

    `weights` is the mapped weight member (page aligned, read only). The arena and the memory of each cache, of
    `page_counts` pages, are zeroed anonymous memory, touched only as the code writes to it.
    """

    def __init__(
        self,
        library: NativeLibrary,
        plan: MemoryPlan,
        vocab_size: int,
        weights: Bytes,
        page_counts: Sequence[int],
        settings: CpuSettings,
        image: ImagePlan | None = None,
        tensor_offsets: Sequence[int] = (),
    ) -> None:
        self.plan = plan
        self.image = image
        self.vocab_size = vocab_size
        self.page_counts = list(page_counts)
        self.threads = settings.threads
        self._library = library
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._profiler: Profiler | None = None
        caches = [_cache_memory(n, c.page_bytes) for n, c in zip(page_counts, plan.caches, strict=True)]
        arena = anonymous_memory(plan.arena_bytes, "arena")
        if settings.copies_weights or settings.first_touch:
            library.optional("llamac_copy")  # code that has none is refused before anything is set up
        held = huge_memory(weights.nbytes, "copy of the weights") if settings.copies_weights else weights
        self._buffers = (held, *caches, arena)  # the code holds their addresses: they must live as long as it does
        model = self._create(held, caches, arena)
        self._model: int | None = model
        self._destroy = weakref.finalize(self, _destroy, library.destroy, model, self._buffers, self._process)
        self._destroy.atexit = False
        self._at_exit = weakref.finalize(self, _end_steps, weakref.ref(self), self._process)
        if settings.pinned is not None:
            self._pin(model, settings.pinned)
        if settings.copies_weights:
            self._copy(model, held, weights, tensor_offsets)
            forget_pages(weights)
        if settings.first_touch:
            self._touch(model, caches, arena)

    @property
    def most_top(self) -> int:
        """The longest list of best logits that a step ranks; 0: it ranks none."""
        return self._library.most_top

    @property
    def kv_bytes(self) -> int:
        """Bytes reserved for the caches."""
        return sum(n * cache.page_bytes for n, cache in zip(self.page_counts, self.plan.caches, strict=True))

    def _create(self, weights: Bytes, caches: Sequence[Bytes], arena: Bytes) -> int:
        model = ctypes.c_void_p()
        rows = [
            KvMemory(memory.ctypes.data, n * cache.page_bytes, n)
            for memory, n, cache in zip(caches, self.page_counts, self.plan.caches, strict=True)
        ]
        status = self._library.create(
            ctypes.byref(model),
            weights.ctypes.data,
            weights.nbytes,
            (KvMemory * len(rows))(*rows),
            len(rows),
            arena.ctypes.data,
            self.plan.arena_bytes,
            self.threads,
        )
        if status != 0 or model.value is None:
            reason = f"the code could not set itself up: {self._library.status_text(status)}"
            raise LlamacError("LLC0805", self._library.where, reason, "check the file with `llamac verify`")
        return model.value

    def _pin(self, model: int, cpus: Sequence[int]) -> None:
        """Keep each thread on its processor; LLC0805 when the system refuses."""
        status = self._library.optional("llamac_pin")(model, (ctypes.c_uint32 * len(cpus))(*cpus))
        if status != 0:
            reason = f"processors {', '.join(map(str, cpus))}: {self._library.status_text(status)}"
            raise LlamacError("LLC0805", self._library.where, reason, "name processors that this process may use")

    def _copy(self, model: int, to: Bytes, source: Bytes, tensor_offsets: Sequence[int]) -> None:
        """Copy the weights, of each tensor the same share by the thread that is going to read it."""
        copy = self._library.optional("llamac_copy")
        for start, stop in ranges_of(tensor_offsets, to.nbytes):
            copy(model, to.ctypes.data + start, source.ctypes.data + start, stop - start)

    def _touch(self, model: int, caches: Sequence[Bytes], arena: Bytes) -> None:
        """Put zeros into all the arena and every layer of every page of the caches, each thread in its share."""
        copy = self._library.optional("llamac_copy")
        copy(model, arena.ctypes.data, None, self.plan.arena_bytes)
        for memory, pages, cache in zip(caches, self.page_counts, self.plan.caches, strict=True):
            layer_bytes = cache.page_bytes // max(len(cache.layers), 1)
            for start in range(0, pages * cache.page_bytes, layer_bytes):
                copy(model, memory.ctypes.data + start, None, layer_bytes)

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
        """Run one ragged step: T tokens of S sequences, R of whose rows get logits.

        token_ids, positions, sequence_of_token: [T]; page_tables: [caches, S, pages per sequence], -1 where there is
        none; logit_rows: [R] indices into the T rows; logits: [R, vocab], C contiguous, filled here. pictures: what the
        rows show or see of pictures. ranked: the best logits of each row, filled here; `logits` may then be None: they
        are not written. LLC0806 on refusal.
        """
        integers = (token_ids, positions, sequence_of_token, page_tables, logit_rows)
        _check_arrays(*integers, len(self.page_counts))
        if logits is not None or ranked is None:
            _check_logits(logits, logit_rows.size, self.vocab_size)
        shown = pictures or StepPictures()
        shown.check(token_ids.size)
        given = StepInput(
            token_ids.size,
            page_tables.shape[1],
            page_tables.shape[2],
            logit_rows.size,
            *(array.ctypes.data for array in integers),
            _address(logits),
            _address(shown.image_rows),
            _address(shown.image_embeddings),
            0 if shown.image_embeddings is None else len(shown.image_embeddings),
            _address(shown.vision_start),
            _address(shown.vision_stop),
        )
        with self._lock:
            if self._model is None:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            status = self._run(self._model, given, ranked)
            if self._profiler is not None and status == 0:
                self._profiler.stepped(positions, sequence_of_token, logit_rows.size, shown)
        if status != 0:
            reason = f"step of {token_ids.size} tokens: {self._library.status_text(status)}"
            raise LlamacError("LLC0806", self._library.where, reason, "check the file with `llamac verify`")

    def _run(self, model: int, given: StepInput, ranked: RankedRows | None) -> int:
        if ranked is None:
            return self._library.step(model, ctypes.byref(given))
        if self._library.step_top is None:
            raise LlamacError("LLC0803", self._library.where, "the code does not rank logits", "compile it again")
        ranked.check(given.logit_count)
        return self._library.step_top(model, ctypes.byref(given), ctypes.byref(ranked.native()))

    def copy_page(self, cache: int, source: int, to: int) -> None:
        """Copy what page `source` of a cache holds to page `to`; LLC0815 when the model is closed."""
        with self._lock:
            if self._model is None:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            size, memory = self.plan.caches[cache].page_bytes, self._buffers[1 + cache]
            memory[to * size : (to + 1) * size] = memory[source * size : (source + 1) * size]

    def cache_memory(self, cache: int) -> Bytes:
        """The pages of a cache, one after the other, as the code reads and writes them; LLC0815 when it is closed."""
        if self._model is None:
            raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
        return self._buffers[1 + cache][: self.page_counts[cache] * self.plan.caches[cache].page_bytes]

    def encode_image(
        self, pixels: Float32s, aspect_ratio: int = 0, pages: Int32s | None = None, first: int = 0
    ) -> Float32s | None:
        """Run the image encoder on the tiles of one picture, float32 [tiles, channels, height, width].

        Where every tile is encoded by itself, the embeddings of all of them, [tiles * tokens, width]. Where all are
        encoded together, nothing: `pages` are then the sequence's pages of the cache of vision tokens, `first` is the
        place of the picture's first token there, and aspect_ratio is the number of the picture's shape, from 1 on.
        LLC0806 on refusal, LLC0838 when the model takes no pictures.
        """
        if self.image is None or self._library.encode_image is None:
            raise LlamacError("LLC0838", self._library.where, "the model has no image encoder", "give it text alone")
        check_pixels(pixels, self.image)
        rows, width = self.image.embeddings
        tiles = len(pixels)
        if self.image.is_joint and tiles < self.image.pixels[0]:
            pixels = np.concatenate([pixels, np.zeros((self.image.pixels[0] - tiles, *pixels.shape[1:]), np.float32)])
        embeddings = None if self.image.is_joint else np.empty((tiles * rows, width), np.float32)
        given = ImageInput(
            tiles,
            aspect_ratio,
            pixels.ctypes.data,
            None if embeddings is None else embeddings.ctypes.data,
            None if pages is None else pages.ctypes.data,
            0 if pages is None else pages.size,
            first,
        )
        with self._lock:
            if self._model is None:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            status = self._library.encode_image(self._model, ctypes.byref(given))
            if self._profiler is not None and status == 0:
                self._profiler.encoded()
        if status != 0:
            reason = f"picture of {tiles} tiles: {self._library.status_text(status)}"
            raise LlamacError("LLC0806", self._library.where, reason, "check the file with `llamac verify`")
        return embeddings

    def expert_counts(self) -> npt.NDArray[np.uint64]:
        """How many rows each expert of each layer has got so far, layers in the order of the caches; empty without any.

        One row a layer (zeros for one that has no experts), one column an expert.
        """
        with self._lock:
            if self._model is None:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            size = int(self._library.expert_counts(self._model, None, 0))
            counts = np.zeros(size, np.uint64)
            self._library.expert_counts(self._model, counts.ctypes.data, size)
        layers = sum(len(cache.layers) for cache in self.plan.caches) if size else 1
        return counts.reshape(layers, -1)

    @contextmanager
    def profiled(self) -> Iterator[Profile]:
        """The profile of the steps inside; its limits are measured around them. LLC0818 inside another one."""
        bandwidth = ReadBandwidth(self.threads)
        with self._lock:
            if self._model is None:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            if self._profiler is not None:
                raise LlamacError("LLC0818", "profile", "a profile is being taken already", "end that one first")
            before = bandwidth.measure()
            self._profiler = profiler = Profiler(self._library, self._model, self.plan.caches)
        try:
            yield profiler.profile
        finally:
            with self._lock:
                if self._model is not None:
                    profiler.stop()
                self._profiler = None
            profiler.profile.read_bytes_per_second = (before + bandwidth.measure()) / 2

    def close(self) -> None:
        """Stop the code's threads and let go of its memory; `step` refuses afterwards."""
        if os.getpid() != self._process:  # a fork: neither the threads nor who holds the lock came along
            self._model = None
            return
        with self._lock:
            self._model = None
            self._at_exit.detach()
            self._destroy()
            self._buffers = ()


def _address(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _cache_memory(pages: int, page_bytes: int) -> Bytes:
    return anonymous_memory(pages * page_bytes, f"KV cache of {pages} x {page_bytes} bytes")


def _destroy(destroy: Callable[..., None], model: int, buffers: tuple[Bytes, ...], process: int) -> None:
    """Free the native model; `buffers` is here so that no memory goes away before the code's last use of it."""
    if os.getpid() == process:  # the threads are there, which it waits for
        destroy(model)


def _end_steps(device: weakref.ref[CpuDevice], process: int) -> None:
    """The process ends: wait for the step that a daemon thread may be in; later ones are refused.

    The interpreter takes the memory away next, so nothing else has to be undone.
    """
    found = device()
    if found is not None and os.getpid() == process:
        with found._lock:
            found._model = None


def _check_arrays(
    token_ids: Int32s,
    positions: Int32s,
    sequence_of_token: Int32s,
    page_tables: Int32s,
    logit_rows: Int32s,
    caches: int,
) -> None:
    """A wrong shape or type here would be a wild pointer in the code: refuse it as the programming error it is."""
    integers = (token_ids, positions, sequence_of_token, page_tables, logit_rows)
    if not all(array.dtype == np.int32 and array.flags.c_contiguous for array in integers):
        raise TypeError("step needs C-contiguous int32 arrays")
    if not token_ids.shape == positions.shape == sequence_of_token.shape or page_tables.ndim != 3:
        raise ValueError("step needs token_ids, positions, sequence_of_token of one length and page_tables[C, S, P]")
    if page_tables.shape[0] != caches:
        raise ValueError(f"step needs the page tables of {caches} caches, not of {page_tables.shape[0]}")


def _check_logits(logits: Float32s | None, rows: int, vocab_size: int) -> None:
    wanted = (rows, vocab_size)
    if logits is None or logits.dtype != np.float32 or not logits.flags.c_contiguous or logits.shape != wanted:
        raise ValueError(f"step needs C-contiguous float32 logits of shape {wanted}")
