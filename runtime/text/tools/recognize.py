"""Decides whether a finished piece of text is a tool call, in any of the ways that the Llama family writes one."""

from __future__ import annotations

import json
import re
from typing import Any

from .call import BUILTIN_TOOLS, CODE_INTERPRETER, ToolCall
from .literals import NotACall, read_call, read_call_list, read_literal

CALL_KEYS = ("name", "type", "function", "parameters", "arguments", "id")
"""Keys with which the object of a JSON call begins."""
JSON_BEGIN = re.compile(r'\{\s*"(?:' + "|".join(CALL_KEYS) + r')"\s*:')
BUILTIN_BEGIN = tuple(f"{name}.call(" for name in (*BUILTIN_TOOLS, CODE_INTERPRETER))
LOOSE_QUERY = re.compile(r'(\w+)\.call\(\s*query\s*=\s*"(.*)"\s*\)', re.DOTALL)
FUNCTION_TAG = re.compile(r"<function=([\w.\-]{1,128})>\s*(\{.*\})\s*(?:</function>)?", re.DOTALL)
SEPARATOR = re.compile(r"\s*[;,]?\s*")
BLANK = " \t\r\n"


def calls_of_message(text: str, tagged: bool = False) -> list[ToolCall] | None:
    """The calls that make up the whole of `text`: a list of Python calls, JSON objects, or `name.call(query=...)`."""
    text = text.strip(BLANK)
    first = text[:1]
    try:
        if first == "{":
            return json_calls(text, tagged)
        if first == "[":
            return _json_list(text, tagged) if text[1:].lstrip(BLANK)[:1] == "{" else _python_calls(text, tagged)
        if text.startswith(BUILTIN_BEGIN):
            return [_builtin_call(text, tagged)]
        if tagged and (found := FUNCTION_TAG.fullmatch(text)):
            return [function_call(found.group(1), found.group(2), tagged)]
    except NotACall:
        pass
    return None


def calls_after_tag(text: str, cut_off: bool = False) -> list[ToolCall] | None:
    """The calls of what stood after a python tag: one of the forms above, else code.

    None for a broken JSON call, and for code that was cut off before its end.
    """
    found = calls_of_message(text, tagged=True)
    if found is not None or cut_off or JSON_BEGIN.match(text.strip(BLANK)):
        return found
    return [ToolCall(CODE_INTERPRETER, {"code": text}, "code", tagged=True)] if text.strip(BLANK) else []


def json_calls(text: str, tagged: bool) -> list[ToolCall]:
    """`{"name": ..., "parameters": ...}`, several of them maybe with ; or , between. Raises `NotACall`."""
    calls, place = [], 0
    while place < len(text):
        value, place = _decode(text, place)
        calls.append(_json_call(value, tagged))
        if place < len(text):
            place = SEPARATOR.match(text, place).end()  # type: ignore[union-attr]  # it matches anywhere
    return calls


def function_call(name: str, arguments: str, tagged: bool = False) -> ToolCall:
    """`<function=name>arguments</function>`: the arguments are JSON, or the same with Python's quotes and constants."""
    try:
        value = _whole(arguments)
    except NotACall:
        value = read_literal(arguments)
    if not isinstance(value, dict):
        raise NotACall("the arguments are no object")
    return ToolCall(name, value, "tag", tagged)


def _python_calls(text: str, tagged: bool) -> list[ToolCall]:
    return [ToolCall(name, arguments, "python", tagged) for name, arguments in read_call_list(text)]


def _json_list(text: str, tagged: bool) -> list[ToolCall]:
    value = _whole(text)
    return [_json_call(row, tagged) for row in (value if isinstance(value, list) else [value])]


def _builtin_call(text: str, tagged: bool) -> ToolCall:
    """`name.call(query="...")`; a query with quotes inside, which Meta's models do not escape, ends at the last one."""
    try:
        name, arguments = read_call(text)
        if list(arguments) != ["query"] or not isinstance(arguments["query"], str):
            raise NotACall("not a query")
    except NotACall:
        found = LOOSE_QUERY.fullmatch(text)
        if found is None:
            raise
        return ToolCall(found.group(1), {"query": found.group(2)}, "builtin", tagged)
    return ToolCall(name.removesuffix(".call"), arguments, "builtin", tagged)


def _json_call(value: Any, tagged: bool) -> ToolCall:
    """A function's name is required, and its arguments too unless `type` says that it is a call."""
    if not isinstance(value, dict):
        raise NotACall("no object")
    inner = value.get("function")
    row = inner if isinstance(inner, dict) else value
    name = row.get("name", inner)
    arguments = row.get("parameters", row.get("arguments"))
    if isinstance(arguments, str):
        arguments = _whole(arguments.strip(BLANK))
    if arguments is None and value.get("type") == "function":
        arguments = {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise NotACall("no name or no parameters")
    return ToolCall(name, arguments, "json", tagged)


def _refuse_constant(name: str) -> Any:
    raise NotACall(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number - number != 0:
        raise NotACall("a number that is not finite")
    return number


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant, parse_float=_finite)


def _whole(text: str) -> Any:
    value, end = _decode(text, 0)
    if end != len(text):
        raise NotACall("text after the value")
    return value


def _decode(text: str, place: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError) as problem:
        raise NotACall(str(problem)) from problem
