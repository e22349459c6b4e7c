"""Llama 3 and Llama 4: each message begins with a header that names its role and ends with a control token.

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>

    Who are you?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

As Meta's `ChatFormat` of llama3 and llama4 writes it: nothing is trimmed, and role, blank line, text and calls are each
encoded by themselves. It departs from them where the prompt documents show more: a call of a built-in tool keeps its
<|python_tag|> and ends with <|eom_id|>, strings inside calls are escaped, and several Python calls share one list.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from llamac.errors import LlamacError

from ..tools.call import ALWAYS_TAGGED, Kind
from ..tools.offered import NO_TOOLS, OfferedTools
from ..tools.write import call_texts
from .messages import ChatMessage, Image, Part, read_messages
from .pieces import Control, Piece
from .tool_prompts import json_prompt, llama4_prompt, python_prompt

ENVIRONMENT = "Environment: ipython"
BEGIN = Control("<|begin_of_text|>")
TILE_TOKENS = 144
"""Tokens of one tile of Llama 4: 336 / 14 squared patches, a quarter of them after the pixel shuffle."""


@dataclass(frozen=True)
class HeaderFormat:
    """One generation's variant.

    call_kind: how calls of functions are written in the history. tagged: kinds that come after a python tag;
    tagged_in_environment: those that do once the system message switches the interpreter on. function_prompt and
    functions_from: the words that offer functions, and whose message they are (None: it knows no functions).
    waits_after_call: calls and results of tools always end with the end-of-message token.
    """

    name: str
    header: tuple[Control, Control]
    end_of_turn: Control
    end_of_message: Control
    tag: tuple[Control, ...]
    call_kind: Kind
    image: Callable[[Image], Iterator[Piece]]
    tagged: Collection[Kind] = ALWAYS_TAGGED
    tagged_in_environment: Collection[Kind] = ALWAYS_TAGGED
    function_prompt: Callable[[Sequence[dict[str, Any]]], str] | None = None
    functions_from: Literal["system", "user"] = "system"
    waits_after_call: bool = False

    def pieces(
        self, messages: object, tools: OfferedTools = NO_TOOLS, *, add_generation_prompt: bool = True
    ) -> list[Piece]:
        """The prompt. LLC0914 for messages that are none, LLC0916 for tools that this generation does not know."""
        read = self._with_tools(self._read(messages, tools), tools)
        pieces: list[Piece] = [BEGIN]
        for message in read:
            pieces += self._message(message)
        return [*pieces, *self._header("assistant")] if add_generation_prompt else pieces

    def _read(self, messages: object, tools: OfferedTools) -> list[ChatMessage]:
        read = read_messages(messages, self.call_kind, self.tagged)
        system = any(message.role == "system" and ENVIRONMENT in message.text for message in read)
        if system or tools.builtin or tools.code:
            return read_messages(messages, self.call_kind, self.tagged_in_environment)
        return read

    def _header(self, role: str) -> list[Piece]:
        return [self.header[0], "ipython" if role == "tool" else role, self.header[1], "\n\n"]

    def _message(self, message: ChatMessage) -> Iterator[Piece]:
        yield from self._header(message.role)
        for part in message.parts:
            yield from self.image(part) if isinstance(part, Image) else [part]
        for tagged, calls in groupby(message.calls, key=lambda call: call.tagged):
            text = "; ".join(call_texts(list(calls)))
            yield from (*self.tag[:1], text, *self.tag[1:]) if tagged else [text]
        yield self.end_of_message if self._waits(message) else self.end_of_turn

    def _waits(self, message: ChatMessage) -> bool:
        """Whether the message ends with a pause for a tool rather than with its turn."""
        if message.ends_message is not None:
            return message.ends_message
        if self.waits_after_call:
            return bool(message.calls) or message.role == "tool"
        return any(call.tagged and call.kind != "python" for call in message.calls)

    def _with_tools(self, messages: list[ChatMessage], tools: OfferedTools) -> list[ChatMessage]:
        if not tools:
            return messages
        if self.function_prompt is None:
            hint = "offer tools to a model of a later generation"
            raise LlamacError("LLC0916", "tools", f"the chat format '{self.name}' has no tools", hint)
        prompt = self.function_prompt(tools.functions) if tools.functions else ""
        if prompt and self.functions_from == "user":
            place = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
            messages = [*messages[:place], ChatMessage("user", (prompt,)), *messages[place:]]
            prompt = ""
        return self._with_system(messages, _environment(tools), prompt)

    def _with_system(self, messages: list[ChatMessage], environment: str, prompt: str) -> list[ChatMessage]:
        """The first system message, or a new one, with what the tools need in front of its own text."""
        has_own = bool(messages) and messages[0].role == "system"
        parts: tuple[Part, ...] = messages[0].parts if has_own else ()
        if environment and ENVIRONMENT not in "".join(part for part in parts if isinstance(part, str)):
            spaced = environment if environment.endswith("\n") and not prompt else f"{environment.rstrip()}\n\n"
            front = spaced if parts or prompt else environment
            parts = (front + prompt + ("\n\n" if prompt and parts else ""), *parts)
        elif prompt:
            parts = (prompt + ("\n\n" if parts else ""), *parts)
        if not parts:
            return messages
        joined = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
        system = ChatMessage("system", parts if joined is None else (joined,))
        return [system, *messages[has_own:]]


def _environment(tools: OfferedTools) -> str:
    if tools.builtin:
        return f"{ENVIRONMENT}\nTools: {', '.join(tools.builtin)}\n"
    return ENVIRONMENT if tools.code else ""


def _llama3_image(image: Image) -> Iterator[Piece]:
    """One token whatever the size: the image comes in through cross-attention."""
    yield Control("<|image|>")


def _llama4_image(image: Image) -> Iterator[Piece]:
    """The patches of every tile, row by row, then those of the whole image scaled to one tile."""
    if image.rows == 0:
        yield Control("<|image|>")
        return
    patches = [Control("<|patch|>")] * TILE_TOKENS
    yield Control("<|image_start|>")
    if (image.rows, image.columns) != (1, 1):
        for _ in range(image.rows):
            for column in range(image.columns):
                yield from patches
                if column + 1 < image.columns:
                    yield Control("<|tile_x_separator|>")
            yield Control("<|tile_y_separator|>")
    yield Control("<|image|>")
    yield from patches
    yield Control("<|image_end|>")


def _llama3(name: str, **variant: Any) -> HeaderFormat:
    return HeaderFormat(
        name=name,
        header=(Control("<|start_header_id|>"), Control("<|end_header_id|>")),
        end_of_turn=Control("<|eot_id|>"),
        end_of_message=Control("<|eom_id|>"),
        tag=(Control("<|python_tag|>"),),
        image=_llama3_image,
        **variant,
    )


LLAMA3 = _llama3("llama3", call_kind="json")
LLAMA3_1 = _llama3(
    "llama3.1",
    call_kind="json",
    tagged_in_environment=(*ALWAYS_TAGGED, "json"),
    function_prompt=json_prompt,
    functions_from="user",
)
LLAMA3_2 = _llama3(
    "llama3.2",
    call_kind="python",
    tagged=(*ALWAYS_TAGGED, "python"),
    tagged_in_environment=(*ALWAYS_TAGGED, "python"),
    function_prompt=python_prompt,
)
LLAMA4 = HeaderFormat(
    name="llama4",
    header=(Control("<|header_start|>"), Control("<|header_end|>")),
    end_of_turn=Control("<|eot|>"),
    end_of_message=Control("<|eom|>"),
    tag=(Control("<|python_start|>"), Control("<|python_end|>")),
    call_kind="python",
    image=_llama4_image,
    function_prompt=llama4_prompt,
    waits_after_call=True,
)
