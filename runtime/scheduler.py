"""Runs generations together: every step carries one token of each running text and fills up with waiting prompts.

A request is admitted when the pages for its longest possible text are free, so a text that has begun never runs out of
memory; the others wait their turn. Results do not depend on what else runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .device_cpu import Float32s
from .generation import Continuation, Generation
from .kv import CachedSequence
from .session import Feed, Session


@dataclass(frozen=True)
class Progress:
    """New text of one request, and its outcome with the last piece."""

    request: int
    text: str
    outcome: Generation | None


class _Running:
    """A request in the cache: `pending` are the ids to feed before its next token can be drawn."""

    def __init__(self, request: int, continuation: Continuation, sequence: CachedSequence, kept: bool) -> None:
        self.request = request
        self.continuation = continuation
        self.sequence = sequence
        self.kept = kept
        self.pending: Sequence[int] = continuation.prompt_ids[len(sequence) :]

    def release(self) -> None:
        """Give pages back: all of them, or for a kept sequence those beyond its last token."""
        if self.kept:
            self.sequence.trim()
        else:
            self.sequence.close()


def run_together(
    session: Session, continuations: Sequence[Continuation], kept: CachedSequence | None = None
) -> Iterator[Progress]:
    """Run all `continuations` to their ends, yielding text as it becomes certain.

    kept: the sequence to run the only continuation in; it stays open, and tokens it shares with the prompt are not
    computed again. Raises LLC0808 when a request would not fit even an empty cache.
    """
    waiting = deque(enumerate(continuations))
    running: deque[_Running] = deque()
    rows = np.empty((min(len(continuations), session.max_step_tokens), session.device.vocab_size), np.float32)
    try:
        while waiting or running:
            _admit(session, waiting, running, kept)
            served = _step(session, running, rows)
            yield from _accept(served, rows, running)
    finally:
        for row in running:
            row.release()


def _admit(
    session: Session,
    waiting: deque[tuple[int, Continuation]],
    running: deque[_Running],
    kept: CachedSequence | None,
) -> None:
    while waiting:
        request, continuation = waiting[0]
        sequence = session.open() if kept is None else kept
        # All but the prompt's last position may be there already: its row is needed for logits.
        sequence.truncate(sequence.shared(continuation.prompt_ids[:-1], continuation.images))
        missing = sequence.missing_pages(continuation.most_tokens, continuation.vision_tokens)
        if running and any(n > pool.free_pages for n, pool in zip(missing, session.pools, strict=True)):
            return
        sequence.reserve(continuation.most_tokens, continuation.vision_tokens)
        row = _Running(request, continuation, sequence, kept is not None)
        running.append(row)
        waiting.popleft()
        session.place(sequence, continuation.images[len(sequence.images.placed) :])


def _step(session: Session, running: deque[_Running], rows: Float32s) -> list[_Running]:
    """One step over as much as fits; the requests whose next token can be drawn, in the order of `rows`.

    Texts being written come before prompts being read; who was served goes to the end of the queue.
    """
    room = session.max_step_tokens
    feeds: list[Feed] = []
    served: list[_Running] = []
    for row in sorted(running, key=lambda row: len(row.pending) > 1):
        part = row.pending[:room]
        if not part:
            break
        room -= len(part)
        row.pending = row.pending[len(part) :]
        feeds.append(Feed(row.sequence, part, "none" if row.pending else "last"))
        if not row.pending:
            served.append(row)
    session.step(feeds, rows[: len(served)])
    return served


def _accept(served: list[_Running], rows: Float32s, running: deque[_Running]) -> Iterator[Progress]:
    for row, logits in zip(served, rows, strict=False):
        text = row.continuation.accept(logits)
        row.pending = row.continuation.token_ids[-1:]
        running.remove(row)
        if row.continuation.stop_reason is None:
            running.append(row)
        else:
            row.release()
        outcome = None if row.continuation.stop_reason is None else row.continuation.result()
        if text or outcome is not None:
            yield Progress(row.request, text, outcome)
