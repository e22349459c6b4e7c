"""Messages in the form that chat templates read; those of clients of OpenAI's API often need a little work first.

A template puts content and arguments into its text as they are. Of a list of parts it would write Python's notation,
of arguments that are JSON text already a text in quotes, of null the word None: wrong prompts that nobody hears of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .formats.messages import malformed
from .tools.call import ToolCall

Message = Mapping[str, Any]

READS_PARTS = re.compile(r"""\bfor\s+\w+\s+in\s+(?:\w+\.content\b|\w+\[['"]content['"]\]|content\b)""")
"""A template that goes through the parts of a message itself."""


def for_template(messages: Sequence[Message], source: str) -> list[Any]:
    """Messages for the template with this source.

    Text in parts becomes one text where the template does not read parts; arguments of calls become objects; what is
    null or an empty list of calls is left out. LLC0914 for parts and arguments that are none.
    """
    reads_parts = READS_PARTS.search(source) is not None
    return [_adapted(message, f"messages[{place}]", reads_parts) for place, message in enumerate(messages)]


def _adapted(message: Any, where: str, reads_parts: bool) -> Any:
    if not isinstance(message, Mapping):
        return message  # whoever checks conversations says what is wrong with it
    adapted = dict(message)
    calls, content = adapted.pop("tool_calls", None), adapted.get("content")
    if isinstance(calls, (list, tuple)):
        calls = [_call(call, f"{where}.tool_calls[{place}]") for place, call in enumerate(calls)]
    if calls:
        adapted["tool_calls"] = calls
    if isinstance(content, (list, tuple)):
        adapted["content"] = _content([_part(p, f"{where}.content[{n}]") for n, p in enumerate(content)], reads_parts)
    elif content is None and not calls:
        adapted["content"] = ""
    return adapted


def _part(part: Any, where: str) -> Mapping[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image" or (kind == "text" and isinstance(part.get("text"), str)):
        return dict(part)
    raise malformed(where, "it is neither a text nor an image part")


def _content(parts: list[Mapping[str, Any]], reads_parts: bool) -> Any:
    if reads_parts or any(part["type"] != "text" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _call(call: Any, where: str) -> Any:
    if isinstance(call, ToolCall):
        return call.to_message()
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    changed = {**function, "arguments": _object(function["arguments"], where)}
    return {**call, "function": changed} if "function" in call else changed


def _object(arguments: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError) as problem:
        raise malformed(where, f"its arguments are not JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise malformed(where, "its arguments are no object")
    return value
