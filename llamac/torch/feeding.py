"""Appends tokens to many sequences at once, in as few steps as the artifact's step size allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.runtime.kv import CachedSequence
from llamac.runtime.session import Feed, Session, WantedRows

Float32s = NDArray[np.float32]

NOWHERE = -1
"""The place of a row whose logits nobody wants."""


@dataclass(frozen=True)
class Appended:
    """Ids to append to a sequence; `places[i]` is the row of the output for the logits after id i, or NOWHERE."""

    sequence: CachedSequence
    ids: Sequence[int]
    places: Sequence[int]

    def part(self, start: int, stop: int) -> Appended:
        """The ids from `start` to `stop` with their places."""
        return Appended(self.sequence, self.ids[start:stop], self.places[start:stop])

    @property
    def rows(self) -> WantedRows:
        """Which rows the step has to write so that the wanted ones are among them."""
        wanted = [place != NOWHERE for place in self.places]
        if not any(wanted):
            return "none"
        return "all" if any(wanted[:-1]) else "last"


def append(session: Session, work: Sequence[Appended], out: Float32s) -> None:
    """Append every row of `work` to its sequence and write the wanted logits to their rows of `out` [rows, vocab].

    When anything fails (LLC0808: no pages, LLC0809: longer than the context, LLC0812: no such id), every sequence is as
    it was.
    """
    lengths = [len(row.sequence) for row in work]
    try:
        for row in work:
            _check_length(session, len(row.sequence) + len(row.ids))
            row.sequence.reserve(len(row.sequence) + len(row.ids))
        for step in _steps(work, session.max_step_tokens):
            _run(session, step, out)
    except BaseException:
        for row, length in zip(work, lengths, strict=True):
            if not row.sequence.closed:
                truncate(session, row.sequence, length)
        raise


def truncate(session: Session, sequence: CachedSequence, length: int) -> None:
    """Forget everything from position `length` on.

    A window of attention may hold too little of what lies before: then that is computed again.
    """
    kept = sequence.ids[:length]
    sequence.truncate(length)
    missing = kept[len(sequence) :]
    for start in range(0, len(missing), session.max_step_tokens):
        session.step([Feed(sequence, missing[start : start + session.max_step_tokens], "none")])


def _check_length(session: Session, tokens: int) -> None:
    if tokens > session.context:
        reason = f"{tokens} tokens, the context holds {session.context}: {tokens - session.context} too many"
        raise LlamacError("LLC0809", "input_ids", reason, "shorten it; nothing is cut off silently")


def _steps(work: Sequence[Appended], most: int) -> Iterator[list[Appended]]:
    """The rows cut and packed into steps of at most `most` ids."""
    step: list[Appended] = []
    room = most
    for row in work:
        start = 0
        while start < len(row.ids):
            stop = min(len(row.ids), start + room)
            step.append(row.part(start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield step
                step, room = [], most
    if step:
        yield step


def _run(session: Session, step: Sequence[Appended], out: Float32s) -> None:
    feeds = [Feed(row.sequence, row.ids, row.rows) for row in step]
    places = [
        place
        for row in step
        for place in (row.places if row.rows == "all" else row.places[-1:] if row.rows == "last" else ())
    ]
    if places == list(range(len(out))):
        session.step(feeds, out)
        return
    logits = session.step(feeds)
    wanted = [index for index, place in enumerate(places) if place != NOWHERE]
    out[[places[index] for index in wanted]] = logits[wanted]
