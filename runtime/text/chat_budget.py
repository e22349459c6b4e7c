"""What one rendering of a chat template may use: time, and the characters of one value and of all together."""

from __future__ import annotations

import time
from collections.abc import Iterator, MappingView
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.runtime import LoopContext

SPENDING_FACTOR = 4
"""All text written while rendering, captured blocks and macros included, against the largest single value."""
BUILT_FACTOR = 128
"""All values built while rendering, those that nobody holds any longer included, against the largest single one."""
DEEPEST_VALUE = 200
"""How deep lists may hold lists: Python hashes what is nested without end by a recursion that nothing bounds."""
ITEM_SIZE = 8
"""What an item of a list counts for where memory is accounted for, in characters."""


class LimitExceeded(TemplateError):
    """The template takes too long or builds too much."""


@dataclass
class Budget:
    """The time until which, and the characters with which, a rendering must make do."""

    deadline: float
    largest: int
    spent: int = 0
    built: int = 0

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

    def build(self, value: Any) -> None:
        """Account for a value that was made, which may be held under a name of its own until the end."""
        if isinstance(value, (str, list, tuple)):
            self.built += len(value) * (1 if isinstance(value, str) else ITEM_SIZE)
            if self.built > BUILT_FACTOR * self.largest:
                raise LimitExceeded(f"it builds more than {BUILT_FACTOR * self.largest} characters in all")


current: ContextVar[Budget] = ContextVar("current")
"""The budget of the rendering under way; a template runs only with one set."""


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
    """The value a call, an operator or a filter gave, unless it is too large."""
    allowed = current.get()
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise LimitExceeded("bytes are not available to chat templates")
    allowed.check_size(text_size(value, allowed.largest))
    allowed.build(value)
    return value


def measured(value: Any) -> Any:
    """A value about to be compared or hashed, which takes as long as printing it would."""
    if not isinstance(value, (str, int, float)):
        allowed = current.get()
        allowed.check_time()
        allowed.check_size(text_size(value, allowed.largest))
    return value


def text_size(value: Any, limit: int, indent: int = 0) -> int:
    """Characters and items of a value, nested ones included; at most a little more than `limit`.

    A list holding one list ten times, that one another ten times and so on, is small in memory but not when it is
    printed: so repeated references count each time. indent: what every item costs for each list around it, besides.
    """
    size, depth = 0, 0
    level = [value]
    while level and size <= limit:
        if depth > DEEPEST_VALUE:
            raise LimitExceeded(f"it nests values more than {DEEPEST_VALUE} deep")
        below: list[Any] = []
        for item in level:
            size += indent * depth
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, int):
                size += item.bit_length() // 3 if item.bit_length() > 64 else 0
            elif isinstance(item, (list, tuple, dict, MappingView)):
                size += len(item)
                below += _inside(item) if size <= limit else ()
        level, depth = below, depth + 1
    return size


def _inside(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else list(container)


def materialized(values: tuple[Any, ...]) -> list[Any]:
    """The values with each iterator as a list, so that its size can be seen before it is used."""
    is_stream = [isinstance(value, Iterator) and not isinstance(value, LoopContext) for value in values]
    return [_listed(value) if stream else value for value, stream in zip(values, is_stream, strict=True)]


def _listed(stream: Iterator[Any]) -> list[Any]:
    allowed = current.get()
    items: list[Any] = []
    size = 0
    for item in stream:
        allowed.check_time()
        size += 1 + text_size(item, allowed.largest)
        allowed.check_size(size)
        items.append(item)
    return items
