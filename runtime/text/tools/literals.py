"""Reads `[get_weather(city="Oslo", days=3), now()]`: keyword-only calls whose values are Python or JSON literals.

A reader of its own rather than Python's: nothing is evaluated, nesting is bounded, true/false/null are known, and text
of any length takes time in proportion. What it does not read is no call (`NotACall`).
"""

from __future__ import annotations

import math
import re
from typing import Any

DEEPEST = 32
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
KEYWORD = re.compile(r"[A-Za-z_]\w*")
BLANK = re.compile(r"\s*")
INTEGER = re.compile(r"[+-]?(?:0+|[1-9]\d*(?:_\d+)*)(?![\w.])")
FLOAT = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?(?![\w.])")
CONSTANTS: dict[str, bool | None] = {
    "True": True,
    "False": False,
    "None": None,
    "true": True,
    "false": False,
    "null": None,
}
STRING = re.compile(
    r'"""((?:[^"\\]|\\.|"(?!""))*)"""'
    r"|'''((?:[^'\\]|\\.|'(?!''))*)'''"
    r'|"((?:[^"\\]|\\.)*)"'
    r"|'((?:[^'\\]|\\.)*)'",
    re.DOTALL,
)
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\n": ""}
KEPT = {"\\": "\\", "'": "'", '"': '"'}

Call = tuple[str, dict[str, Any]]


class NotACall(ValueError):
    """The text is not of the form asked for."""


def read_call_list(text: str) -> list[Call]:
    """The calls of `[f(a=1), g()]`, at least one; `NotACall` for anything else, positional arguments included."""
    reader = _Reader(text)
    calls = reader.sequence("[", "]", reader.call)
    reader.end()
    if not calls:
        raise NotACall("an empty list")
    return calls


def read_call(text: str) -> Call:
    """One call, `f(a=1)`."""
    reader = _Reader(text)
    found = reader.call()
    reader.end()
    return found


def read_literal(text: str) -> Any:
    """One Python or JSON literal."""
    reader = _Reader(text)
    found = reader.value()
    reader.end()
    return found


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._depth = 0

    def call(self) -> Call:
        name = self._match(NAME)
        arguments: dict[str, Any] = {}
        for keyword, value in self.sequence("(", ")", self._argument):
            if keyword in arguments:
                raise NotACall(f"{keyword} is given twice")
            arguments[keyword] = value
        return name, arguments

    def _argument(self) -> tuple[str, Any]:
        keyword = self._match(KEYWORD)
        self._take("=")
        return keyword, self.value()

    def sequence(self, opening: str, closing: str, item: Any) -> list[Any]:
        """Items between brackets, separated by commas; a comma may follow the last."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise NotACall(f"nested more than {DEEPEST} deep")
        self._take(opening)
        items = []
        while not self._skip(closing):
            items.append(item())
            if not self._skip(","):
                self._take(closing)
                break
        self._depth -= 1
        return items

    def value(self) -> Any:
        self._blank()
        first = self._text[self._place : self._place + 1]
        if first in ("'", '"'):
            return self._strings()
        if first == "[":
            return self.sequence("[", "]", self.value)
        if first == "(":
            return self._tuple()
        if first == "{":
            return dict(self.sequence("{", "}", self._pair))
        if first.isalpha():
            name = self._match(KEYWORD)
            if name not in CONSTANTS:
                raise NotACall(f"{name} is no literal")
            return CONSTANTS[name]
        return self._number()

    def _pair(self) -> tuple[str, Any]:
        key = self.value()
        if isinstance(key, bool) or not isinstance(key, str | int | float):
            raise NotACall("a key is neither text nor a number")
        self._take(":")
        return str(key), self.value()

    def _tuple(self) -> Any:
        """`(a, b)` is a list here, as JSON has no tuples; `(a)` is a."""
        start = self._place
        items = self.sequence("(", ")", self.value)
        single = len(items) == 1 and not self._text[start : self._place - 1].rstrip().endswith(",")
        return items[0] if single else items

    def _strings(self) -> str:
        """One string, or several in a row, which Python joins."""
        pieces = []
        while found := STRING.match(self._text, self._place):
            body = next(group for group in found.groups() if group is not None)
            pieces.append(_unescaped(body))
            self._place = found.end()
            self._blank()
        if not pieces:
            raise NotACall("a string without an end")
        return "".join(pieces)

    def _number(self) -> int | float:
        try:
            if INTEGER.match(self._text, self._place):
                return int(self._match(INTEGER))
            number = float(self._match(FLOAT))
        except NotACall:
            raise
        except ValueError as problem:  # more digits than Python converts
            raise NotACall(str(problem)) from problem
        if not math.isfinite(number):
            raise NotACall("a number that is not finite")
        return number

    def end(self) -> None:
        self._blank()
        if self._place != len(self._text):
            raise NotACall(f"more text at {self._place}")

    def _blank(self) -> None:
        self._place = BLANK.match(self._text, self._place).end()  # type: ignore[union-attr]  # it matches anywhere

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._blank()
        found = pattern.match(self._text, self._place)
        if found is None:
            raise NotACall(f"unexpected text at {self._place}")
        self._place = found.end()
        return found.group()

    def _skip(self, symbol: str) -> bool:
        self._blank()
        if not self._text.startswith(symbol, self._place):
            return False
        self._place += len(symbol)
        return True

    def _take(self, symbol: str) -> None:
        if not self._skip(symbol):
            raise NotACall(f"no {symbol} at {self._place}")


def _unescaped(body: str) -> str:
    """As Python reads a string, with halves of a pair joined as in JSON; unknown escapes stay as they are."""
    text = ESCAPE.sub(_character, body) if "\\" in body else body
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _character(found: re.Match[str]) -> str:
    what = found.group(1)
    if what in SIMPLE or what in KEPT:
        return SIMPLE.get(what, KEPT.get(what, ""))
    if what[0] in "xuU" and len(what) > 1:
        code = int(what[1:], 16)
        if code > 0x10FFFF:
            raise NotACall(f"no character {what}")
        return chr(code)
    return chr(int(what, 8)) if what.isascii() and what.isdigit() and int(what[0]) < 8 else found.group()
