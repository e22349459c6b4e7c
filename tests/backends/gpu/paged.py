"""A paged cache on both sides: as the GPU kernels see it and as the IR means it, with sequences in shuffled pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from llamac.ir.dtypes import BF16, F16, F32, round_to
from llamac.ir.ops.cache_ops import CacheState
from llamac.ir.types import CacheType

Array = np.ndarray[Any, Any]

KINDS = {"f32": F32, "f16": F16, "bf16": BF16}


@dataclass
class Pages:
    """Sequences of some lengths in a pool of pages; what no token was written to is NaN.

    memory: [pages, layers, K and V, kv heads, slots, head_dim], as the kernels take it. scales: f32 [2, kv heads] for
    8-bit caches. table: [sequences, pages a sequence]; unused places hold a page that does not exist.
    """

    type: CacheType
    memory: Array
    table: Array
    lengths: list[int]
    scales: Array | None = None

    @property
    def state(self) -> CacheState:
        """The same as the IR sees it, with zeros where nothing was written."""
        values = np.nan_to_num(self.values())
        return CacheState(self.type, values[:, :, 0].astype(np.float64), values[:, :, 1].astype(np.float64))

    def values(self) -> Array:
        """f32: what the memory stands for."""
        memory = self.memory.view(ml_dtypes.float8_e4m3fn) if self.memory.dtype == np.uint8 else self.memory
        wide = memory.astype(np.float32)
        return wide if self.scales is None else wide * self.scales[None, None, :, :, None, None]

    def arguments(self) -> dict[str, Any]:
        """The arguments of a kernel that speak of the cache."""
        kind = self.type
        return {
            "cache_ptr": self.memory, "kv_scale_ptr": self.scales, "table_ptr": self.table,
            "table_width": self.table.shape[1], "KV_HEADS": kind.kv_heads, "HEAD": kind.head_dim,
            "LAYERS": kind.layers, "PAGE": kind.page,
        }  # fmt: skip


def empty_pages(
    rng: np.random.Generator, lengths: list[int], storage: str, *, kv_heads: int, head: int, page: int, chunk: int = 0,
    layers: int = 2,
) -> Pages:  # fmt: skip
    """Room for sequences of these lengths, in pages taken in any order."""
    needed = [-(-length // page) for length in lengths]
    order = rng.permutation(sum(needed) + 2).astype(np.int32)
    table = np.full((len(lengths), max(needed)), 10**6, np.int32)
    taken = 0
    for row, count in zip(table, needed, strict=True):
        row[:count] = order[taken : taken + count]
        taken += count
    shape = (len(order), layers, 2, kv_heads, page, head)
    scales = None
    if storage in KINDS:
        memory = np.full(shape, np.nan, KINDS[storage].storage)
    else:
        scales = rng.uniform(0.01, 0.02, (2, kv_heads)).astype(np.float32)
        memory = np.full(shape, 0x7F, np.uint8)  # NaN
        memory = memory if storage == "e4m3fn bits" else memory.view(ml_dtypes.float8_e4m3fn)
    kind = CacheType(layers, kv_heads, head, page, KINDS.get(storage, BF16), chunk)
    return Pages(kind, memory, table, lengths, scales)


def filled_pages(rng: np.random.Generator, lengths: list[int], storage: str, **sizes: int) -> Pages:
    """Pages with random keys and values at every position of every sequence, other places NaN."""
    pages = empty_pages(rng, lengths, storage, **sizes)
    kind = pages.type
    for sequence, length in enumerate(lengths):
        for position in range(length):
            page, slot = pages.table[sequence, position // kind.page], position % kind.page
            token = rng.standard_normal((kind.layers, 2, kind.kv_heads, kind.head_dim)).astype(np.float32)
            if pages.scales is not None:
                token = (token / pages.scales[None, :, :, None]).clip(-448, 448)
                token = token.astype(ml_dtypes.float8_e4m3fn).view(pages.memory.dtype)
            pages.memory[page, :, :, :, slot] = token
    return pages


def rows_of(lengths: list[int], wanted: list[list[int]]) -> tuple[Array, Array]:
    """Positions and sequence numbers of step rows: for each sequence the positions wanted of it."""
    positions = [p for each in wanted for p in each]
    assert all(max(each, default=0) < length for each, length in zip(wanted, lengths, strict=True))
    sequences = [s for s, each in enumerate(wanted) for _ in each]
    return np.array(positions, np.int32), np.array(sequences, np.int32)


def rounded(values: Array, storage: str) -> Array:
    """f32 values as a cache of this type holds them."""
    return round_to(values, KINDS[storage]) if storage in KINDS else values
