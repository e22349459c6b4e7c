"""What is asked of one generation and what comes out of it, and the state in between.

`Continuation` is the text side of one running sequence: it turns each row of logits into a token, the token into text
that is safe to show, and decides when to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llamac.artifact.launch_plan import LISTED
from llamac.errors import LlamacError

from .device_cpu import Float32s
from .gpu.sampling import DrawnToken
from .images.placed import PromptImage
from .ranked_sampler import WHOLE_ROW, Need, choose_ranked, need_of
from .sampler import Sample, Sampler, SamplerOptions, log_normalizer, no_distribution, top_logprobs
from .speculation.proposal import Distribution, SpeculationCounts, Speculator
from .speculation.verification import distribution_of, keep_or_replace
from .step_row import StepRow
from .text.stream import MEANINGFUL, StopStrings, StreamDecoder
from .text.tokenizer import TokenizerBase

if TYPE_CHECKING:
    from .text.tools.call import ToolCall
    from .text.tools.parser import ParsedMessage

StopReason = Literal["stop_id", "stop_string", "length", "context"]
"""A stop id was drawn · a stop string was completed · max_new_tokens were drawn · the context is full."""


@dataclass(frozen=True)
class GenerationOptions:
    """How one generation runs and when it ends.

    max_new_tokens: None means until the context is full. logprobs: also report the log-probability of every new token
    and of that many most likely ones. after_text: the new text continues the prompt's, so a leading space stays.
    """

    max_new_tokens: int | None = 256
    sampling: SamplerOptions = field(default_factory=SamplerOptions)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    after_text: bool = True

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "logprobs"):
            value = getattr(self, name)
            lowest = 1 if name == "max_new_tokens" else 0
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
                reason = f"{value!r} is not a whole number of at least {lowest}"
                raise LlamacError("LLC0811", name, reason, "give one, or None")
        for token_id in self.stop_ids:
            if isinstance(token_id, bool) or not isinstance(token_id, (int, np.integer)):
                hint = "give ids of the vocabulary; texts are given as `stop`"
                raise LlamacError("LLC0811", "stop_ids", f"{token_id!r} is no token id", hint)


@dataclass(frozen=True)
class TokenLogprob:
    """The natural log-probability of one drawn token, before temperature and filters, and of the most likely ones."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one generation; in a batch they include the waiting for the others."""

    first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class Generation:
    """The outcome of one generation.

    text: the new text (with the prompt before it when `echo` was asked), "" when the artifact has no tokenizer; it ends
    before a stop string and holds no special tokens. token_ids: every id drawn, the stop id that ended it included.
    tagged_text: the new text with the control tokens that mark tool calls spelt out. speculation: what guessing did,
    None when there was none.
    """

    text: str
    prompt_ids: list[int]
    token_ids: list[int]
    stop_reason: StopReason
    logprobs: list[TokenLogprob] | None
    timings: Timings
    tagged_text: str = ""
    speculation: SpeculationCounts | None = None

    @cached_property
    def message(self) -> ParsedMessage:
        """The new text as an assistant's message: what it says, and its tool calls."""
        from .text.tools.parser import parse

        return parse(self.tagged_text, cut_off=self.stop_reason in ("length", "context"))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tools that the model calls, in order; see docs/prompts.md for what is recognized."""
        return self.message.calls

    def to_message(self) -> dict[str, Any]:
        """The row with which this answer joins the history of a conversation."""
        row: dict[str, Any] = {"role": "assistant", "content": self.message.text if self.tool_calls else self.text}
        if self.tool_calls:
            row["tool_calls"] = [call.to_message() for call in self.tool_calls]
        return row

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `llamac run --json` prints it."""
        row = asdict(self)
        del row["tagged_text"]
        calls = [{"name": call.name, "arguments": call.arguments, "kind": call.kind} for call in self.tool_calls]
        speculation = None if self.speculation is None else self.speculation.to_json()
        return row | {"tool_calls": calls, "speculation": speculation}


class Continuation:
    """One running generation: feed it the logits of the last row after each step until `stop_reason` is set."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        tokenizer: TokenizerBase | None,
        context: int,
        echo: str = "",
        images: Sequence[PromptImage] = (),
        speculator: Speculator | None = None,
    ) -> None:
        if options.stop and tokenizer is None:
            raise LlamacError("LLC0813", "stop", "stop strings need a tokenizer", "use stop_ids with this artifact")
        self.prompt_ids = list(prompt_ids)
        self.images = tuple(images)
        self.speculator = speculator
        self.counts = SpeculationCounts()
        self.token_ids: list[int] = []
        self.stop_reason: StopReason | None = None
        self.options = options
        self._tokenizer = tokenizer
        self._context = context
        self._sampler = Sampler(options.sampling)
        self._plain_greedy = options.sampling.temperature == 0 and options.sampling.repetition_penalty == 1
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer, continuation=options.after_text)
        self._stops = StopStrings(options.stop)
        self.echo = echo
        self._pieces = [echo] if echo else []
        self.tagged_pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._started = self._first = self._last = time.perf_counter()

    @property
    def most_tokens(self) -> int:
        """How many tokens of the cache this may come to fill: the last drawn token is never fed back."""
        limit = self._context if self.options.max_new_tokens is None else self.options.max_new_tokens
        return min(len(self.prompt_ids) + limit - 1, self._context)

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of the prompt's pictures."""
        return sum(image.vision_tokens for image in self.images)

    def need(self, most_top: int) -> Need:
        """What of a row the choice of the next token needs, where `most_top` best logits of it can be had."""
        return WHOLE_ROW if self.options.logprobs is not None else need_of(self.options.sampling, most_top)

    def accept(self, logits: Float32s) -> str:
        """Draw the next token from `logits` [vocab]; the text that became certain, often empty."""
        return self.accept_row(StepRow(lambda: logits))

    def accept_row(self, row: StepRow) -> str:
        """The same from a row whose best logits may be enough, or from which the token has been drawn."""
        return self.accept_drawn(row.drawn) if row.drawn is not None else self._take(self._choose(row))

    @property
    def takes_best(self) -> bool:
        """Whether every next token is the one of the largest logit and nothing else of the logits is wanted."""
        return self._plain_greedy and self.options.logprobs is None

    def accept_id(self, token_id: int) -> str:
        """The same where the device has found the next token: the one of the largest logit."""
        return self._take(token_id)

    @property
    def takes_drawn(self) -> bool:
        """Whether a device that draws by the options alone, and tells of LISTED likely tokens, can write this text."""
        return self.options.sampling.repetition_penalty == 1 and (self.options.logprobs or 0) <= LISTED

    def draw(self, number: int) -> tuple[SamplerOptions, int]:
        """The options, and the 53 random bits of the draw of new token `number`, which has not been accepted yet."""
        return self.options.sampling, self._sampler.upcoming(number - len(self.token_ids))

    def accept_drawn(self, drawn: DrawnToken) -> str:
        """The same where the device has drawn the next token (LLC0853 where it found no distribution)."""
        if drawn.token_id < 0:
            raise no_distribution()
        self._sampler.skip()
        if self.options.logprobs is not None:
            pairs = zip(drawn.best_ids.tolist(), drawn.best_logprobs.tolist(), strict=True)
            self._logprobs.append(TokenLogprob(drawn.token_id, drawn.logprob, [*pairs][: self.options.logprobs]))
        return self._take(drawn.token_id)

    def verify(self, row: StepRow, guess: int, guessed_from: Distribution) -> str:
        """The same given a guess that was drawn from another distribution: it is kept as often as it should be."""
        logits, history = row.logits(), [*self.prompt_ids, *self.token_ids]
        own = distribution_of(logits, history, self._sampler)
        token_id = keep_or_replace(own, guess, guessed_from, self._sampler)
        if self.options.logprobs is not None:
            self._report(logits, Sample(token_id, float(logits[token_id]) - log_normalizer(logits)))
        return self._take(token_id)

    def count(self, drafted: int, accepted: int) -> None:
        """A step has given tokens, `accepted` of `drafted` guesses among them."""
        before = self.counts
        self.counts = SpeculationCounts(before.steps + 1, before.drafted + drafted, before.accepted + accepted)

    def _take(self, token_id: int) -> str:
        self.token_ids.append(token_id)
        self._last = time.perf_counter()
        if len(self.token_ids) == 1:
            self._first = self._last
        piece = self._advance(token_id)
        if piece:
            self._pieces.append(piece)
        self.tagged_pieces += [part for part in (piece, self._tag(token_id)) if part]
        return piece

    def _tag(self, token_id: int) -> str:
        """The text of a control token that says where a tool call or the message begins or ends, else nothing."""
        control = "" if self._tokenizer is None else self._tokenizer.special_text(token_id)
        return control if control in MEANINGFUL else ""

    def result(self) -> Generation:
        """The outcome, once `stop_reason` is set."""
        if self.stop_reason is None:
            raise RuntimeError("the generation has not ended")
        return Generation(
            text="".join(self._pieces),
            prompt_ids=self.prompt_ids,
            token_ids=self.token_ids,
            stop_reason=self.stop_reason,
            logprobs=None if self.options.logprobs is None else self._logprobs,
            timings=Timings(self._first - self._started, self._last - self._started),
            tagged_text="".join(self.tagged_pieces),
            speculation=None if self.speculator is None else self.counts,
        )

    def _choose(self, row: StepRow) -> int:
        if row.ids is not None and row.values is not None and self.need(len(row.ids)).count:
            chosen = choose_ranked(self._sampler, row.ids, row.values, row.total, row.vocab_size)
            if chosen is not None:
                return chosen
        logits = row.logits()
        if self.options.logprobs is None and self._plain_greedy:
            best = int(np.argmax(logits))
            if math.isfinite(logits[best]):  # otherwise the sampler says what is wrong
                return best
        history = () if self._plain_greedy else [*self.prompt_ids, *self.token_ids]
        token_id, logprob = self._sampler.sample(logits, history)
        if self.options.logprobs is not None:
            self._report(logits, Sample(token_id, logprob))
        return token_id

    def _report(self, logits: Float32s, drawn: Sample) -> None:
        assert self.options.logprobs is not None
        top = [(row.token_id, row.logprob) for row in top_logprobs(logits, self.options.logprobs)]
        self._logprobs.append(TokenLogprob(drawn.token_id, drawn.logprob, top))

    def _advance(self, token_id: int) -> str:
        """Text of the drawn token; sets `stop_reason` when it was the last one."""
        if token_id in self.options.stop_ids:
            self.stop_reason = "stop_id"
            return self._flush()
        piece, stop = self._stops.feed("" if self._decoder is None else self._decoder.feed(token_id))
        if stop is None and self._tag(token_id):
            more, stop = self._stops.feed("" if self._decoder is None else self._decoder.finish())
            # Nothing goes on across a mark of a tool call, a stop string no more than a character.
            piece += more if stop is not None else more + self._stops.finish()
        if stop is not None:
            self.stop_reason = "stop_string"
        elif len(self.token_ids) == self.options.max_new_tokens:
            self.stop_reason = "length"
        elif len(self.prompt_ids) + len(self.token_ids) > self._context:
            self.stop_reason = "context"
        else:
            return piece
        return piece if stop is not None else piece + self._flush()

    def _flush(self) -> str:
        """What was held back as the possible start of a character or a stop string."""
        piece, stop = self._stops.feed("" if self._decoder is None else self._decoder.finish())
        return piece if stop is not None else piece + self._stops.finish()
