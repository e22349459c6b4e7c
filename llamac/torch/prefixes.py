"""Calls without a past that share their beginnings: what was computed for one is not computed again for the next.

A graph that maps ids to logits has nowhere to keep a cache, yet a loop around it feeds the same text again and again, a
token longer each time. The last sequences stay in the artifact's pages; a call goes on from the one that agrees most.
Nothing changes but the time: a row's bits do not depend on how its sequence was cut into steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.runtime.kv import CachedSequence
from llamac.runtime.session import Session

from .columns import Bools
from .feeding import NOWHERE, Appended, append, truncate

Float32s = NDArray[np.float32]
Text = tuple[list[int], list[int]]
"""Ids, and for each the row of the output that its logits go to, or NOWHERE."""


class Prefixes:
    """The last sequences of a session, at most `most`; calls from several threads take turns.

    others: gives pages back that can be spared elsewhere; False where there are none.
    """

    def __init__(self, session: Session, most: int = 4, others: Callable[[], bool] = lambda: False) -> None:
        self._session = session
        self._most = most
        self._others = others
        self._kept: list[CachedSequence] = []
        self._lock = threading.RLock()

    def logits(self, ids: NDArray[np.int64], real: Bools, keep: int) -> Float32s:
        """Logits after the last `keep` columns of `ids` [batch, columns]: [batch, keep, V].

        Columns that are not `real` are padding and give zeros. Errors are those of `feeding.append`.
        """
        batch, columns = ids.shape
        out = np.zeros((batch, keep, self._session.device.vocab_size), np.float32)
        places = np.arange(batch * out.shape[1]).reshape(batch, -1)
        where = np.full(ids.shape, NOWHERE)
        where[:, columns - out.shape[1] :] = places
        texts = [
            (row[shown].tolist(), place[shown].tolist()) for row, place, shown in zip(ids, where, real, strict=True)
        ]
        with self._lock:
            self._run([text for text in texts if text[0]], out.reshape(-1, out.shape[2]))
        return out

    def close(self) -> bool:
        """Give the pages back; False where there are none."""
        with self._lock:
            held = bool(self._kept)
            for sequence in self._kept:
                sequence.close()
            self._kept.clear()
        return held

    def spare(self) -> bool:
        """As `close`, but False too while another thread is at work here: never waits.

        Whoever asks is at work elsewhere, and that thread may be asking for what is kept there.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self.close()
        finally:
            self._lock.release()

    def _run(self, texts: Sequence[Text], out: Float32s) -> None:
        """The wanted rows of texts, which are computed together."""
        try:
            self._go_on(texts, out, self._begin)
        except LlamacError as error:
            if error.code != "LLC0808" or not (self.close() or self._others()):
                raise  # no pages of earlier texts are in the way
            self._go_on(texts, out, lambda prefix: self._session.open())

    def _go_on(self, texts: Sequence[Text], out: Float32s, begin: Callable[[Sequence[int]], CachedSequence]) -> None:
        sequences: list[CachedSequence] = []
        try:
            for ids, places in texts:
                first = next((index for index, place in enumerate(places) if place != NOWHERE), len(ids))
                sequences.append(begin(ids[:first]))
            rest = [(len(sequence), *text) for sequence, text in zip(sequences, texts, strict=True)]
            work = [
                Appended(sequence, ids[start:], places[start:])
                for sequence, (start, ids, places) in zip(sequences, rest, strict=True)
                if start < len(ids)
            ]
            append(self._session, work, out)
        except BaseException:
            for sequence in sequences:
                sequence.close()
            raise
        self._kept += sequences
        while len(self._kept) > self._most:
            self._kept.pop(0).close()

    def _begin(self, prefix: Sequence[int]) -> CachedSequence:
        """A sequence that holds as much of `prefix` as is known, and nothing else."""
        shared = [sequence.shared(prefix) for sequence in self._kept]
        best = max(range(len(shared)), key=lambda index: shared[index], default=None)
        if best is None or not shared[best]:
            return self._session.open()
        if shared[best] == len(self._kept[best]):
            return self._kept.pop(best)
        sequence = self._session.fork(self._kept[best])
        truncate(self._session, sequence, shared[best])
        return sequence
