"""Runs generations together: every step carries the last token of each running text, with guesses of the next ones
where a speculator makes some, and fills up with waiting prompts.

A request is admitted when the pages for its longest possible text are free, so a text that has begun never runs out of
memory; the others wait their turn. Results do not depend on what else runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from llamac.errors import LlamacError

from .generation import Continuation, Generation
from .gpu.sampling import drawn_token
from .kv import CachedSequence
from .ranked_sampler import WHOLE_ROW, Need
from .row_results import RowResults
from .running_ahead import Draws, most_rows_ahead, rows_ahead
from .sampler import SamplerOptions
from .session import Feed, Session
from .speculation.proposal import NOTHING, Guesser, Proposal, Speculator, Wish
from .step_row import StepRow


@dataclass(frozen=True)
class Progress:
    """New text of one request, and its outcome with the last piece."""

    request: int
    text: str
    outcome: Generation | None


class _Running:
    """A request in the cache: `pending` are the ids to feed before its next token can be drawn.

    guesser: its state in its speculator; `proposal` are the guesses to feed behind `pending`, None until they are made.
    """

    def __init__(
        self,
        request: int,
        continuation: Continuation,
        sequence: CachedSequence,
        kept: bool,
        guesser: Guesser | None,
    ) -> None:
        self.request = request
        self.continuation = continuation
        self.sequence = sequence
        self.kept = kept
        self.guesser = guesser
        self.pending: Sequence[int] = continuation.prompt_ids[len(sequence) :]
        self.proposal: Proposal | None = NOTHING

    @property
    def room(self) -> int:
        """How many guesses the text could still take: each is fed, and what is drawn last never is."""
        return self.continuation.most_tokens - len(self.sequence) - len(self.pending)

    def need(self, most_top: int) -> Need:
        """What of its rows the choice of its tokens needs, where `most_top` best logits of them can be had."""
        if self.proposal is not None and self.proposal.drawn_from:
            return WHOLE_ROW
        need = self.continuation.need(most_top)
        # To go back before the last token can mean to go back before a picture.
        return replace(need, whole_row=True) if need.count > 1 and self.continuation.images else need

    def settle(self, start: int, accepted: int) -> None:
        """Of the step that began at position `start` the pending token and `accepted` guesses stay in the cache."""
        self.sequence.truncate(start + 1 + accepted)
        assert self.guesser is not None and self.proposal is not None
        drafted = len(self.proposal.ids)
        self.continuation.count(drafted, accepted)
        self.guesser.learn(drafted, accepted, len(self.sequence))
        self.proposal = None

    def release(self) -> None:
        """Give pages back: all of them, or for a kept sequence those beyond its last token."""
        if self.guesser is not None:
            self.guesser.close()
        if self.kept:
            self.sequence.trim()
        else:
            self.sequence.close()


def run_together(
    session: Session, continuations: Sequence[Continuation], kept: CachedSequence | None = None
) -> Iterator[Progress]:
    """Run all `continuations` to their ends, yielding text as it becomes certain.

    kept: the sequence to run the only continuation in; it stays open, and tokens it shares with the prompt are not
    computed again (LLC0820 while another text is written in it). Raises LLC0808 when a request would not fit even an
    empty cache.
    """
    waiting = deque(enumerate(continuations))
    running: deque[_Running] = deque()
    results = RowResults(session)
    batch = object()
    try:
        session.turns.enter(batch)
        if kept is not None:
            kept.begin_text(batch)
        while waiting or running:
            _admit(session, waiting, running, kept)
            if not waiting and _can_run_ahead(session, running):
                yield from _run_ahead(session, running)
                continue
            _propose(session, running)
            for row, start in _step(session, running, results):
                yield from _accept(row, results.take(row.sequence, start), start, running)
    finally:
        for row in running:
            row.release()
        if kept is not None:
            kept.end_text(batch)
        session.turns.leave(batch)


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
        speculator, guesser = continuation.speculator, None
        if speculator is not None:
            guesser = speculator.begin(continuation, may_wait=len(running) > 0)
            if guesser is None:
                return
        try:
            sequence.reserve(continuation.most_tokens, continuation.vision_tokens)
        except BaseException as error:
            if guesser is not None:
                guesser.close()
            if running and isinstance(error, LlamacError):
                return  # another thread has taken the pages since; they come back
            raise
        row = _Running(request, continuation, sequence, kept is not None, guesser)
        running.append(row)
        waiting.popleft()
        session.place(sequence, continuation.images[len(sequence.images.placed) :])


def _can_run_ahead(session: Session, running: deque[_Running]) -> bool:
    """Whether all texts are being written, and the device finds their tokens itself: the best ones, or drawn ones."""
    draws = not all(row.continuation.takes_best for row in running)
    if session.turns.are_shared or len(running) > most_rows_ahead(session, draws):
        return False
    return all(
        len(row.pending) == 1 and row.guesser is None and (not draws or row.continuation.takes_drawn) for row in running
    )


def _draws(rows: Sequence[_Running]) -> Draws | None:
    """How the tokens of the texts are drawn; None where every token is the best one."""
    if all(row.continuation.takes_best for row in rows):
        return None
    first = [len(row.continuation.token_ids) for row in rows]
    return lambda step: [row.continuation.draw(n + step) for row, n in zip(rows, first, strict=True)]


def _run_ahead(session: Session, running: deque[_Running]) -> Iterator[Progress]:
    """Write all texts until one of them ends, or somebody else wants the device."""
    rows = list(running)
    steps = min(row.continuation.most_tokens - len(row.sequence) for row in rows)
    draws = _draws(rows)
    with closing(rows_ahead(session, [r.sequence for r in rows], [r.pending[0] for r in rows], steps, draws)) as found:
        for results in found:
            for row, words in zip(rows, results, strict=True):
                own = row.continuation
                text = own.accept_id(int(words[0])) if draws is None else own.accept_drawn(drawn_token(words))
                yield from _go_on(row, text, running)
            if len(running) < len(rows) or session.turns.are_shared:
                return


def _propose(session: Session, running: deque[_Running]) -> None:
    """Have guesses made for every text that is being written and has none."""
    wishes: dict[int, tuple[Speculator, list[tuple[_Running, Wish]]]] = {}
    for row in running:
        speculator, guesser = row.continuation.speculator, row.guesser
        if row.proposal is not None or speculator is None or guesser is None:
            continue
        count = min(guesser.length(), row.room, session.max_step_tokens - 1)
        row.proposal = NOTHING
        if count > 0:
            ids = [*row.continuation.prompt_ids, *row.continuation.token_ids]
            wishes.setdefault(id(speculator), (speculator, []))[1].append((row, Wish(guesser, ids, count)))
    for speculator, rows in wishes.values():
        for (row, _), proposal in zip(rows, speculator.propose([wish for _, wish in rows]), strict=True):
            row.proposal = proposal


def _step(session: Session, running: deque[_Running], results: RowResults) -> list[tuple[_Running, int]]:
    """One step over as much as fits; the requests whose next token can be drawn, and the positions their rows begin at.

    Texts being written come before prompts being read; who was served goes to the end of the queue. Guesses are never
    cut to fit, so that what comes out does not depend on the company: they wait for the next step.
    """
    room = session.max_step_tokens
    feeds: list[Feed] = []
    served: list[tuple[_Running, int]] = []
    for row in sorted(running, key=lambda row: len(row.pending) > 1):
        guesses = row.proposal.ids if row.proposal is not None else ()
        if not room:
            break
        if len(guesses) >= room:
            continue
        part = [*row.pending[:room], *guesses]
        room -= len(part)
        row.pending = row.pending[len(part) - len(guesses) :]
        feeds.append(Feed(row.sequence, part, "none" if row.pending else "all" if guesses else "last"))
        if not row.pending:
            served.append((row, len(row.sequence) + len(part) - 1 - len(guesses)))
    results.step(feeds, [row.need(session.most_top) for row, _ in served], _draws_of(session, [r for r, _ in served]))
    return served


def _draws_of(session: Session, served: Sequence[_Running]) -> list[tuple[SamplerOptions, int]] | None:
    """How the device draws the next token of each text; None where it cannot, or guesses want more rows than one."""
    has_guesses = any(row.proposal is not None and row.proposal.ids for row in served)
    if not served or not session.draws or has_guesses or not all(row.continuation.takes_drawn for row in served):
        return None
    return [row.continuation.draw(len(row.continuation.token_ids)) for row in served]


def _accept(row: _Running, rows: Iterator[StepRow], start: int, running: deque[_Running]) -> Iterator[Progress]:
    """Draw tokens from the rows as far as the guesses behind them were right."""
    continuation, proposal = row.continuation, row.proposal or NOTHING
    text, accepted = "", 0
    for step_row in rows:
        guess = proposal.ids[accepted] if accepted < len(proposal.ids) else None
        if guess is not None and proposal.drawn_from:
            text += continuation.verify(step_row, guess, proposal.drawn_from[accepted])
        else:
            text += continuation.accept_row(step_row)
        if continuation.stop_reason is not None or continuation.token_ids[-1] != guess:
            break
        accepted += 1
    if row.guesser is not None:
        row.settle(start, accepted)
    yield from _go_on(row, text, running)


def _go_on(row: _Running, text: str, running: deque[_Running]) -> Iterator[Progress]:
    """A text has got tokens: to the end of the queue with it, or out of it."""
    continuation = row.continuation
    row.pending = continuation.token_ids[-1:]
    running.remove(row)
    if continuation.stop_reason is None:
        running.append(row)
    else:
        row.release()
    outcome = None if continuation.stop_reason is None else continuation.result()
    if text or outcome is not None:
        yield Progress(row.request, text, outcome)
