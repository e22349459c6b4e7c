"""transformers' cache over llamac's own sequences: keys and values stay in the artifact's pages."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache

from llamac.errors import LlamacError
from llamac.runtime.kv import CachedSequence
from llamac.runtime.session import Session

from .columns import Bools
from .feeding import Appended, append, truncate


class LlamacCache(Cache):  # type: ignore[misc]
    """The past of a batch: one llamac sequence a row, which holds the row's real tokens and no padding.

    Beams and copies (`copy.deepcopy`) fork the sequences: they share pages until one of them writes. The pages are
    given back by `close`, or when the cache is forgotten.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(layers=[])
        self.session = session
        self.sequences: list[CachedSequence] = []
        self.columns: Bools = np.zeros((0, 0), bool)
        # What is closed in the end is whatever the list holds then.
        self._finalizer = weakref.finalize(self, _close_all, self.sequences)

    def close(self) -> None:
        """Give all pages back; the cache is empty afterwards."""
        _close_all(self.sequences)
        self.columns = np.zeros((0, 0), bool)

    def reset(self) -> None:
        self.close()

    def known_columns(self, batch: int) -> Bools:
        """Which columns hold tokens, [batch, columns]; LLC0956 for another batch than the one it holds."""
        if not self.sequences:
            return np.zeros((batch, 0), bool)
        if len(self.sequences) != batch:
            reason = f"it holds {len(self.sequences)} rows, the call has {batch}"
            raise LlamacError("LLC0956", "past_key_values", reason, "begin with an empty cache for another batch")
        return self.columns

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each row."""
        return [len(sequence) for sequence in self.sequences]

    def append(self, ids: NDArray[np.integer[Any]], real: Bools, wanted: Bools) -> NDArray[np.float32]:
        """Append a column for each of `ids` [batch, new]; the logits after the `wanted` ones, [batch, new or fewer, V].

        `wanted` has the same columns in every row. Columns that are not `real` give logits of zero. Rows of an empty
        cache that begin alike are computed once.
        """
        batch, vocabulary = len(ids), self.session.device.vocab_size
        kept = np.flatnonzero(wanted.any(axis=0))
        logits = np.zeros((batch, len(kept), vocabulary), np.float32)
        places = np.full(ids.shape, -1)
        places[:, kept] = np.arange(batch * len(kept)).reshape(batch, -1)
        is_new = not self.sequences
        firsts = _first_alike(ids, real) if is_new else list(range(batch))
        if is_new:
            self.sequences.extend(self.session.open() for _ in set(firsts))
        rows = [
            Appended(sequence, ids[row][real[row]].tolist(), places[row][real[row]].tolist())
            for row, sequence in zip(sorted(set(firsts)), self.sequences, strict=True)
        ]
        try:
            append(self.session, [row for row in rows if row.ids], logits.reshape(-1, vocabulary))
            if is_new:
                self._spread(firsts, logits)
        except BaseException:
            if is_new:
                self.close()
            raise
        self.columns = np.concatenate([self.known_columns(batch) if not is_new else real[:, :0], real], axis=1)
        return logits

    def _spread(self, firsts: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Give every row of a batch the sequence of the first row that is like it."""
        order = sorted(set(firsts))
        self._take([order.index(first) for first in firsts])
        for row, first in enumerate(firsts):
            if row != first:
                logits[row] = logits[first]

    def _take(self, sources: Sequence[int]) -> None:
        """Row i becomes what row `sources[i]` is: the first to ask takes the sequence, the others forks of it."""
        taken: dict[int, CachedSequence] = {}
        chosen: list[CachedSequence] = []
        try:
            for source in sources:
                own = self.sequences[source]
                chosen.append(self.session.fork(own) if source in taken else own)
                taken.setdefault(source, own)
        except BaseException:
            _close_all([sequence for sequence in chosen if sequence not in taken.values()])
            raise
        _close_all([sequence for index, sequence in enumerate(self.sequences) if index not in taken])
        self.sequences[:] = chosen

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.columns.shape[1])

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.session.context

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.sequences:
            chosen = _rows(indices, len(self.sequences))
            self._take(chosen)
            self.columns = self.columns[chosen]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.sequences)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` columns, as transformers counts since 5.0: the number is not positive."""
        columns = self.get_seq_length() + tokens_to_remove
        if tokens_to_remove > 0 or columns < 0:
            reason = f"crop({tokens_to_remove}) of a cache of {self.get_seq_length()} columns"
            raise LlamacError("LLC0956", "past_key_values", reason, "crop takes minus the number of columns to forget")
        for sequence, real in zip(self.sequences, self.columns, strict=True):
            truncate(self.session, sequence, int(real[:columns].sum()))
        self.columns = self.columns[:, :columns]

    @property
    def batch_size(self) -> int:
        return len(self.sequences) or -1

    @property
    def is_initialized(self) -> bool:
        return bool(self.sequences)

    def __deepcopy__(self, memo: dict[int, Any]) -> LlamacCache:
        other = LlamacCache(self.session)
        try:
            for sequence in self.sequences:
                other.sequences.append(self.session.fork(sequence))
        except BaseException:
            other.close()
            raise
        other.columns = self.columns.copy()
        return other

    def __len__(self) -> int:
        """Layers, as of any cache of transformers."""
        return sum(len(cache.layers) for cache in self.session.device.plan.caches)

    def update(self, *arguments: Any, **options: Any) -> NoReturn:
        """LLC0956: keys and values are made by the artifact's own code."""
        reason = "it holds the sequences of an artifact, not tensors that a torch module could append to"
        raise LlamacError("LLC0956", "past_key_values", reason, "give it to the LlamacModel that made it")


def _close_all(sequences: list[CachedSequence]) -> None:
    for sequence in sequences:
        if not sequence.closed:
            sequence.close()
    sequences.clear()


def _first_alike(ids: NDArray[np.integer[Any]], real: Bools) -> list[int]:
    """For each row the first row that holds the same tokens in the same columns."""
    firsts: dict[tuple[bytes, bytes], int] = {}
    return [
        firsts.setdefault((np.where(shown, row, -1).tobytes(), shown.tobytes()), index)
        for index, (row, shown) in enumerate(zip(ids, real, strict=True))
    ]


def _rows(indices: torch.Tensor, count: int) -> list[int]:
    """Numbers of rows; truth values mark those to keep."""
    if indices.dtype == torch.bool:
        indices = torch.nonzero(indices).flatten()
    chosen = [int(index) for index in indices.tolist()]
    if not all(-count <= index < count for index in chosen):
        reason = f"rows {chosen} of a cache of {count} rows"
        raise LlamacError("LLC0956", "past_key_values", reason, "choose among the rows it holds")
    return [index % count for index in chosen]
