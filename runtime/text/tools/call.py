"""One call of a tool, whichever way the model wrote it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamac.errors import LlamacError

Kind = Literal["builtin", "code", "json", "tag", "python"]
KINDS: tuple[Kind, ...] = ("builtin", "code", "json", "tag", "python")
ALWAYS_TAGGED: tuple[Kind, ...] = ("builtin", "code")
CODE_INTERPRETER = "code_interpreter"
BUILTIN_TOOLS = ("brave_search", "wolfram_alpha", "photogen")
"""Tools that Llama 3.1 calls as `name.call(query="...")`; code for the interpreter is written as it is."""


@dataclass(frozen=True)
class ToolCall:
    """`name` with `arguments`, plain JSON values by parameter name.

    kind: "builtin" (name.call(query="...")), "code" (code for the interpreter, in arguments["code"]), "json"
    ({"name": ..., "parameters": ...}), "tag" (<function=name>{...}</function>) or "python" ([name(a=1)]).
    tagged: it came, or is to be written, after <|python_tag|> or between <|python_start|> and <|python_end|>.
    """

    name: str
    arguments: dict[str, Any]
    kind: Kind = "json"
    tagged: bool = False

    @property
    def arguments_json(self) -> str:
        """The arguments as JSON text."""
        return json.dumps(self.arguments, ensure_ascii=False)

    def to_message(self) -> dict[str, Any]:
        """The form in which messages carry calls; templates read `function`, llamac's own formats all of it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"type": "function", "function": function, "kind": self.kind, "tagged": self.tagged}


def read_calls(value: Any, where: str, default: Kind, tagged: Collection[Kind] = ALWAYS_TAGGED) -> list[ToolCall]:
    """The `tool_calls` of a message: objects of `to_message` or of OpenAI's form, whose arguments may be JSON text.

    A call that does not say so is of the kind `default`, unless it is one of a built-in tool, and tagged if its kind is
    among `tagged`.
    """
    if value is None:
        return []
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise _malformed(where, "not a list of calls")
    return [_read_call(row, f"{where}[{place}]", default, tagged) for place, row in enumerate(value)]


def _read_call(row: Any, where: str, default: Kind, tagged: Collection[Kind]) -> ToolCall:
    if isinstance(row, ToolCall):
        return row
    function = row.get("function", row) if isinstance(row, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise _malformed(where, "it names no function")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as problem:
            raise _malformed(where, f"its arguments are not JSON ({problem})") from problem
    if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
        raise _malformed(where, "its arguments are no object")
    kind = row.get("kind") or _usual_kind(name, arguments, default)
    if kind not in KINDS:
        raise _malformed(where, f"unknown kind {kind!r}; known are {', '.join(KINDS)}")
    return ToolCall(name, dict(arguments), kind, bool(row.get("tagged", kind in tagged)))


def _usual_kind(name: str, arguments: Mapping[str, Any], default: Kind) -> Kind:
    if name == CODE_INTERPRETER and isinstance(arguments.get("code"), str):
        return "code"
    if name in BUILTIN_TOOLS and isinstance(arguments.get("query"), str):
        return "builtin"
    return default


def _malformed(where: str, reason: str) -> LlamacError:
    hint = 'give tool_calls like [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]'
    return LlamacError("LLC0914", where, reason, hint)
