"""Runs steps of a session with as little written as the choices of the next tokens need, and hands out their rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from .gpu.sampling import drawn_token, sampling_rows
from .kv import CachedSequence
from .ranked import RankedRows
from .ranked_sampler import Need
from .sampler import SamplerOptions
from .session import Feed, Session, wanted_rows
from .step_row import StepRow

Float32s = npt.NDArray[np.float32]


class RowResults:
    """The rows of the last step, in the order of its feeds. The memory of whole rows is kept between steps."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._memory = np.empty((0, session.device.vocab_size), np.float32)
        self._logits: Float32s | None = None
        self._ranked: RankedRows | None = None
        self._drawn: npt.NDArray[np.int32] | None = None
        self._left: deque[tuple[range, Need]] = deque()

    def step(
        self,
        feeds: Sequence[Feed],
        needs: Sequence[Need],
        draws: Sequence[tuple[SamplerOptions, int]] | None = None,
    ) -> None:
        """Run a step; `needs` says what is needed of the rows of each feed that wants any.

        draws: the options of each such feed, which wants one row, and the bits of its draw; the device then draws.
        """
        rows = [wanted_rows([feed]) for feed in feeds if feed.rows != "none"]
        total, count = sum(rows), max((need.count for need in needs), default=0)
        ends = list(accumulate(rows))
        self._left = deque((range(end - n, end), need) for end, n, need in zip(ends, rows, needs, strict=True))
        self._drawn = None if draws is None else self._session.step_drawn(feeds, sampling_rows(draws))
        if draws is not None:
            return
        whole = not count or any(need.whole_row for need in needs)
        self._logits = self._whole_rows(total) if whole else None
        self._ranked = None
        if not count:
            self._session.step(feeds, self._logits)
            return
        inverse = None
        if any(need.inverse_temperature is not None for need in needs):
            each = [need.inverse_temperature or 1.0 for need in needs]
            inverse = np.repeat(np.array(each, np.float32), rows)
        self._ranked = RankedRows.empty(total, count, inverse)
        self._session.step_ranked(feeds, self._ranked, self._logits)

    def _whole_rows(self, rows: int) -> Float32s:
        if rows > len(self._memory):
            self._memory = np.empty((rows, self._session.device.vocab_size), np.float32)
        return self._memory[:rows]

    def take(self, sequence: CachedSequence, start: int) -> Iterator[StepRow]:
        """The rows of the next feed that has any, those of `sequence` from position `start` on.

        Where a row that was not written is asked for all the same, its token is fed again: the rows after it end there.
        """
        places, need = self._left.popleft()
        for row, place in enumerate(places):
            yield self._row(place, need, self._again(sequence, start + row))
            if len(sequence) < start + len(places):
                return

    def _row(self, place: int, need: Need, again: Callable[[], Float32s]) -> StepRow:
        vocab, logits, ranked = self._session.device.vocab_size, self._logits, self._ranked
        if self._drawn is not None:
            return StepRow(again, vocab_size=vocab, drawn=drawn_token(self._drawn[place]))
        whole = again if logits is None else lambda: logits[place]
        if ranked is None or not need.count:
            return StepRow(whole, vocab_size=vocab)
        total = None
        if need.inverse_temperature is not None and ranked.sums is not None:
            total = float(ranked.sums[place])
        return StepRow(whole, ranked.ids[place], ranked.values[place], total, vocab)

    def _again(self, sequence: CachedSequence, position: int) -> Callable[[], Float32s]:
        def compute() -> Float32s:
            token = sequence.ids[position]
            sequence.truncate(position)
            row: Float32s = self._session.step([Feed(sequence, [token])])[0]
            return row

        return compute
