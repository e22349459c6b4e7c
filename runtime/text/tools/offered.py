"""Tools that a caller offers to the model: built-in ones by name, functions by their JSON description."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamac.errors import LlamacError

from .call import BUILTIN_TOOLS, CODE_INTERPRETER

Tool = Mapping[str, Any] | str


@dataclass(frozen=True)
class OfferedTools:
    """`builtin`: names for the line "Tools:"; `code`: the code interpreter is on; `functions`: bare descriptions."""

    builtin: tuple[str, ...] = ()
    code: bool = False
    functions: tuple[dict[str, Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.builtin or self.code or self.functions)

    def for_template(self) -> list[dict[str, Any]] | None:
        """The functions as chat templates expect them."""
        return [{"type": "function", "function": function} for function in self.functions] or None


NO_TOOLS = OfferedTools()


def read_tools(tools: Sequence[Tool] | None) -> OfferedTools:
    """Check tools: names of built-in ones, and functions bare or as {"type": "function", "function": {...}}.

    Raises LLC0916 for what is neither.
    """
    if tools is None:
        return NO_TOOLS
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise _malformed("tools", "not a list")
    builtin, functions, code = [], [], False
    for place, tool in enumerate(tools):
        if tool == CODE_INTERPRETER:
            code = True
        elif isinstance(tool, str):
            if tool not in BUILTIN_TOOLS:
                known = ", ".join((*BUILTIN_TOOLS, CODE_INTERPRETER))
                raise _malformed(f"tools[{place}]", f"there is no built-in tool {tool!r}; known are {known}")
            builtin.append(tool)
        else:
            functions.append(_function(tool, f"tools[{place}]"))
    return OfferedTools(tuple(builtin), code, tuple(functions))


def _function(tool: Any, where: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise _malformed(where, "a function needs a name")
    try:
        return dict(json.loads(json.dumps(function)))
    except (TypeError, ValueError, RecursionError) as problem:
        raise _malformed(where, f"it is no JSON ({problem})") from problem


def _malformed(where: str, reason: str) -> LlamacError:
    hint = 'give tools like [{"name": "get_weather", "description": "...", "parameters": {...}}, "brave_search"]'
    return LlamacError("LLC0916", where, reason, hint)
