"""The CPU device: compiled code, mapped weights, arena and KV memory behind one `step` call."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamac.errors import LlamacError

from .native import ImageInput, KvMemory, NativeLibrary, StepInput
from .run_plan import ImagePlan, MemoryPlan
from .step_pictures import StepPictures

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_MAP_NORESERVE = 0x4000
"""Linux: do not count the mapping against memory until its pages are touched (a context is rarely filled)."""


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
        threads: int,
        image: ImagePlan | None = None,
    ) -> None:
        self.plan = plan
        self.image = image
        self.vocab_size = vocab_size
        self.page_counts = list(page_counts)
        self.threads = threads
        self._library = library
        self._lock = threading.Lock()
        caches = [_cache_memory(n, c.page_bytes) for n, c in zip(page_counts, plan.caches, strict=True)]
        arena = anonymous_memory(plan.arena_bytes, "arena")
        self._buffers = (weights, *caches, arena)  # the code holds their addresses: they must live as long as it does
        self._model: int | None = self._create(weights, caches, arena)
        self._destroy = weakref.finalize(self, _destroy, library.destroy, self._model, self._buffers)

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
        """Run one ragged step: T tokens of S sequences, R of whose rows get logits.

        token_ids, positions, sequence_of_token: [T]; page_tables: [caches, S, pages per sequence], -1 where there is
        none; logit_rows: [R] indices into the T rows; logits: [R, vocab], C contiguous, filled here. pictures: what the
        rows show or see of pictures. LLC0806 on refusal.
        """
        integers = (token_ids, positions, sequence_of_token, page_tables, logit_rows)
        _check_arrays(*integers, logits, len(self.page_counts), self.vocab_size)
        shown = pictures or StepPictures()
        shown.check(token_ids.size)
        given = StepInput(
            token_ids.size,
            page_tables.shape[1],
            page_tables.shape[2],
            logit_rows.size,
            *(array.ctypes.data for array in integers),
            logits.ctypes.data,
            _address(shown.image_rows),
            _address(shown.image_embeddings),
            0 if shown.image_embeddings is None else len(shown.image_embeddings),
            _address(shown.vision_start),
            _address(shown.vision_stop),
        )
        with self._lock:
            if self._model is None:
                raise LlamacError("LLC0815", "model", "the model is closed", "load it again")
            status = self._library.step(self._model, ctypes.byref(given))
        if status != 0:
            reason = f"step of {token_ids.size} tokens: {self._library.status_text(status)}"
            raise LlamacError("LLC0806", self._library.where, reason, "check the file with `llamac verify`")

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
        _check_pixels(pixels, self.image)
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

    def close(self) -> None:
        """Stop the code's threads and let go of its memory; `step` refuses afterwards."""
        with self._lock:
            self._model = None
            self._destroy()
            self._buffers = ()


def _address(array: npt.NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _cache_memory(pages: int, page_bytes: int) -> Bytes:
    return anonymous_memory(pages * page_bytes, f"KV cache of {pages} x {page_bytes} bytes")


def _destroy(destroy: Callable[..., None], model: int, buffers: tuple[Bytes, ...]) -> None:
    """Free the native model; `buffers` is here so that no memory goes away before the code's last use of it."""
    destroy(model)


def _check_arrays(
    token_ids: Int32s,
    positions: Int32s,
    sequence_of_token: Int32s,
    page_tables: Int32s,
    logit_rows: Int32s,
    logits: Float32s,
    caches: int,
    vocab_size: int,
) -> None:
    """A wrong shape or type here would be a wild pointer in the code: refuse it as the programming error it is."""
    integers = (token_ids, positions, sequence_of_token, page_tables, logit_rows)
    if not all(array.dtype == np.int32 and array.flags.c_contiguous for array in integers):
        raise TypeError("step needs C-contiguous int32 arrays")
    if not token_ids.shape == positions.shape == sequence_of_token.shape or page_tables.ndim != 3:
        raise ValueError("step needs token_ids, positions, sequence_of_token of one length and page_tables[C, S, P]")
    if page_tables.shape[0] != caches:
        raise ValueError(f"step needs the page tables of {caches} caches, not of {page_tables.shape[0]}")
    if logits.dtype != np.float32 or not logits.flags.c_contiguous or logits.shape != (logit_rows.size, vocab_size):
        raise ValueError(f"step needs C-contiguous float32 logits of shape ({logit_rows.size}, {vocab_size})")


def _check_pixels(pixels: Float32s, image: ImagePlan) -> None:
    if pixels.dtype != np.float32 or not pixels.flags.c_contiguous or pixels.ndim != 4 or not len(pixels):
        raise TypeError("encode_image needs C-contiguous float32 pixels [tiles, channels, height, width]")
    if pixels.shape[1:] != image.pixels[1:] or (image.is_joint and len(pixels) > image.pixels[0]):
        raise ValueError(f"encode_image needs tiles of {image.pixels}, not {pixels.shape}")


def anonymous_memory(size: int, purpose: str) -> Bytes:
    """Zeroed, page-aligned memory of `size` bytes (at least one page) that costs nothing until touched; LLC0807."""
    length = max(size, mmap.PAGESIZE)
    try:
        if sys.platform == "linux":
            memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        else:
            memory = mmap.mmap(-1, length)
    except (OSError, OverflowError, ValueError) as error:
        reason = f"{length} bytes for the {purpose} cannot be reserved: {error}"
        raise LlamacError("LLC0807", "memory", reason, "ask for a smaller context, or free memory") from error
    return np.frombuffer(memory, dtype=np.uint8)
