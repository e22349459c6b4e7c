"""Cuts text into words as the patterns of Llama 3 and Llama 4 do, without a Unicode regex library.

The patterns (`pre_tokenizers`) ask for nothing but the class of each character and for the letters of contractions.
So a text is first mapped to a string of class letters of the same length, and a pattern over those letters, compiled
by the standard library in a millisecond, finds the same cuts. Importing `regex` and compiling the real pattern takes
20 ms, more than everything else a prompt needs. Equality is tested for every code point and on random text.
"""

from __future__ import annotations

import re

from .character_classes import UNKNOWN, CharacterClasses

CONTRACTION_LETTERS = "strevmldSTREVMLD"
OWN_CLASS = {ord(character): character for character in "' /" + CONTRACTION_LETTERS} | {0x17F: "s"}
"""Characters that the patterns name. U+017F is a lower case letter that case-insensitively equals s."""

_UPPER, _LOWER, _OTHER = "ASTREVMLD", "astrevmld", "o"
_LETTER, _SPACE = _UPPER + _LOWER + _OTHER, " wn"
_CONTRACTION = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
_LEAD = rf"[^n{_LETTER}N]?"
_SYMBOL = rf"[^{_SPACE}{_LETTER}N]"
_BLANKS = rf"[{_SPACE}]*n+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
_HEAD, _TAIL = rf"[{_UPPER}{_OTHER}c]", rf"[{_LOWER}{_OTHER}c]"

LLAMA3_CLASSES = rf"{_CONTRACTION}|{_LEAD}[{_LETTER}]+|N{{1,3}}| ?{_SYMBOL}+n*|{_BLANKS}"
LLAMA4_CLASSES = (
    rf"{_LEAD}{_HEAD}*{_TAIL}+(?:{_CONTRACTION})?|{_LEAD}{_HEAD}+{_TAIL}*(?:{_CONTRACTION})?"
    rf"|N{{1,3}}| ?{_SYMBOL}+[n/]*|{_BLANKS}"
)


class LlamaSplit:
    """The words of a text under one of the two patterns above."""

    def __init__(self, pattern: str) -> None:
        self._classes = CharacterClasses(OWN_CLASS)
        self._pattern = re.compile(pattern)

    def words(self, text: str) -> list[str] | None:
        """The words, which together are the text; None when it holds a character newer than the table of classes."""
        classes = text.translate(self._classes)
        if UNKNOWN in classes:
            return None
        return [text[found.start() : found.end()] for found in self._pattern.finditer(classes)]
