"""The part of Go's text/template that Ollama's templates use, to see what a TEMPLATE writes.

From the package's documentation: actions with trim marks; if, else if, else, range with two variables, end; variables
declared with := and set with =; fields of the dot, of $ and of variables; eq ne and or not len slice; text, booleans.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|:=|=|\(|\)|,|\$?[\w.]+|\$')


class Json(dict[str, Any]):
    """A map that prints itself as JSON, as Ollama's tools and arguments do."""

    def __str__(self) -> str:
        return json.dumps(self)


def render(template: str, values: Mapping[str, Any]) -> str:
    """What the template writes for these values."""
    parts = _split(template)
    nodes, rest = _parse(parts, ())
    assert not rest
    out: list[str] = []
    _run(nodes, values, {"$": values}, out)
    return "".join(out)


def _split(template: str) -> list[tuple[str, str]]:
    """Text and actions in turn; a trim mark takes the white space beside it away."""
    parts: list[tuple[str, str]] = []
    place, trims = 0, False
    for found in re.finditer(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", template, re.S):
        text = template[place : found.start()]
        text = text.lstrip() if trims else text
        parts += [("text", text.rstrip() if found[1] else text), ("action", found[2])]
        place, trims = found.end(), bool(found[3])
    rest = template[place:]
    return [*parts, ("text", rest.lstrip() if trims else rest)]


def _parse(parts: list[tuple[str, str]], ends: tuple[str, ...]) -> tuple[list[Any], list[tuple[str, str]]]:
    nodes: list[Any] = []
    while parts:
        (kind, content), parts = parts[0], parts[1:]
        word = content.split(" ")[0] if kind == "action" else ""
        if word in ends:
            return nodes, [(kind, content), *parts]
        if word in ("if", "range"):
            node, parts = _block(content, parts)
            nodes.append(node)
        else:
            nodes.append((kind, content))
    assert not ends, "an end is missing"
    return nodes, []


def _block(content: str, parts: list[tuple[str, str]]) -> tuple[Any, list[tuple[str, str]]]:
    word, _, condition = content.partition(" ")
    body, parts = _parse(parts, ("else", "end"))
    end, parts = parts[0][1], parts[1:]
    otherwise: list[Any] = []
    if end.startswith("else if"):
        node, parts = _block(end.removeprefix("else "), parts)
        return (word, condition, body, [node]), parts
    if end == "else":
        otherwise, parts = _parse(parts, ("end",))
        parts = parts[1:]
    return (word, condition, body, otherwise), parts


def _run(nodes: list[Any], dot: Any, variables: dict[str, Any], out: list[str]) -> None:
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "if":
            chosen = node[2] if _value(node[1], dot, variables) else node[3]
            _run(chosen, dot, variables, out)
        elif node[0] == "range":
            _range(node, dot, variables, out)
        elif match := re.fullmatch(r"(\$\w+) :?= (.*)", node[1]):
            variables[match[1]] = _value(match[2], dot, variables)
        else:
            found = _value(node[1], dot, variables)
            assert found is not None and not isinstance(found, bool), node
            out.append(str(found))


def _range(node: Any, dot: Any, variables: dict[str, Any], out: list[str]) -> None:
    names = re.match(r"(\$\w+), (\$\w+) := ", node[1])
    items = _value(node[1][names.end() :] if names else node[1], dot, variables)
    for index, item in enumerate(items or []):
        if names:
            variables[names[1]], variables[names[2]] = index, item
        _run(node[2], item, variables, out)


def _value(text: str, dot: Any, variables: dict[str, Any]) -> Any:
    tokens = TOKEN.findall(text)
    value, rest = _call(tokens, dot, variables)
    assert not rest, (text, rest)
    return value


def _call(tokens: list[str], dot: Any, variables: dict[str, Any]) -> tuple[Any, list[str]]:
    operands: list[Any] = []
    name = tokens[0] if tokens[0] in FUNCTIONS else None
    rest = tokens[1:] if name else tokens
    while rest and rest[0] != ")":
        if rest[0] == "(":
            value, rest = _call(rest[1:], dot, variables)
            assert rest[0] == ")"
            rest = rest[1:]
        else:
            value, rest = _operand(rest[0], dot, variables), rest[1:]
        operands.append(value)
    if name is None:
        assert len(operands) == 1, tokens
        return operands[0], rest
    return FUNCTIONS[name](*operands), rest


def _operand(token: str, dot: Any, variables: dict[str, Any]) -> Any:
    if token.startswith('"'):
        return json.loads(token)
    if token.isdecimal():
        return int(token)
    if token in ("true", "false"):
        return token == "true"
    head, *fields = token.split(".")
    found = dot if head == "" else variables[head]
    for field in filter(None, fields):
        found = found.get(field)
    return found


def _first_truth(wanted: bool) -> Any:
    return lambda *values: next((value for value in values if bool(value) == wanted), values[-1])


FUNCTIONS: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": _first_truth(False),
    "or": _first_truth(True),
    "not": lambda a: not a,
    "len": len,
    "slice": lambda items, start: items[start:],
}
