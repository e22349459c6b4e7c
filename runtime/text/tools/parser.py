"""Finds tool calls in an assistant's message while it is being written.

    parser = ToolCallParser()
    for piece in pieces:
        for event in parser.feed(piece): ...      # Text, Call
    parser.finish()                               # the rest, then End

Events do not depend on how the text was cut, apart from neighbouring `Text`s; `parse` feeds everything at once. A call
comes whole: until it is complete nobody knows that it is one, and what turns out not to be a call comes out as text,
every character of it. Recognized, in any mixture of generations (`recognize`):

    <|python_tag|> or <|python_start|>  up to <|python_end|> or the end of the message: a call in any form, else code
    <function=name>{...}</function>     anywhere; the closing tag may be missing
    [f(a=1), g()] · {"name": ..., "parameters": ...} · brave_search.call(query="...")   as the whole of a message

Text is held back only while it may still become a call: as soon as it cannot, or is longer than `LONGEST_CALL`, it is
let go. Nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..stream import MESSAGE_ENDS, TAG_END, TAGS, text_with_tags
from ..tokenizer import Tokenizer
from .brackets import BracketScanner
from .call import ToolCall
from .literals import NotACall
from .recognize import (
    BLANK,
    BUILTIN_BEGIN,
    CALL_KEYS,
    SEPARATOR,
    calls_after_tag,
    calls_of_message,
    function_call,
)

LONGEST_CALL = 1 << 18
"""Characters that one call may have."""
SLICE = 4096

ENDS: dict[str, EndReason] = dict(zip(MESSAGE_ENDS, ("turn", "turn", "message", "message", "text"), strict=True))
CONTROL = (*TAGS, TAG_END, *ENDS)
FUNCTION = "<function="
FUNCTION_END = "</function>"
FUNCTION_HEAD = re.compile(r"<function=([\w.\-]{1,128})>\s{0,64}(?=\{)")
FUNCTION_HEAD_BEGUN = re.compile(r"<function=[\w.\-]{0,128}(?:>\s{0,64})?")
LONGEST_CONTROL = max(map(len, CONTROL))
CONTROL_TEXT = re.compile("|".join(map(re.escape, CONTROL)))
MARKS = (*CONTROL, FUNCTION)
MARK = re.compile("|".join(map(re.escape, MARKS)))
PYTHON_BEGIN = re.compile(r"\[\s*[A-Za-z_][\w.]{0,127}\s*\(")
PYTHON_BEGUN = re.compile(r"\[\s*(?:[A-Za-z_][\w.]{0,127}\s*)?")
JSON_BEGIN = re.compile(r'(?:\[\s*)?\{\s*"(?:' + "|".join(CALL_KEYS) + r')"\s*:')
JSON_BEGUN = re.compile(r'(?:\[\s*)?(?:\{\s*(?:"[a-z]{0,10}(?:"\s*)?)?)?')

EndReason = Literal["turn", "message", "text"]


@dataclass(frozen=True)
class Text:
    """Text that is certainly no call."""

    text: str


@dataclass(frozen=True)
class Call:
    """One complete call."""

    call: ToolCall


@dataclass(frozen=True)
class End:
    """The end of the message: its turn is over, it waits for a tool's result, or the whole text is over."""

    reason: EndReason | None


Event = Text | Call | End
State = Callable[[list[Event]], None]


@dataclass
class ParsedMessage:
    """`text` is all that is no call; `end` is None when the message just stopped."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    end: EndReason | None = None


def parse(text: str, *, cut_off: bool = False) -> ParsedMessage:
    """The calls of a message and the text around them; `cut_off` as for `ToolCallParser.finish`."""
    parser = ToolCallParser()
    return collect([*parser.feed(text), *parser.finish(cut_off=cut_off)])


def parse_ids(tokenizer: Tokenizer, token_ids: Iterable[int]) -> ParsedMessage:
    """As `parse`, from ids."""
    return parse(text_with_tags(tokenizer, token_ids))


def collect(events: Sequence[Event]) -> ParsedMessage:
    """The sum of events."""
    message = ParsedMessage()
    for event in events:
        match event:
            case Text(text):
                message.text += text
            case Call(call):
                message.calls.append(call)
            case End(reason):
                message.end = reason
    return message


class ToolCallParser:
    """See the module. One object reads one message."""

    def __init__(self) -> None:
        self._coming: list[str] = []  # in slices, the next one last: little is copied however much comes at once
        self._held = ""
        self._state: State = self._at_start
        self._looked = 0
        self._scanner: BracketScanner | None = None
        self._end: EndReason | None = None
        self._closing = self._cut_off = False

    def feed(self, text: str) -> list[Event]:
        """What has become certain with the next piece of text."""
        events: list[Event] = []
        self._push(text)
        self._run(events)
        return events

    def finish(self, *, cut_off: bool = False) -> list[Event]:
        """Nothing more will come: what was held back, and `End`.

        cut_off: the message was not at its end (too many tokens), so code without an end is no call.
        """
        self._closing, self._cut_off = True, cut_off
        events: list[Event] = []
        self._run(events)
        return [*events, End(self._end)]

    @property
    def _final(self) -> bool:
        return self._closing and not self._coming

    def _push(self, text: str) -> None:
        self._coming += [text[start : start + SLICE] for start in range(0, len(text), SLICE)][::-1]

    def _run(self, events: list[Event]) -> None:
        while True:
            before = (self._state, len(self._held), self._looked)
            self._state(events)
            if before == (self._state, len(self._held), self._looked):
                if not self._coming:
                    return
                self._held += self._coming.pop()

    def _at_start(self, events: list[Event]) -> None:
        """Before the first character that is not blank: what may begin here is a call without any tag."""
        begun = self._held.lstrip(BLANK)
        if len(self._held) - len(begun) > LONGEST_CALL:
            self._read_as_text()
        elif not begun and not self._final:
            return
        elif begun[:1] in ("[", "{") or any(begin.startswith(begun[: len(begin)]) for begin in BUILTIN_BEGIN if begun):
            self._scanner = None
            self._go(self._in_bare_call)
        else:
            self._go(self._in_text)

    def _in_bare_call(self, events: list[Event]) -> None:
        """A call that has to be the whole message; given up as soon as it cannot be."""
        control = self._control_at()
        complete = self._final or control is not None
        begun = self._held[: control.start() if control else len(self._held) - self._tail_of_mark(CONTROL)]
        too_long = len(begun) > LONGEST_CALL if complete else self._too_long()
        if too_long or not self._may_be_bare(begun, complete):
            self._read_as_text()
        elif complete:
            calls = calls_of_message(begun)
            if calls is None:
                self._read_as_text()
                return
            events += map(Call, calls)
            self._drop(len(begun))
            self._go(self._in_text)

    def _may_be_bare(self, begun: str, complete: bool) -> bool:
        start = len(begun) - len(begun.lstrip(BLANK))
        if self._scanner is None:
            certain, possible = _beginning(begun[start : start + 400])
            if not certain:
                return possible and not complete
            self._scanner = BracketScanner(start, python=not JSON_BEGIN.match(begun, start))
        while True:
            self._scanner.advance(begun, complete)
            end = self._scanner.end
            if end is None:
                return True
            if begun[start] != "{":
                return not begun[end:].strip(BLANK)
            end = SEPARATOR.match(begun, end).end()  # type: ignore[union-attr]  # it matches anywhere
            if begun[end : end + 1] != "{":
                return end == len(begun)
            self._scanner = BracketScanner(end, python=False)

    def _in_text(self, events: list[Event]) -> None:
        """Let text go up to the next mark, or what may become one."""
        found = MARK.search(self._held)
        if found is None:
            self._let_go(len(self._held) - self._tail_of_mark(MARKS), events)
        else:
            self._let_go(found.start(), events)
            self._at_mark(found.group())

    def _at_mark(self, mark: str) -> None:
        if mark == FUNCTION:
            self._scanner = None
            self._go(self._in_function)
        elif mark in TAGS:
            self._go(self._in_tag, looked=len(mark))
        elif mark == TAG_END:
            self._drop(len(mark))
            self._go(self._at_start)
        else:
            self._drop(len(mark))
            self._end = ENDS[mark]
            self._go(self._after_end)

    def _in_tag(self, events: list[Event]) -> None:
        """From the tag, which is the beginning of what is held, to the control token that ends it."""
        tag = next(tag for tag in TAGS if self._held.startswith(tag))
        control = self._control_at()
        if control is None and not self._final and not self._too_long():
            return
        end = len(self._held) if control is None else control.start()
        cut_off = self._cut_off and control is None
        calls = calls_after_tag(self._held[len(tag) : end], cut_off) if end <= LONGEST_CALL else None
        if calls is None:
            self._let_go(len(tag), events)
            self._read_as_text()
        else:
            events += map(Call, calls)
            self._drop(end)
            self._go(self._in_text)

    def _in_function(self, events: list[Event]) -> None:
        """`<function=name>{...}</function>`, the beginning of what is held. What is no call goes as far as it was read.

        (Looking for another call inside a broken one would take time in proportion to the square of the text.)
        """
        head = FUNCTION_HEAD.match(self._held)
        if head is None:
            if self._final or not FUNCTION_HEAD_BEGUN.fullmatch(self._held):
                self._let_go(len(FUNCTION), events)
                self._go(self._in_text)
            return
        control = self._control_at()
        begun = self._held if control is None else self._held[: control.start()]
        self._scanner = self._scanner or BracketScanner(head.end(), python=True)
        self._scanner.advance(begun, self._final or control is not None)
        end = self._scanner.end or len(begun) + 1
        if end > len(begun) and control is None and not self._final and not self._too_long():
            return
        rest = self._held[end : end + len(FUNCTION_END)]
        if end <= LONGEST_CALL and rest != FUNCTION_END and FUNCTION_END.startswith(rest) and not self._final:
            return
        self._function_ends(head, min(end, len(begun), LONGEST_CALL), end <= min(len(begun), LONGEST_CALL), events)

    def _function_ends(self, head: re.Match[str], end: int, closed: bool, events: list[Event]) -> None:
        try:
            if not closed:
                raise NotACall("the arguments have no end")
            events.append(Call(function_call(head.group(1), self._held[head.end() : end])))
            self._drop(end + len(FUNCTION_END) * self._held.startswith(FUNCTION_END, end))
        except NotACall:
            self._let_go(end, events)
        self._go(self._in_text)

    def _after_end(self, events: list[Event]) -> None:
        self._let_go(len(self._held), events)

    def _control_at(self) -> re.Match[str] | None:
        """The next control token that is held, looking at every character once."""
        found = CONTROL_TEXT.search(self._held, self._looked)
        if found is None:
            self._looked = max(self._looked, len(self._held) - LONGEST_CONTROL)
        return found

    def _tail_of_mark(self, marks: Sequence[str]) -> int:
        """Length of the end of what is held that is the beginning of a mark; 0 when nothing more will come."""
        place = self._held.rfind("<", -LONGEST_CONTROL)
        if place < 0 or self._final:
            return 0
        tail = self._held[place:]
        return len(tail) if any(mark.startswith(tail) for mark in marks) else 0

    def _go(self, state: State, looked: int = 0) -> None:
        self._state = state
        self._looked = looked

    def _read_as_text(self) -> None:
        """What is held is no call. It may hold marks, which are found as if it came once more."""
        self._push(self._held)
        self._drop(len(self._held))
        self._go(self._in_text)

    def _too_long(self) -> bool:
        """Whether a call that began with what is held, and has no end in it, is longer than calls may be."""
        return len(self._held) > LONGEST_CALL + LONGEST_CONTROL

    def _let_go(self, length: int, events: list[Event]) -> None:
        if length:
            events.append(Text(self._held[:length]))
            self._drop(length)

    def _drop(self, length: int) -> None:
        self._held = self._held[length:]
        self._looked = 0


def _beginning(begun: str) -> tuple[bool, bool]:
    """Whether this certainly begins a call without a tag, and whether it may still come to."""
    if PYTHON_BEGIN.match(begun) or JSON_BEGIN.match(begun) or begun.startswith(BUILTIN_BEGIN):
        return True, True
    possible = PYTHON_BEGUN.fullmatch(begun) or JSON_BEGUN.fullmatch(begun)
    return False, bool(possible) or any(begin.startswith(begun) for begin in BUILTIN_BEGIN)
