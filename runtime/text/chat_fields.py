"""How much text a format can make at most: `%` and `str.format`, whose fields may be wide, or name one value often.

Formats are read here in time that is in proportion to their length, as a hostile one may have a million characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from .chat_budget import LimitExceeded, text_size

MOST_FIELDS = 10_000
WIDTH_DIGITS = 4
"""Digits of the widest field that is formatted."""
LONGEST_ESCAPE = 10
"""Characters that repr or ascii may write for one."""
_PERCENT = re.compile(r"%(?:\(([^()]{0,200})\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?(.)?", re.DOTALL)
"""Name, width, precision and kind of a field. All but the name may be missing anywhere, so nothing is tried twice."""
_DIGITS = re.compile(r"\d+")
_END_OF_NAME = re.compile(r"[.\[]")


def written_size(value: Any, limit: int) -> int:
    """What `str(value)` has at most, in characters."""
    return len(value) if isinstance(value, str) else 8 * text_size(value, limit) + 32


def percent_size(text: str, arguments: Any, limit: int) -> int:
    """What `text % arguments` has at most; refused when a field is very wide."""
    size, times = len(text), 1
    by_name = isinstance(arguments, Mapping)
    for number, field in enumerate(_PERCENT.finditer(text)):
        name, width, precision, kind = field.groups()
        if number >= MOST_FIELDS or kind == "(":
            raise LimitExceeded(f"a format has more than {MOST_FIELDS} fields, or one with a very long name")
        size += _width(width) + _width(precision or "")
        times = max(times, _times(kind))
        if name is not None and by_name:
            size += written_size(arguments.get(name), limit) * _times(kind)
    if by_name:
        return size
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    return size + times * sum(written_size(value, limit) for value in given)


def braces_size(text: str, positional: Sequence[Any], named: Mapping[str, Any], limit: int) -> int:
    """What `text.format(*positional, **named)` has at most; refused when a field is very wide."""
    size, fields, place = len(text), 0, 0
    try:
        for _, name, layout, kind in Formatter().parse(text):
            if name is None:
                continue
            fields += 1
            if fields > MOST_FIELDS or "{" in (layout or ""):
                raise LimitExceeded(f"a format has more than {MOST_FIELDS} fields, or one as wide as another says")
            size += sum(map(_width, _DIGITS.findall(layout or "")))
            value, place = _argument(name, positional, named, place)
            size += written_size(value, limit) * _times(kind)
    except ValueError:  # the format itself says the same
        return size
    return size


def _argument(name: str, positional: Sequence[Any], named: Mapping[str, Any], place: int) -> tuple[Any, int]:
    """The argument that a field takes, and how many fields without a name there have been."""
    first = _END_OF_NAME.split(name, maxsplit=1)[0]
    if first and not first.isdecimal():
        return named.get(first), place
    number = int(first) if first else place
    return positional[number] if number < len(positional) else None, place + (not first)


def _times(kind: str | None) -> int:
    return LONGEST_ESCAPE if kind in ("r", "a") else 1


def _width(digits: str) -> int:
    if digits == "*" or len(digits) > WIDTH_DIGITS:
        raise LimitExceeded("a format asks for a very wide field")
    return int(digits or 0)
