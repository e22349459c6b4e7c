"""Llama 2: instructions between [INST] and [/INST], the system message inside the first of them.

    <s>[INST] <<SYS>>
    You are helpful.
    <</SYS>>

    Who are you? [/INST] A model. </s><s>[INST] Really? [/INST]

As in Meta's llama repository (generation.py, chat_completion): every turn of question and answer is its own sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError

from ..tools.offered import NO_TOOLS, OfferedTools
from .messages import ChatMessage, malformed, read_messages
from .pieces import Control, Piece

BEGIN, END = Control("<s>"), Control("</s>")
SYSTEM = "<<SYS>>\n{}\n<</SYS>>\n\n{}"
MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
"""Ordinary text to the tokenizer, so nothing but these words separates who speaks: they are refused in messages."""


@dataclass(frozen=True)
class Llama2Format:
    """Roles must be: maybe system, then user and assistant in turn, a user last; texts are trimmed."""

    name: str = "llama2"

    def pieces(
        self, messages: object, tools: OfferedTools = NO_TOOLS, *, add_generation_prompt: bool = True
    ) -> list[Piece]:
        """The prompt; LLC0914 for other roles or texts that hold the format's own marks, LLC0916 for tools."""
        if tools:
            raise LlamacError("LLC0916", "tools", "the chat format 'llama2' has no tools", "use a later generation")
        texts = _turns(read_messages(messages))
        pieces: list[Piece] = []
        for question, answer in zip(texts[::2], texts[1::2], strict=False):
            pieces += [BEGIN, f"[INST] {question} [/INST] {answer} ", END]
        return [*pieces, BEGIN, f"[INST] {texts[-1]} [/INST]"] if len(texts) % 2 else pieces


def _turns(messages: list[ChatMessage]) -> list[str]:
    """The texts of users and assistants in turn, the system's in the first."""
    texts = []
    system = messages[0].text if messages[0].role == "system" else None
    turns = messages if system is None else messages[1:]
    if not turns or len(turns) % 2 == 0:
        raise malformed("messages", "the last message is not the user's")
    for place, message in enumerate(turns):
        if message.role != ("user", "assistant")[place % 2]:
            raise malformed("messages", "after the system's, messages are the user's and the assistant's in turn")
        texts.append(message.text)
    if any(message.images or message.calls for message in messages):
        raise malformed("messages", "Llama 2 knows neither images nor tool calls")
    if any(mark in text for mark in MARKS for text in [*texts, system or ""]):
        raise malformed(
            "messages", f"a text holds one of {' '.join(MARKS)}, which separate the messages of this format"
        )
    if system is not None:
        texts[0] = SYSTEM.format(system, texts[0])
    return [text.strip() for text in texts]
