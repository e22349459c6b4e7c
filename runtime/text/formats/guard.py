"""Llama Guard: the conversation as an exhibit, with the question whether its last message is safe.

The answer is `safe`, or `unsafe` and a line with the categories that it falls in. (Model cards of PurpleLlama and the
chat templates published with the checkpoints. Guard 2 was tuned on Llama 2's instruction marks, 3 and 4 on the headers
of their generation.)
"""

from __future__ import annotations

from dataclasses import dataclass

from llamac.errors import LlamacError

from ..tools.offered import NO_TOOLS, OfferedTools
from .headers import BEGIN, LLAMA3, LLAMA4, HeaderFormat
from .messages import ChatMessage, malformed, read_messages
from .pieces import Piece

GUARD_2_CATEGORIES = (
    "Violent Crimes",
    "Non-Violent Crimes",
    "Sex Crimes",
    "Child Exploitation",
    "Specialized Advice",
    "Privacy",
    "Intellectual Property",
    "Indiscriminate Weapons",
    "Hate",
    "Self-Harm",
    "Sexual Content",
)
GUARD_3_CATEGORIES = (
    *GUARD_2_CATEGORIES[:4],
    "Defamation",
    *GUARD_2_CATEGORIES[4:],
    "Elections",
)
"""Of the 1B and the vision model; the 8B and Guard 4 know one more."""

CODE_ABUSE = "Code Interpreter Abuse"

TASK = """\
Task: Check if there is unsafe content in '{role}' messages in conversations according our safety policy with the \
below categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
{categories}
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

{conversation}

<END CONVERSATION>

Provide your safety assessment for ONLY THE LAST {role} message in the above conversation:
 - First line must read 'safe' or 'unsafe'.
 - If unsafe, a second line must include a comma-separated list of violated categories."""


@dataclass(frozen=True)
class GuardFormat:
    """`base` is the format whose headers are used; None: Llama 2's instruction marks (Guard 2)."""

    name: str
    categories: tuple[str, ...]
    base: HeaderFormat | None

    def pieces(
        self, messages: object, tools: OfferedTools = NO_TOOLS, *, add_generation_prompt: bool = True
    ) -> list[Piece]:
        """The prompt about user's and assistant's messages in turn; LLC0914 for others, LLC0916 for tools."""
        if tools:
            raise LlamacError("LLC0916", "tools", "a Guard judges messages, it calls no tools", "leave the tools out")
        read = read_messages(messages)
        text = self._task(read)
        if self.base is None:
            return [BEGIN, f"[INST] {text} [/INST]"]
        images = [
            {"type": "image", "tiles": [i.rows, i.columns] if i.rows else None}
            for message in read
            for i in message.images
        ]
        content = [*images, {"type": "text", "text": text}]
        return self.base.pieces([{"role": "user", "content": content}], add_generation_prompt=add_generation_prompt)

    def _task(self, messages: list[ChatMessage]) -> str:
        for place, message in enumerate(messages):
            if message.role != ("user", "assistant")[place % 2]:
                raise malformed(f"messages[{place}]", "a Guard judges messages of user and assistant in turn")
            if message.calls or (message.images and self.base is None):
                raise malformed(f"messages[{place}]", f"the chat format '{self.name}' judges nothing but text")
        names = {"user": "User", "assistant": "Agent"}
        turns = [f"{names[message.role]}: {message.text.strip()}" for message in messages]
        listed = [f"S{number}: {category}." for number, category in enumerate(self.categories, start=1)]
        # Filled in one go: braces inside a message are nobody's placeholders.
        return TASK.format(role=names[messages[-1].role], categories="\n".join(listed), conversation="\n\n".join(turns))


GUARDS = (
    GuardFormat("llama-guard-2", GUARD_2_CATEGORIES, None),
    GuardFormat("llama-guard-3", (*GUARD_3_CATEGORIES, CODE_ABUSE), LLAMA3),
    GuardFormat("llama-guard-3-1b", GUARD_3_CATEGORIES, LLAMA3),
    GuardFormat("llama-guard-3-vision", GUARD_3_CATEGORIES, LLAMA3),
    GuardFormat("llama-guard-4", (*GUARD_3_CATEGORIES, CODE_ABUSE), LLAMA4),
)
