"""The public face of a loaded artifact: prompts in, text out.

with llamac.load("model.llamac") as model:
    print(model.generate("The capital of France is", max_new_tokens=20).text)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
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
from .images.loaded import LoadedPicture, PictureSource
from .images.model_images import ModelImages, load_all, model_images
from .images.placed import PicturePrompt
from .images.prompting import encode_with_places, hold_pictures, take_pictures, with_places
from .kv import CachedSequence
from .profile import Profile
from .run_plan import CodeTarget, RunPlan
from .sampler import SamplerOptions
from .scheduler import Progress, run_together
from .session import Session
from .speculation.choice import Speculators
from .speculation.draft import DraftModel, check_same_vocabulary
from .text.tokenizer import TokenizerBase, load_tokenizer
from .text.tokenizer_files import StoredFiles

if TYPE_CHECKING:
    from .device_gpu import GpuDevice
    from .one_sequence import OneSequenceDevice
    from .text.chat import ChatTemplate
    from .text.tools.offered import Tool
    from .text.tools.parser import Event

Prompt = str | Sequence[int] | npt.NDArray[np.integer[Any]]
Message = Mapping[str, Any]


class GenerateOptions(TypedDict, total=False):
    """What every generating call takes. Sampling values that are not given are the artifact's own defaults.

    max_new_tokens: 256 unless given; None runs until the context is full. temperature: 0 is greedy.
    seed: the same seed gives the same ids. stop: end before any of these texts. stop_ids: end at these ids too.
    ignore_stop_ids: run on past the artifact's stop ids (for timing). logprobs: report log-probabilities of the
    drawn token and of this many most likely ones. echo: put the prompt's text before the new text.
    speculate: "lookup" guesses the next tokens from the text itself, "draft" by the model's draft (what it does unless
    told otherwise where it has one), "off" not. draft_tokens: the most guesses a step. lookup_ngram: the most tokens
    that a lookup compares. Guessing changes how fast tokens come, not which (docs/speculation.md).
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: Sequence[str] | str | None
    stop_ids: Sequence[int] | None
    ignore_stop_ids: bool
    logprobs: int | None
    echo: bool
    speculate: str | None
    draft_tokens: int | None
    lookup_ngram: int | None


_SAMPLING = tuple(row.name for row in fields(SamplerOptions))


class TextStream(Iterator[str]):
    """Pieces of text as they become certain; after the last one `outcome` holds the whole `Generation`."""

    def __init__(self, progress: Iterator[Progress], continuation: Continuation) -> None:
        self._progress = progress
        self._continuation = continuation
        self._outcome: Generation | None = None
        self._echo = continuation.echo

    def __next__(self) -> str:
        if self._echo:
            echo, self._echo = self._echo, ""
            return echo
        for step in self._progress:
            if step.outcome is not None:
                self._outcome = step.outcome
            if step.text:
                return step.text
        raise StopIteration

    def events(self) -> Iterator[Event]:
        """Instead of pieces: text that is no tool call, complete calls, and the end (`text.tools.parser`)."""
        from .text.tools.parser import ToolCallParser

        parser, seen = ToolCallParser(), 0
        for step in self._progress:
            if step.outcome is not None:
                self._outcome = step.outcome
            pieces = self._continuation.tagged_pieces
            yield from parser.feed("".join(pieces[seen:]))
            seen = len(pieces)
        yield from parser.finish(cut_off=self._continuation.stop_reason in ("length", "context"))

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
    Calls from several threads are safe: steps take turns, and `load(..., sequences=N)` gives the cache room for N. In a
    process that was forked later it cannot be used (LLC0819).
    """

    def __init__(
        self,
        artifact: Artifact,
        plan: RunPlan,
        target: CodeTarget,
        device: CpuDevice | GpuDevice | OneSequenceDevice,
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
        self.session = Session(device, context, plan.token_ids)
        self._artifact = artifact
        self._device = device
        self._draft: Model | None = None
        self._speculators = Speculators()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the code's threads, free its memory and close the file; its draft's too."""
        if self._draft is not None:
            self._draft.close()
        self._device.close()
        self._artifact.close()

    def attach_draft(self, draft: Model) -> None:
        """Let a smaller model guess tokens for this one from now on; it is closed with this one.

        LLC0840 (and the draft is closed) unless both have the same vocabulary.
        """
        try:
            check_same_vocabulary(self.manifest, draft.manifest)
        except LlamacError:
            draft.close()
            raise
        self._draft, self._speculators = draft, Speculators(draft.session)

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

        try:
            source = self._artifact.member_bytes(member).decode("utf-8")
        except UnicodeDecodeError:
            raise LlamacError("LLC0910", "chat template", "it is not UTF-8 text", "compile the model again") from None
        return ChatTemplate(source)

    def expert_counts(self) -> dict[int, list[int]]:
        """Layer number -> how many tokens each of its experts has got since loading; empty without mixtures."""
        counts = self._device.expert_counts()
        layers = [layer for cache in self.plan.memory.caches for layer in cache.layers]
        return {
            n: row.tolist()
            for n, row in sorted(zip(layers, counts, strict=False), key=lambda pair: pair[0])
            if row.any()
        }

    def profile(self) -> AbstractContextManager[Profile]:
        """`with model.profile() as profile:` — where the time of the steps inside goes; read it after the block."""
        return self._device.profiled()

    @cached_property
    def images(self) -> ModelImages:
        """What the model does with pictures; LLC0838 when it takes none, or its artifact holds no image encoder."""
        special = {} if self.manifest["tokenizer"] is None else self.tokenizer.special_ids
        found = model_images(self.manifest, special)
        if self.plan.image is None:
            raise LlamacError("LLC0838", self.name, "the artifact holds no image encoder", "compile the model again")
        return found

    def load_picture(self, source: PictureSource) -> LoadedPicture:
        """A picture (a path, the bytes of a file, a Pillow image) cut for this model; LLC0838 when it takes none."""
        return load_all([source], self.images.settings)[0]

    def encode_with_images(self, prompt: Prompt, images: Sequence[PictureSource]) -> PicturePrompt:
        """Ids of a prompt with pictures, each a path, the bytes of a file or a Pillow image.

        `<|image|>` in a text, or its id, is the place of the next picture; without any they stand in front of the text.
        LLC0834 unless places and pictures are equally many.
        """
        if not images:
            return PicturePrompt(self.encode(prompt))
        side = self.images
        pictures = load_all(images, side.settings)
        if isinstance(prompt, str):
            ids = encode_with_places(prompt, self.tokenizer, side.placeholder)
        else:
            ids = self.encode(prompt)
        return side.place(with_places(ids, side, len(pictures), self.plan.bos_id), pictures)

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
        Pictures are parts of a message: {"type": "image", "path": ...}, or "image" with bytes or a Pillow image.
        """
        return self._encode_conversation(messages, tools, chat_format).ids

    def _encode_conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None, chat_format: str | None
    ) -> PicturePrompt:
        if not hold_pictures(messages):
            return PicturePrompt(self._encode_messages(messages, tools, chat_format))
        taken, pictures = take_pictures(messages, self.images)
        return self.images.place(self._encode_messages(taken, tools, chat_format), pictures)

    def _encode_messages(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None, chat_format: str | None
    ) -> list[int]:
        from .text.conversation_ids import encode_messages

        stored = self.manifest["tokenizer"] or {"info": {}}
        own = None if self.manifest["chat_template"] is not None else stored["info"].get("chat_format")
        name = chat_format or own
        template = None if name is not None else self.chat_template
        return encode_messages(self.tokenizer, messages, tools, template, name)

    def generate(
        self, prompt: Prompt, *, images: Sequence[PictureSource] = (), **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continue one prompt (text, or token ids). Raises LLC0809 when it is longer than the context.

        images: the pictures of the prompt (see `encode_with_images`).
        """
        return self.stream(prompt, images=images, **options).outcome

    def stream(
        self, prompt: Prompt, *, images: Sequence[PictureSource] = (), **options: Unpack[GenerateOptions]
    ) -> TextStream:
        """As `generate`, but yielding the text piece by piece; never half a character."""
        continuation = self._continuation(prompt, options, self.encode_with_images(prompt, images))
        return TextStream(run_together(self.session, [continuation]), continuation)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        images: Sequence[Sequence[PictureSource]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]:
        """Continue several prompts together, in their order; each gives exactly what it would give alone.

        images: the pictures of each prompt.
        """
        shown = images if images is not None else [()] * len(prompts)
        continuations = [
            self._continuation(prompt, options, self.encode_with_images(prompt, pictures))
            for prompt, pictures in zip(prompts, shown, strict=True)
        ]
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
        prompt = self._encode_conversation(messages, tools, chat_format)
        continuation = self._continuation(prompt.ids, options, prompt, after_text=False)
        return TextStream(run_together(self.session, [continuation], sequence), continuation)

    def logits(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Float32s:
        """The logits after every id, [len(ids), vocab]: row i is the distribution of what follows ids[: i + 1]."""
        return self.session.all_logits(self.encode(ids))

    def _continuation(
        self, prompt: Prompt, options: GenerateOptions, encoded: PicturePrompt, after_text: bool = True
    ) -> Continuation:
        self.session.check_prompt(encoded.ids)
        tokenizer = None if self.manifest["tokenizer"] is None else self.tokenizer
        settled = self._settle(options, after_text)
        echo = self._echo(prompt, options)
        ways = (options.get("speculate"), options.get("draft_tokens"), options.get("lookup_ngram"))
        speculator = self._speculators.choose(*ways)
        if encoded.images and isinstance(speculator, DraftModel):
            speculator = None  # a draft knows nothing of the pictures
        return Continuation(encoded.ids, settled, tokenizer, self.context, echo, encoded.images, speculator)

    def _settle(self, options: GenerateOptions, after_text: bool) -> GenerationOptions:
        """The options with the artifact's defaults below them."""
        unknown = sorted(set(options) - GenerateOptions.__annotations__.keys())
        if unknown:
            raise TypeError(f"unknown generation option {unknown[0]!r}")
        given = {name: options.get(name) for name in _SAMPLING}
        defaults = {name: value for name, value in self.plan.defaults.items() if name in _SAMPLING}
        sampling = defaults | {name: value for name, value in given.items() if value is not None}
        stop, stop_ids = options.get("stop"), options.get("stop_ids")
        own_stops = frozenset() if options.get("ignore_stop_ids", False) else self.plan.stop_ids
        return GenerationOptions(
            max_new_tokens=options.get("max_new_tokens", 256),
            sampling=SamplerOptions.from_mapping(sampling),
            stop=(stop,) if isinstance(stop, str) else tuple(() if stop is None else stop),
            stop_ids=own_stops | frozenset(() if stop_ids is None else stop_ids),
            logprobs=options.get("logprobs"),
            after_text=after_text,
        )

    def _echo(self, prompt: Prompt, options: GenerateOptions) -> str:
        if not options.get("echo", False):
            return ""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(self.encode(prompt))
