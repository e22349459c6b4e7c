"""Decoding with the next step on its way before the tokens of the last one are read.

A device that feeds a step the tokens that it found in the one before needs nothing from the host in between, so what
the host does with a token costs no time of the device. Of a drawn token the host gives the random number, which depends
on nothing but the seed and how many were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .gpu.sampling import sampling_rows
from .kv import CachedSequence
from .pictures import seen_by
from .sampler import SamplerOptions
from .session import Feed, Session, page_tables
from .step_pictures import StepPictures

Int32s = npt.NDArray[np.int32]


@runtime_checkable
class AheadDevice(Protocol):
    """A device that can run ahead; `GpuDevice` is one."""

    most_rows_ahead: int
    """The most sequences that one step takes."""

    draws_ahead: bool
    """Whether it also draws tokens, not only takes the best."""

    def start_ahead(
        self,
        token_ids: Int32s | None,
        positions: Int32s,
        sequence_of_token: Int32s,
        page_tables: Int32s,
        sampling: Int32s | None = None,
        pictures: StepPictures | None = None,
    ) -> None:
        """Put a step of one token a sequence on its way, None for the tokens that the step before finds."""

    def finish_ahead(self) -> Int32s:
        """What the oldest step on its way has found, i32 [rows, words]."""

    def forget_ahead(self) -> None:
        """Give up the steps on their way."""


Draws = Callable[[int], Sequence[tuple[SamplerOptions, int]]]
"""For step n of the run, each sequence's options and the 53 random bits of its draw."""


def most_rows_ahead(session: Session, draws: bool) -> int:
    """How many sequences the session's device can run ahead together, `draws`: where tokens are drawn; 0: it cannot."""
    device = session.device
    return device.most_rows_ahead if isinstance(device, AheadDevice) and (device.draws_ahead or not draws) else 0


def rows_ahead(
    session: Session, sequences: Sequence[CachedSequence], ids: Sequence[int], steps: int, draws: Draws | None = None
) -> Generator[Int32s, None, None]:
    """Feed each sequence its id, then `steps` - 1 times the token that was found; yields what each step found.

    That is i32 [sequences, 1], the best ids, or with `draws` [sequences, SAMPLED_WORDS], of which the id is the first.
    The pages must have been reserved. When a step's result is yielded the sequences hold the tokens that led to it, and
    the step after is on its way; closing the iterator gives that one up. Where somebody else has used the device since,
    the step is begun again.
    """
    device, turns, run = session.device, session.turns, object()
    assert isinstance(device, AheadDevice)
    starts = [len(sequence) for sequence in sequences]
    fed = list(ids)
    try:
        for step in range(steps):
            with turns.of(run) as is_on_its_way:
                if not is_on_its_way:
                    _start(device, sequences, starts, step, fed, draws)
                if step + 1 < steps:
                    _start(device, sequences, starts, step + 1, None, draws)
                found = device.finish_ahead()
            for sequence, token in zip(sequences, fed, strict=True):
                sequence.ids.append(token)
                sequence.images.fed(len(sequence))
            fed = found[:, 0].tolist()
            yield found
    finally:
        turns.end(run)


def _start(
    device: AheadDevice,
    sequences: Sequence[CachedSequence],
    starts: list[int],
    step: int,
    ids: list[int] | None,
    draws: Draws | None,
) -> None:
    for sequence, start in zip(sequences, starts, strict=True):
        sequence.cover(start + step + 1)
    device.start_ahead(
        None if ids is None else np.array(ids, np.int32),
        np.array(starts, np.int32) + np.int32(step),
        np.arange(len(sequences), dtype=np.int32),
        page_tables([Feed(sequence, ()) for sequence in sequences]),
        None if draws is None else sampling_rows(draws(step)),
        seen_by(
            [(sequence, start + step, start + step + 1) for sequence, start in zip(sequences, starts, strict=True)]
        ),
    )
