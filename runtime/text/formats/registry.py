"""The formats by name, and a conversation as ids in one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llamac.errors import LlamacError, did_you_mean

from ..tokenizer import Tokenizer
from ..tools.offered import OfferedTools, Tool, read_tools
from .guard import GUARDS
from .headers import LLAMA3, LLAMA3_1, LLAMA3_2, LLAMA4
from .llama2 import Llama2Format
from .pieces import Piece, encode


class ChatFormat(Protocol):
    """What every format can do."""

    @property
    def name(self) -> str:
        """The name under which an artifact asks for it."""
        ...

    def pieces(self, messages: object, tools: OfferedTools = ..., *, add_generation_prompt: bool = True) -> list[Piece]:
        """The prompt for messages (see `formats.messages.read_messages`)."""
        ...


FORMATS: dict[str, ChatFormat] = {
    **{row.name: row for row in (Llama2Format(), LLAMA3, LLAMA3_1, LLAMA3_2)},
    "llama3.3": LLAMA3_2,
    **{row.name: row for row in (LLAMA4, *GUARDS)},
}
"""Llama 3.3 is offered functions as the text models of 3.2 are."""


def find_format(name: Any) -> ChatFormat:
    """The format of that name; LLC0915 for an unknown one."""
    if isinstance(name, str) and name in FORMATS:
        return FORMATS[name]
    known = ", ".join(FORMATS)
    raise LlamacError(
        "LLC0915",
        "chat format",
        f"there is no chat format {name!r}{did_you_mean(str(name), FORMATS)}",
        f"known are {known}; a newer llamac may know more",
    )


def encode_conversation(
    chat_format: ChatFormat, tokenizer: Tokenizer, messages: object, tools: Sequence[Tool] | None = None
) -> list[int]:
    """Ids of a prompt that ends where the assistant's next words begin."""
    return encode(tokenizer, chat_format.pieces(messages, read_tools(tools)), chat_format.name)
