"""Calls as the text that a model would have written: what the history of a conversation shows of earlier turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llamac.errors import LlamacError

from .call import ToolCall


def call_texts(calls: Sequence[ToolCall]) -> list[str]:
    """The text of calls, one after the other; neighbouring ones of kind "python" share one list."""
    texts: list[str] = []
    listed: list[str] = []
    for call in calls:
        if call.kind == "python":
            listed.append(_python(call))
            continue
        if listed:
            texts.append(f"[{', '.join(listed)}]")
            listed = []
        texts.append(call_text(call))
    return [*texts, f"[{', '.join(listed)}]"] if listed else texts


def call_text(call: ToolCall) -> str:
    """One call as `parse` reads it. Text inside it is escaped, which Meta's own encoder leaves out."""
    match call.kind:
        case "builtin":
            return f"{call.name}.call(query={_quoted(_text(call, 'query'))})"
        case "code":
            return _text(call, "code")
        case "tag":
            return f"<function={call.name}>{call.arguments_json}</function>"
        case "python":
            return f"[{_python(call)}]"
    row = {"type": "function", "name": call.name, "parameters": call.arguments}
    return json.dumps(row, ensure_ascii=False)


def _python(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{name}={_literal(value)}' for name, value in call.arguments.items())})"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)


def _quoted(text: str) -> str:
    """A string that Python and JSON read alike."""
    return json.dumps(text, ensure_ascii=False)


def _text(call: ToolCall, name: str) -> str:
    value = call.arguments.get(name)
    if not isinstance(value, str):
        hint = f'give its arguments as {{"{name}": "..."}}'
        raise LlamacError(
            "LLC0914", f"call of {call.name}", f"a call of kind {call.kind!r} needs a text {name!r}", hint
        )
    return value
