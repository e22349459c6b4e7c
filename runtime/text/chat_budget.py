"""What one rendering of a chat template may use, and the checks that keep every single step inside it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jinja2.exceptions import TemplateError

WIDEST_PADDING = 10_000
PADDING_CALLS = frozenset(
    ["center", "do_center", "ljust", "rjust", "zfill", "expandtabs", "do_indent", "to_json", "do_batch"]
)
"""Methods and filters (by the name of their function) whose integer argument is a width."""
WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-+ #0]*(\d{5,}|\*|\d*\.(\d{5,}|\*))")
WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*(\d{5,}|\{)")
"""Fields of the two kinds of format with a width of five digits or more, or one taken from the arguments."""
LONGEST_INTEGER_BITS = 4096
SPENDING_FACTOR = 4
"""All text written while rendering, captured blocks and macros included, against the largest single value."""


class LimitExceeded(TemplateError):
    """The template takes too long or builds too much."""


@dataclass
class Budget:
    """The time until which, and the characters with which, a rendering must make do."""

    deadline: float
    largest: int
    spent: int = 0

    def check_time(self) -> None:
        """Raise when the deadline has passed."""
        if time.monotonic() > self.deadline:
            raise LimitExceeded("it takes too long")

    def check_size(self, size: int) -> None:
        """Raise when a value of `size` characters and items is too large."""
        if size > self.largest:
            raise LimitExceeded(f"it builds more than {self.largest} characters")

    def spend(self, size: int) -> None:
        """Account for `size` characters written, here or into a block."""
        self.spent += size
        self.check_size(self.spent // SPENDING_FACTOR)


current: ContextVar[Budget] = ContextVar("current")
"""The budget of the rendering under way; a template runs only with one set."""


def check_operator(name: str, left: Any, right: Any) -> None:
    """Bound the result of `left name right` before it is computed."""
    allowed = current.get()
    if name == "+":
        allowed.check_size(text_size((left, right), allowed.largest))
    elif name == "*" and (_sized(left) or _sized(right)):
        sequence, count = (left, right) if _sized(left) else (right, left)
        allowed.check_size(text_size(sequence, allowed.largest) * (count if isinstance(count, int) else 0))
    elif name == "%" and isinstance(left, str):
        _refuse_wide(WIDE_PERCENT, left)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if name == "**" else left.bit_length() + right.bit_length()
        if bits > LONGEST_INTEGER_BITS:
            raise LimitExceeded("it computes with huge numbers")


def check_call(name: str, subject: Any, values: list[Any]) -> None:
    """Bound what the function `name`, a method of `subject` or a filter, can build from its arguments."""
    allowed = current.get()
    allowed.check_time()
    allowed.check_size(text_size((subject, values), allowed.largest))
    texts = [value for value in (subject, *values) if isinstance(value, str)]
    if name in PADDING_CALLS:
        width = max((value for value in values if isinstance(value, int)), default=0)
        lines = sum(text.count("\n") + text.count("\t") for text in texts) + 1
        if width > WIDEST_PADDING:
            raise LimitExceeded(f"it pads to a width of {width}")
        allowed.check_size(width * lines)
    elif name in ("format", "do_format", "format_map"):
        for text in texts:
            _refuse_wide(WIDE_PERCENT if name == "do_format" else WIDE_BRACES, text)
    elif name in ("replace", "do_replace") and len(texts) >= 3:
        text, old, new = texts[:3]
        allowed.check_size(len(text) + text.count(old) * len(new))
    elif name in ("join", "do_join", "sync_do_join"):
        longest = max((len(text) for text in texts), default=0)
        items = max((len(value) for value in values if isinstance(value, (list, tuple, str))), default=0)
        allowed.check_size(longest * items)
    elif name == "translate":
        raise LimitExceeded("str.translate is not available to chat templates")


def checked_text(value: Any) -> Any:
    """The value of an output expression, accounted for before it becomes text."""
    allowed = current.get(None)  # none while jinja looks at constants when compiling
    if allowed is not None:
        allowed.check_time()
        size = text_size(value, allowed.largest)
        allowed.check_size(size)
        allowed.spend(size)
    return value


def checked_result(value: Any) -> Any:
    """The value a call or filter gave, unless it is too large."""
    allowed = current.get()
    allowed.check_size(text_size(value, allowed.largest))
    return value


def text_size(value: Any, limit: int) -> int:
    """Characters and items of a value, nested ones included; at most a little more than `limit`.

    A list holding one list ten times, that one another ten times and so on, is small in memory but not when it is
    printed: so repeated references count each time.
    """
    size = 0
    waiting = [value]
    while waiting and size <= limit:
        item = waiting.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            size += len(item)
            waiting += [*item.keys(), *item.values()] if size <= limit else []
        elif isinstance(item, (list, tuple)):
            size += len(item)
            waiting += item if size <= limit else []
    return size


def materialized(values: tuple[Any, ...]) -> list[Any]:
    """The values with each iterator as a list, so that its size can be seen before it is used."""
    largest = current.get().largest
    return [list(islice(value, largest)) if isinstance(value, Iterator) else value for value in values]


def _refuse_wide(pattern: re.Pattern[str], text: str) -> None:
    if pattern.search(text.replace("%%", "") if pattern is WIDE_PERCENT else text):
        raise LimitExceeded("a format asks for a very wide field")


def _sized(value: Any) -> bool:
    return isinstance(value, (str, list, tuple))
