"""Deterministic random weights for any config: every size can be compiled and timed without a checkpoint.

The bits depend on seed, weight name and row alone: raw Philox counters (one stream per weight, one counter range per
block of 64 rows), mapped to values by a table built with exact operations. No transcendental function, no library
distribution, nothing whose last bit varies between hosts or numpy versions.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError

from .checkpoint import BLOCKS, Checkpoint, GenerationDefaults, StoredTensor
from .image_shrink import vision_shapes
from .ledger import entry
from .llama.config import LlamaConfig
from .llama.weights import expected_shapes

BLOCK_ROWS = 64
LEVELS = 1 << 16
LEVELS_PER_COUNTER = 16
"""A counter of Philox gives four 64-bit outputs of each value of its counter."""
SPREAD = 2.0**-5
"""Values are uniform in (-1/32, 1/32): standard deviation 0.018."""


def random_checkpoint(config: LlamaConfig, seed: int) -> Checkpoint:
    """A checkpoint of `config` whose weights are made on demand from `seed`, in the dtype of the config.

    Matrices are uniform in (-1/32, 1/32); norm weights are 1 plus such a value. LLC0218 for a seed out of range.
    """
    if isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise LlamacError("LLC0218", "--random-weights", f"the seed is {seed}", "use a number from 0 to 2**64 - 1")
    place = Path(f"random-weights-{seed}")
    tensors: dict[str, StoredTensor] = {}
    offset = 0
    for name, shape in (expected_shapes(config) | vision_shapes(config.vision, config.hidden_size)).items():
        nbytes = BLOCKS[config.dtype][1] * int(np.prod(shape, dtype=np.int64))
        tensors[name] = StoredTensor(name, name, shape, config.dtype, place, offset, nbytes)
        offset += nbytes
    reason = "--random-weights: the text that comes out means nothing"
    return Checkpoint(
        config=config,
        tensors=tensors,
        format="random",
        tokenizer=None,
        chat_template=None,
        generation=GenerationDefaults(),
        name=config.name,
        license=None,
        ledger=[entry("note", "weights", f"random, seed {seed}", reason)],
        row_source=RandomRows(seed, config.dtype),
    )


class RandomRows:
    """Makes rows of weights; see the module's docstring."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.seed = seed
        self._matrix_table = _table(dtype, 0.0)
        self._norm_table = _table(dtype, 1.0)

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> NDArray[np.uint8]:
        """Bytes of rows [lo, hi), whichever blocks they are cut from."""
        table = self._matrix_table if len(tensor.shape) == 2 else self._norm_table
        columns = tensor.shape[-1]
        rows = np.empty((hi - lo, columns), dtype=table.dtype)
        key = _stream_key(self.seed, tensor.name)
        for block in range(lo // BLOCK_ROWS, -(-hi // BLOCK_ROWS)):
            first = block * BLOCK_ROWS
            begin, end = max(lo, first), min(hi, first + BLOCK_ROWS)
            levels = _levels(key, block, (begin - first) * columns, (end - first) * columns)
            np.take(table, levels, out=rows[begin - lo : end - lo].reshape(-1), mode="wrap")
        return rows.reshape(-1).view(np.uint8)


def _stream_key(seed: int, name: str) -> int:
    """128-bit Philox key of one weight."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")


def _levels(key: int, block: int, start: int, stop: int) -> NDArray[np.uint16]:
    """Numbers `start` to `stop` of a block, each below 65536: the 16-bit pieces, low first, of its 64-bit outputs."""
    skipped = start // LEVELS_PER_COUNTER
    raw = np.random.Philox(key=key, counter=(block << 64) + skipped).random_raw(-(-stop // 4) - 4 * skipped)
    return np.asarray(raw, dtype="<u8").view("<u2")[start - LEVELS_PER_COUNTER * skipped :][: stop - start]


def _table(dtype: str, center: float) -> NDArray[Any]:
    """Level -> bits of `center + (2 * level + 1 - 65536) / 65536 * SPREAD`, rounded once, to nearest even."""
    exact = center + (2.0 * np.arange(LEVELS) + 1.0 - LEVELS) / LEVELS * SPREAD  # exact in f64, at most 23 bits
    single = exact.astype("<f4")
    if dtype == "f32":
        return single
    if dtype == "f16":
        return exact.astype("<f2")
    bits = single.view("<u4")
    nearest: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return nearest
