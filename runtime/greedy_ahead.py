"""Greedy decoding with the next step on its way before the ids of the last one are read.

A device that feeds a step the best ids of the one before needs nothing from the host in between, so what the host does
with a token costs no time of the device.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .kv import CachedSequence
from .session import Feed, Session, page_tables

Int32s = npt.NDArray[np.int32]


@runtime_checkable
class GreedyDevice(Protocol):
    """A device that can run ahead; `GpuDevice` is one."""

    most_greedy_rows: int
    """The most sequences that one greedy step takes."""

    def start_greedy(
        self, token_ids: Int32s | None, positions: Int32s, sequence_of_token: Int32s, page_tables: Int32s
    ) -> None:
        """Put a step of one token a sequence on its way, None for the ids of the step before."""

    def finish_greedy(self) -> Int32s:
        """The ids of the oldest step on its way."""

    def forget_greedy(self) -> None:
        """Give up the steps on their way."""


def most_rows_ahead(session: Session) -> int:
    """How many sequences the session's device can run ahead together; 0: it cannot."""
    return session.device.most_greedy_rows if isinstance(session.device, GreedyDevice) else 0


def greedy_ids(
    session: Session, sequences: Sequence[CachedSequence], ids: Sequence[int], steps: int
) -> Generator[list[int], None, None]:
    """Feed each sequence its id, then `steps` - 1 times its best next one; yields the best ids after each step.

    The pages must have been reserved. When ids are yielded the sequences hold the tokens that led to them, and the step
    after is on its way; closing the iterator gives that one up.
    """
    device = session.device
    assert isinstance(device, GreedyDevice)
    starts = [len(sequence) for sequence in sequences]
    fed = list(ids)
    try:
        _start(device, sequences, starts, 0, fed)
        for step in range(steps):
            if step + 1 < steps:
                _start(device, sequences, starts, step + 1, None)
            best = device.finish_greedy().tolist()
            for sequence, token in zip(sequences, fed, strict=True):
                sequence.ids.append(token)
                sequence.images.fed(len(sequence))
            fed = best
            yield best
    finally:
        device.forget_greedy()


def _start(
    device: GreedyDevice, sequences: Sequence[CachedSequence], starts: list[int], step: int, ids: list[int] | None
) -> None:
    for sequence, start in zip(sequences, starts, strict=True):
        sequence.cover(start + step + 1)
    device.start_greedy(
        None if ids is None else np.array(ids, np.int32),
        np.array(starts, np.int32) + np.int32(step),
        np.arange(len(sequences), dtype=np.int32),
        page_tables([Feed(sequence, ()) for sequence in sequences]),
    )
