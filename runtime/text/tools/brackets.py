"""Follows brackets and quotes through text that comes in pieces, to see where the outermost bracket closes."""

from __future__ import annotations

import re

OPENING, CLOSING = "([{", ")]}"
OUTSIDE = re.compile(r"[^\"'()\[\]{}]+")


class BracketScanner:
    """`end` is the place after the outermost closing bracket, once that was seen.

    python: single quotes and triple quotes are quotes, too; otherwise only JSON's double quotes.
    """

    def __init__(self, start: int, python: bool) -> None:
        self.end: int | None = None
        self._place = start
        self._python = python
        self._depth = 0
        self._quote = ""
        self._inside = {
            quote: re.compile(rf"(?:[^\\{quote[0]}]|\\.)+", re.DOTALL) for quote in ('"', "'", '"""', "'''")
        }

    def advance(self, text: str, final: bool) -> None:
        """Look at what `text`, which only ever grows, has more than last time; `final`: nothing more will come."""
        while self.end is None and self._place < len(text):
            step = self._in_quote(text, final) if self._quote else self._outside(text, final)
            if not step:
                return
            self._place += step

    def _outside(self, text: str, final: bool) -> int:
        if found := OUTSIDE.match(text, self._place):
            return found.end() - self._place
        character = text[self._place]
        if character in OPENING:
            self._depth += 1
        elif character in CLOSING:
            self._depth -= 1
            if self._depth <= 0:
                self.end = self._place + 1
        elif character == '"' or self._python:
            return self._open_quote(text, character, final)
        return 1

    def _open_quote(self, text: str, character: str, final: bool) -> int:
        """A quote, or three of them; 0 while that is not known yet."""
        ahead = text[self._place : self._place + 3]
        if self._python and len(ahead) < 3 and set(ahead) == {character} and not final:
            return 0
        self._quote = ahead if self._python and ahead == 3 * character else character
        return len(self._quote)

    def _in_quote(self, text: str, final: bool) -> int:
        if text.startswith(self._quote, self._place):
            step, self._quote = len(self._quote), ""
            return step
        if found := self._inside[self._quote].match(text, self._place):
            return found.end() - self._place
        ahead = text[self._place : self._place + len(self._quote)]
        waits = ahead == "\\" or self._quote.startswith(ahead)
        return 0 if waits and not final else 1
