"""The messages of a conversation, checked and in one form for all formats."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamac.errors import LlamacError

from ..tools.call import ALWAYS_TAGGED, Kind, ToolCall, read_calls

Role = Literal["system", "user", "assistant", "tool"]
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "ipython": "tool",
}


@dataclass(frozen=True)
class Image:
    """An image among the parts of a message, cut into rows x columns tiles (1 x 1: it is small).

    0 x 0: only its place, one token; whoever knows the picture spells it out later.
    """

    rows: int = 1
    columns: int = 1


Part = str | Image


@dataclass(frozen=True)
class ChatMessage:
    """One message. `ends_message` says how an assistant's message ended: True waiting for a tool, None unknown."""

    role: Role
    parts: tuple[Part, ...]
    calls: tuple[ToolCall, ...] = ()
    ends_message: bool | None = None

    @property
    def text(self) -> str:
        """The text alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[Image]:
        """The images alone."""
        return [part for part in self.parts if isinstance(part, Image)]


def read_messages(
    messages: object, default: Kind = "json", tagged: Collection[Kind] = ALWAYS_TAGGED
) -> list[ChatMessage]:
    """Check and convert rows of role, content, and maybe tool_calls and stop_reason; LLC0914 for what is none.

    content: text, or parts {"type": "text", "text": ...} and {"type": "image", "tiles": [rows, columns]}
    (null: only its place).
    stop_reason: "end_of_turn" or "end_of_message". `default` and `tagged` as for `read_calls`.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise malformed("messages", "not a list of messages")
    return [_read_message(row, f"messages[{place}]", default, tagged) for place, row in enumerate(messages)]


def _read_message(row: Any, where: str, default: Kind, tagged: Collection[Kind]) -> ChatMessage:
    if not isinstance(row, Mapping):
        raise malformed(where, "not an object with role and content")
    named = row.get("role")
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise malformed(where, f"its role is {named!r}, not one of {', '.join(ROLES)}")
    calls = read_calls(row.get("tool_calls"), f"{where}.tool_calls", default, tagged)
    if calls and role != "assistant":
        raise malformed(where, "only an assistant's message holds tool_calls")
    reason = row.get("stop_reason")
    if reason not in (None, "end_of_turn", "end_of_message"):
        raise malformed(where, f"its stop_reason is {reason!r}, not end_of_turn or end_of_message")
    ends_message = None if reason is None else reason == "end_of_message"
    return ChatMessage(role, _read_content(row.get("content"), where), tuple(calls), ends_message)


def _read_content(content: Any, where: str) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (str(content),)
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise malformed(where, "its content is neither text nor a list of parts")
    return tuple(_read_part(part, f"{where}.content[{place}]") for place, part in enumerate(content))


def _read_part(part: Any, where: str) -> Part:
    if isinstance(part, str):
        return str(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image":
        rows, columns = _read_tiles(part.get("tiles", (1, 1)), where)
        return Image(rows, columns)
    raise malformed(where, "it is neither a text nor an image part")


def _read_tiles(tiles: Any, where: str) -> tuple[int, int]:
    if tiles is None:
        return 0, 0
    if isinstance(tiles, Sequence) and len(tiles) == 2 and all(type(n) is int and 0 < n <= 64 for n in tiles):
        return tiles[0], tiles[1]
    raise malformed(where, "its tiles are not [rows, columns]")


def malformed(where: str, reason: str) -> LlamacError:
    """LLC0914: the conversation is no conversation, and why."""
    hint = 'give messages like [{"role": "user", "content": "Hello"}]'
    return LlamacError("LLC0914", where, reason, hint)
