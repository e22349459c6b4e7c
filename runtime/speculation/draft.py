"""Guesses of a second, smaller model with the same vocabulary.

The draft runs in its own cache, a few tokens ahead of the text. Greedy texts get its likeliest tokens; where tokens are
drawn, it draws by the same options from its own distribution, which is handed on with the guess.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamac.errors import LlamacError

from ..kv import CachedSequence
from ..sampler import Sampler, penalize_repetition
from ..session import Feed, Session
from .proposal import Distribution, Guesser, Pace, Proposal, Wish
from .verification import distribution_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..device_cpu import Float32s
    from ..generation import Continuation

CATCHING_UP = 8
"""Tokens that a text may be ahead of its draft and still be fed together with others: more are fed before, alone."""


@dataclass
class Draft(Guesser):
    """One text in the draft's cache."""

    sequence: CachedSequence
    sampler: Sampler
    pace: Pace
    cache: DraftCache

    def length(self) -> int:
        return self.pace.length()

    def learn(self, drafted: int, accepted: int, tokens: int) -> None:
        self.pace.learn(drafted, accepted)
        self.sequence.truncate(min(len(self.sequence), tokens))

    def close(self) -> None:
        self.cache.leave(self.sequence)


@dataclass
class _Writing:
    """A wish being fulfilled: `pending` are the ids to feed before the next guess."""

    draft: Draft
    wish: Wish
    count: int
    pending: Sequence[int]
    ids: list[int] = field(default_factory=list)
    drawn_from: list[Distribution] = field(default_factory=list)

    def take(self, logits: Float32s) -> None:
        """Guess from a row of the draft's logits."""
        sampler, history = self.draft.sampler, [*self.wish.ids, *self.ids]
        if sampler.options.temperature == 0:
            self.ids.append(int(penalize_repetition(logits, history, sampler.options.repetition_penalty).argmax()))
        else:
            found = distribution_of(logits, history, sampler)
            self.ids.append(sampler.draw(found.ids, found.probabilities))
            self.drawn_from.append(found)
        self.pending = self.ids[-1:]


class DraftCache:
    """The draft's sequences, of which the one that ended last is kept for the text that begins next.

    So a turn of a conversation computes only what is new in the draft, too.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.RLock()  # a stream may be collected, and leave its sequence here, at any moment
        self._left: CachedSequence | None = None

    def take(self, prompt: Sequence[int]) -> CachedSequence:
        """The sequence kept, as far as it agrees with a prompt, or a new one."""
        with self._lock:
            sequence, self._left = self._left, None
        if sequence is None:
            return self._session.open()
        sequence.truncate(sequence.shared(prompt))
        return sequence

    def leave(self, sequence: CachedSequence) -> None:
        """Keep this sequence, without the pages that hold nothing, in place of the one kept before."""
        sequence.trim()
        with self._lock:
            before, self._left = self._left, sequence
        if before is not None:
            before.close()

    def close(self) -> None:
        """Give back what is kept."""
        with self._lock:
            before, self._left = self._left, None
        if before is not None:
            before.close()


class DraftModel:
    """Guesses `tokens` ids at most, by running another model in `session`. Those of one session share their `cache`."""

    def __init__(self, session: Session, tokens: int = 8, cache: DraftCache | None = None) -> None:
        self.session = session
        self.tokens = tokens
        self.cache = cache or DraftCache(session)

    def begin(self, continuation: Continuation, may_wait: bool) -> Draft | None:
        """A text in the draft's cache; LLC0808 when it would not fit even with no other beside it."""
        most = min(continuation.most_tokens, self.session.context)
        sequence = self.cache.take(continuation.prompt_ids)
        pools = self.session.pools
        if may_wait and any(n > p.free_pages for n, p in zip(sequence.missing_pages(most), pools, strict=True)):
            self.cache.leave(sequence)
            return None
        try:
            sequence.reserve(most)
        except LlamacError:
            sequence.close()
            if may_wait:
                return None  # another thread has taken the pages since
            raise
        sampler = Sampler(continuation.options.sampling, stream=1)
        return Draft(sequence, sampler, Pace(self.tokens), self.cache)

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """A guess for each wish, all written together; none for a text that has outgrown the draft's context."""
        texts = [self._start(wish) for wish in wishes]
        active = [text for text in texts if text.count > 0]
        while active:
            for text, logits in zip(active, self._rows(active), strict=True):
                text.take(logits)
            active = [text for text in active if len(text.ids) < text.count]
        return [Proposal(tuple(text.ids), tuple(text.drawn_from)) for text in texts]

    def _start(self, wish: Wish) -> _Writing:
        draft = wish.guesser
        assert isinstance(draft, Draft)
        # The last guess is never fed, so one more than the context holds can be made.
        count = min(wish.count, self.session.context - len(wish.ids) + 1)
        missing = wish.ids[len(draft.sequence) :]
        step = self.session.max_step_tokens
        while count > 0 and len(missing) > min(CATCHING_UP, step):
            part = missing[: min(len(missing) - 1, step)]
            self.session.step([Feed(draft.sequence, part, "none")])
            missing = missing[len(part) :]
        return _Writing(draft, wish, count, missing)

    def _rows(self, texts: Sequence[_Writing]) -> list[Float32s]:
        """Feed what is pending, in as many steps as it takes; a row of logits for each text."""
        rows: list[Float32s] = []
        feeds: list[Feed] = []
        room = self.session.max_step_tokens
        for text in texts:
            if len(text.pending) > room:
                rows += list(self.session.step(feeds))
                feeds, room = [], self.session.max_step_tokens
            feeds.append(Feed(text.draft.sequence, text.pending))
            room -= len(text.pending)
        return rows + list(self.session.step(feeds))


def check_same_vocabulary(target: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
    """LLC0840 unless two manifests have vocabularies of one size and the very same tokenizer files."""
    sizes = [manifest["model"]["vocab_size"] for manifest in (target, draft)]
    hint = "a draft needs the vocabulary of the model: take a smaller one of the same family"
    if sizes[0] != sizes[1]:
        reason = f"its vocabulary holds {sizes[1]} tokens, that of {target['model']['name']} {sizes[0]}"
        raise LlamacError("LLC0840", draft["model"]["name"], reason, hint)
    if _tokenizer(target) != _tokenizer(draft):
        reason = f"its tokenizer is not that of {target['model']['name']}: the files differ"
        raise LlamacError("LLC0840", draft["model"]["name"], reason, hint)


def _tokenizer(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The kind and the hashes of the files of a tokenizer."""
    stored = manifest["tokenizer"]
    if stored is None:
        return None
    hashes = {name: manifest["members"][member]["sha256"] for name, member in stored["files"].items()}
    return {"kind": stored["kind"], **hashes}
