"""The public face of a loaded artifact: prompts in, text out.

with llamac.load("model.llamac") as model:
    print(model.generate("The capital of France is", max_new_tokens=20).text)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from llamac.artifact.read import Artifact
from llamac.errors import LlamacError

from .device_cpu import CpuDevice, Float32s
from .generation import Continuation, Generation, GenerationOptions
from .kv import CachedSequence
from .run_plan import CodeTarget, RunPlan
from .sampler import SamplerOptions
from .scheduler import Progress, run_together
from .session import Session
from .text.tokenizer import TokenizerBase, load_tokenizer
from .text.tokenizer_files import StoredFiles

if TYPE_CHECKING:
    from .text.chat import ChatTemplate
    from .text.tools.offered import Tool

Prompt = str | Sequence[int] | npt.NDArray[np.integer[Any]]
Message = Mapping[str, Any]


class GenerateOptions(TypedDict, total=False):
    """What every generating call takes. Sampling values that are not given are the artifact's own defaults.

    max_new_tokens: 256 unless given; None runs until the context is full. temperature: 0 is greedy.
    seed: the same seed gives the same ids. stop: end before any of these texts. stop_ids: end at these ids too.
    ignore_stop_ids: run on past the artifact's stop ids (for timing). logprobs: report log-probabilities of the
    drawn token and of this many most likely ones. echo: put the prompt's text before the new text.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: Sequence[str] | str
    stop_ids: Sequence[int]
    ignore_stop_ids: bool
    logprobs: int | None
    echo: bool


_SAMPLING = tuple(row.name for row in fields(SamplerOptions))


class TextStream(Iterator[str]):
    """Pieces of text as they become certain; after the last one `outcome` holds the whole `Generation`."""

    def __init__(self, progress: Iterator[Progress]) -> None:
        self._progress = progress
        self._outcome: Generation | None = None

    def __next__(self) -> str:
        for step in self._progress:
            if step.outcome is not None:
                self._outcome = step.outcome
            if step.text:
                return step.text
        raise StopIteration

    @property
    def outcome(self) -> Generation:
        """The finished generation; reads the rest of the stream first when there is any."""
        for _ in self:
            pass
        if self._outcome is None:
            raise LlamacError("LLC0815", "stream", "the stream was closed before its end", "start the generation again")
        return self._outcome

    def close(self) -> None:
        """Stop generating and give the cache's pages back."""
        close = getattr(self._progress, "close", None)
        if close is not None:
            close()


class Model:
    """A loaded artifact, ready to run. Made by `llamac.load`; close it, or use it as a context manager.

    name, context (the longest sequence in tokens), vocab_size, target (the code in use), threads, load_seconds,
    manifest, session (the low-level way to step sequences together).
    Calls from several threads are safe: steps take turns, and `load(..., sequences=N)` gives the cache room for N.
    """

    def __init__(
        self,
        artifact: Artifact,
        plan: RunPlan,
        target: CodeTarget,
        device: CpuDevice,
        context: int,
        load_seconds: float = 0.0,
    ) -> None:
        self.manifest: dict[str, Any] = artifact.manifest
        self.plan = plan
        self.name = plan.name
        self.context = context
        self.vocab_size = plan.vocab_size
        self.target = target
        self.threads = device.threads
        self.load_seconds = load_seconds
        self.session = Session(device, context)
        self._artifact = artifact
        self._device = device

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the code's threads, free its memory and close the file."""
        self._device.close()
        self._artifact.close()

    @cached_property
    def tokenizer(self) -> TokenizerBase:
        """The artifact's tokenizer, read on first use; LLC0813 when it has none."""
        stored = self.manifest["tokenizer"]
        if stored is None:
            reason = "the artifact has no tokenizer: it takes and gives token ids only"
            raise LlamacError("LLC0813", "tokenizer", reason, "pass ids, or compile from a checkpoint with a tokenizer")
        files = StoredFiles(stored["files"], self._artifact.member_bytes)
        info = {"bos_id": self.plan.bos_id, "add_bos": self.plan.add_bos, **stored["info"]}
        return load_tokenizer(stored["kind"], files, info)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The artifact's chat template; LLC0814 when it has none."""
        member = self.manifest["chat_template"]
        if member is None:
            reason = "the artifact has no chat template: the model was not made for conversation"
            hint = "use generate with a plain prompt, or name a chat format (docs/prompts.md)"
            raise LlamacError("LLC0814", "chat template", reason, hint)
        from .text.chat import ChatTemplate

        return ChatTemplate(self._artifact.member_bytes(member).decode("utf-8"))

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: text goes through the tokenizer (with a BOS when the model wants one), ids stay as given."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return [int(token_id) for token_id in prompt]

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, chat_format: str | None = None
    ) -> list[int]:
        """Ids of a conversation in the model's own chat format, ready for the assistant's next words.

        tools: what the model may call, functions as JSON descriptions and built-in tools by name. chat_format: one of
        the family's own formats by name, instead of the artifact's template (docs/prompts.md lists them).
        Control tokens spelt out inside a message stay plain text: nobody ends a turn from within what they say.
        """
        from .text.conversation_ids import encode_messages

        stored = self.manifest["tokenizer"] or {"info": {}}
        own = None if self.manifest["chat_template"] is not None else stored["info"].get("chat_format")
        name = chat_format or own
        template = None if name is not None else self.chat_template
        return encode_messages(self.tokenizer, messages, tools, template, name)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """Continue one prompt (text, or token ids). Raises LLC0809 when it is longer than the context."""
        return self.stream(prompt, **options).outcome

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> TextStream:
        """As `generate`, but yielding the text piece by piece; never half a character."""
        return TextStream(run_together(self.session, [self._continuation(prompt, options)]))

    def generate_batch(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Generation]:
        """Continue several prompts together, in their order; each gives exactly what it would give alone."""
        continuations = [self._continuation(prompt, options) for prompt in prompts]
        outcomes = {step.request: step.outcome for step in run_together(self.session, continuations) if step.outcome}
        return [outcomes[index] for index in range(len(prompts))]

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        chat_format: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """The assistant's answer to `messages`, rows of {"role": ..., "content": ...}; its calls are `.tool_calls`."""
        return self.stream_chat(messages, tools=tools, chat_format=chat_format, **options).outcome

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        chat_format: str | None = None,
        sequence: CachedSequence | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """As `chat`, piece by piece. `sequence`, from `session.open()`, keeps the cache between turns."""
        prompt_ids = self.encode_chat(messages, tools=tools, chat_format=chat_format)
        continuation = self._continuation(prompt_ids, options, after_text=False)
        return TextStream(run_together(self.session, [continuation], sequence))

    def logits(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Float32s:
        """The logits after every id, [len(ids), vocab]: row i is the distribution of what follows ids[: i + 1]."""
        return self.session.all_logits(self.encode(ids))

    def _continuation(self, prompt: Prompt, options: GenerateOptions, after_text: bool = True) -> Continuation:
        prompt_ids = self.encode(prompt)
        self.session.check_prompt(prompt_ids)
        tokenizer = None if self.manifest["tokenizer"] is None else self.tokenizer
        settled = self._settle(options, after_text)
        return Continuation(prompt_ids, settled, tokenizer, self.context, self._echo(prompt, options))

    def _settle(self, options: GenerateOptions, after_text: bool) -> GenerationOptions:
        """The options with the artifact's defaults below them."""
        unknown = sorted(set(options) - GenerateOptions.__annotations__.keys())
        if unknown:
            raise TypeError(f"unknown generation option {unknown[0]!r}")
        given = {name: options.get(name) for name in _SAMPLING}
        defaults = {name: value for name, value in self.plan.defaults.items() if name in _SAMPLING}
        sampling = defaults | {name: value for name, value in given.items() if value is not None}
        stop = options.get("stop", ())
        own_stops = frozenset() if options.get("ignore_stop_ids", False) else self.plan.stop_ids
        return GenerationOptions(
            max_new_tokens=options.get("max_new_tokens", 256),
            sampling=SamplerOptions.from_mapping(sampling),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_ids=own_stops | frozenset(options.get("stop_ids", ())),
            logprobs=options.get("logprobs"),
            after_text=after_text,
        )

    def _echo(self, prompt: Prompt, options: GenerateOptions) -> str:
        if not options.get("echo", False):
            return ""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(self.encode(prompt))
