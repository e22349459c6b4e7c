"""A cache outside, in torch tensors, beside the pages that hold the same: the tensors are the truth.

Pages are known to hold what tensors hold only while these are the very tensors that a call before left behind, not
written to since, for the same columns. Otherwise, after a crop, a reordering of beams, a cache that somebody else
filled, they are read in anew: that costs a copy, not a computation.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.runtime.kv import CachedSequence
from llamac.runtime.session import Session

from .columns import Bools
from .feeding import NOWHERE, Appended, append
from .page_rows import PageRows, Places, Turning, joined

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class NewTokens:
    """A call. ids: [batch, new]. real: which columns hold tokens, [batch, past + new].

    offsets: [batch], how much larger positions are than the number of tokens before. keep: how many last columns get
    logits. pasts: keys and values by layer, [batch, heads, columns, head_dim], k.0, v.0, k.1, ...; none without a past.
    tensors: the same as they came in.
    """

    ids: Int64s
    real: Bools
    offsets: Int64s
    keep: int
    pasts: Sequence[torch.Tensor]
    tensors: Sequence[torch.Tensor]

    @property
    def past(self) -> int:
        """Columns of the cache."""
        return int(self.real.shape[1] - self.ids.shape[1])


@dataclass
class _Held:
    """Sequences that hold what tensors hold, for these columns."""

    sequences: list[CachedSequence]
    real: Bools
    offsets: Int64s
    tensors: list[tuple[weakref.ref[torch.Tensor], tuple[int, int]]] = field(default_factory=list)

    def holds(self, call: NewTokens) -> bool:
        """Whether the pages are what the call's tensors are."""
        if not np.array_equal(self.real, call.real[:, : call.past]) or not np.array_equal(self.offsets, call.offsets):
            return False
        return len(self.tensors) == len(call.tensors) and all(
            known() is tensor and state == state_of(tensor)
            for (known, state), tensor in zip(self.tensors, call.tensors, strict=True)
        )

    def remember(self, tensors: Sequence[torch.Tensor]) -> bool:
        """From now on these tensors are what the pages hold; False where writing to one would not be noticed."""
        states = [state_of(tensor) for tensor in tensors]
        self.tensors = [(weakref.ref(t), state) for t, state in zip(tensors, states, strict=True) if state is not None]
        return len(self.tensors) == len(tensors)

    @property
    def is_forgotten(self) -> bool:
        """Whether nobody can come with these tensors any more."""
        return any(known() is None for known, _ in self.tensors)

    def close(self) -> None:
        """Give the pages back."""
        for sequence in self.sequences:
            if not sequence.closed:
                sequence.close()


def state_of(tensor: torch.Tensor) -> tuple[int, int] | None:
    """What changes when a tensor is written to; None for one of inference mode, where nothing does."""
    return None if tensor.is_inference() else (tensor.data_ptr(), tensor._version)


class OutsideCaches:
    """The caches of a loaded model's callers. `calls` is held from a step until what came of it is remembered.

    others: gives pages back that can be spared elsewhere; False where there are none.
    """

    def __init__(self, session: Session, rows: PageRows, turning: Turning, others: Callable[[], bool]) -> None:
        self.calls = threading.RLock()
        self._session = session
        self._rows = rows
        self._turning = turning
        self._others = others
        self._known: list[_Held] = []
        self._last: _Held | None = None

    def step(self, call: NewTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [batch, keep, vocab], f32, and what is new: keys and values [2, layers, batch, heads, new, head_dim].

        What belongs to columns without tokens is zero. `remember` has to follow. Errors are those of `feeding.append`.
        """
        self.forget()
        self._forget_dead()
        try:
            held, logits = self._run(call)
        except LlamacError as error:
            if error.code != "LLC0808" or not (self.close() or self._others()):
                raise  # no pages of other caches are in the way, which could be read in again
            held, logits = self._run(call)
        past = np.concatenate([held.real, call.real[:, call.past :]], axis=1)
        self._last = _Held(held.sequences, past, call.offsets)
        return logits, self._new(call, held.sequences)

    def remember(self, tensors: Sequence[torch.Tensor]) -> None:
        """The cache after the step, as the graph left it."""
        held, self._last = self._last, None
        assert held is not None
        if held.remember(tensors):
            self._known.append(held)
        else:
            held.close()

    def forget(self) -> None:
        """Nothing came of the last step."""
        if self._last is not None:
            self._last.close()
            self._last = None

    def close(self) -> bool:
        """Give all pages back; False where there are none."""
        with self.calls:
            held = bool(self._known)
            for known in self._known:
                known.close()
            self._known.clear()
        return held

    def spare(self) -> bool:
        """As `close`, but False too while another thread is at work here: never waits.

        Whoever asks is at work elsewhere, and that thread may be asking for what is kept there.
        """
        if not self.calls.acquire(blocking=False):
            return False
        try:
            return self.close()
        finally:
            self.calls.release()

    def _run(self, call: NewTokens) -> tuple[_Held, torch.Tensor]:
        held = self._found(call)
        try:
            logits = self._append(call, held)
        except BaseException:
            if held.tensors:
                self._known.append(held)  # its sequences are as they were
            else:
                held.close()
            raise
        return held, logits

    def _found(self, call: NewTokens) -> _Held:
        """The sequences that hold the call's past: those of the call before, or new ones."""
        if call.past and call.tensors:
            known = next((held for held in self._known if held.holds(call)), None)
            if known is not None:
                self._known.remove(known)
                return known
        held = _Held([], call.real[:, : call.past], call.offsets)
        try:
            held.sequences += [self._session.open() for _ in call.ids]
            if call.past:
                self._read_in(call, held)
        except BaseException:
            held.close()
            raise
        return held

    def _read_in(self, call: NewTokens, held: _Held) -> None:
        """Write the past into the sequences' pages."""
        counts = held.real.sum(axis=1).tolist()
        for sequence, count in zip(held.sequences, counts, strict=True):
            sequence.reserve(count)
            sequence.cover(count)
        places = joined([self._rows.places(s, 0, n) for s, n in zip(held.sequences, counts, strict=True)])
        shown = torch.from_numpy(held.real)
        keys, values = (
            torch.stack([past[:, :, : call.past].transpose(1, 2)[shown] for past in call.pasts[kind::2]], dim=1)
            for kind in (0, 1)
        )
        if not bool(keys[:, 0].flatten(1).any(dim=1).all()):
            reason = "the mask shows a column of the cache that holds nothing: it was hidden when the cache was filled"
            raise LlamacError("LLC0957", "attention_mask", reason, "show the same columns in every call")
        offsets = torch.from_numpy(call.offsets).repeat_interleave(torch.tensor(counts))
        self._rows.write(places, self._turning.from_module(keys, offsets), values)
        for sequence, count in zip(held.sequences, counts, strict=True):
            sequence.ids.extend([0] * count)  # which tokens these were is not known, and not asked

    def _append(self, call: NewTokens, held: _Held) -> torch.Tensor:
        batch, columns = call.ids.shape
        logits = np.zeros((batch, call.keep, self._session.device.vocab_size), np.float32)
        wanted = np.full(call.ids.shape, NOWHERE)
        wanted[:, columns - call.keep :] = np.arange(batch * call.keep).reshape(batch, -1)
        new = call.real[:, call.past :]
        work = [
            Appended(sequence, call.ids[row][new[row]].tolist(), wanted[row][new[row]].tolist())
            for row, sequence in enumerate(held.sequences)
        ]
        append(self._session, [part for part in work if part.ids], logits.reshape(-1, logits.shape[-1]))
        return torch.from_numpy(logits)

    def _new(self, call: NewTokens, sequences: Sequence[CachedSequence]) -> torch.Tensor:
        """The new tokens' keys and values, out of the pages."""
        shown = torch.from_numpy(call.real[:, call.past :])
        counts = shown.sum(dim=1)
        places: list[Places] = [
            self._rows.places(sequence, len(sequence) - count, len(sequence))
            for sequence, count in zip(sequences, counts.tolist(), strict=True)
        ]
        keys, values = self._rows.read(joined(places))
        keys = self._turning.to_module(keys, torch.from_numpy(call.offsets).repeat_interleave(counts))
        if bool(shown.all()):
            rows = torch.stack((keys, values)).unflatten(1, tuple(shown.shape))
            return rows.permute(0, 3, 1, 4, 2, 5)
        out = keys.new_zeros((2, *shown.shape, *keys.shape[1:]))
        out[0][shown], out[1][shown] = keys, values
        return out.permute(0, 3, 1, 4, 2, 5)

    def _forget_dead(self) -> None:
        for held in [held for held in self._known if held.is_forgotten]:
            self._known.remove(held)
            held.close()
