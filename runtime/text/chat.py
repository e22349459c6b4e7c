"""Chat templates: a conversation as the exact text, or ids, that the model was trained on.

The dialect is that of transformers' `apply_chat_template`; `chat_render` runs it in a sandbox with limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from llamac.errors import LlamacError

from .tokenizer import Tokenizer
from .tokenizer_files import missing_library

TIME_LIMIT_SECONDS = 5.0
SIZE_ALLOWANCE = 1_000_000
SIZE_FACTOR = 4
"""A rendering may have `SIZE_FACTOR` times the characters of its input, and the allowance on top."""
DEEPEST_INPUT = 50
MARK_START, MARK_END = "\U000f0000", "\U000f0001"
"""Private-use characters put around control tokens that came with the conversation."""
_START = rf"(?:{MARK_START}|\\+(?i:U000f0000|udb80\\+udc00))"
_END = rf"(?:{MARK_END}|\\+(?i:U000f0001|udb80\\+udc01))"
"""The marks as they are, and as Python's repr and JSON write them: a template may print a list of parts as it is."""
Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled chat template. Raises LLC0910 when it does not parse, LLC0902 without jinja2.

    `clock` is what `strftime_now` reads: a fixed one gives the same text every day.
    """

    def __init__(
        self, source: str, *, clock: Callable[[], datetime] = datetime.now, time_limit: float = TIME_LIMIT_SECONDS
    ) -> None:
        try:
            from .chat_render import SandboxedTemplate
        except ImportError as problem:
            raise missing_library("jinja2", "a chat template") from problem
        self.source = source
        self._template = SandboxedTemplate(source, clock, time_limit)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        bos_token: str = "",
        eos_token: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text. `variables` reach the template by name (`date_string`, `documents`, ...).

        Raises LLC0914 for messages that are no conversation, LLC0911 when the template fails on them or refuses them,
        LLC0912 when it takes too long or builds too much, LLC0913 when it tries to leave the sandbox.
        """
        _require_messages(messages)
        inputs = {
            "documents": None,
            **variables,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos_token,
            "eos_token": eos_token,
        }
        plain = {name: _plain(value, name) for name, value in inputs.items()}
        return self._template.render(plain, SIZE_ALLOWANCE + SIZE_FACTOR * _characters(plain))

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[int]:
        """The conversation as ids; `options` as in `render`, the BOS and EOS texts by default those of the tokenizer.

        Only control tokens that the template itself writes become control ids. Inside messages and tools they stay
        text, so that nobody can end a turn or begin another from within what they say. No BOS is added beyond the
        template's own.
        """
        control = sorted(tokenizer.special_ids, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, control)) or "(?!)")
        for name, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
            options.setdefault(name, "" if token_id is None else tokenizer.special_text(token_id))
        _require_messages(messages)
        marked_tools = None if tools is None else _marked(_plain(tools, "tools"), pattern)
        text = self.render(_marked(_plain(messages, "messages"), pattern), tools=marked_tools, **options)
        return _encode_marked(tokenizer, text, pattern)


def _require_messages(messages: object) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise _malformed("messages", "not a list of messages")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, Mapping):
            raise _malformed(where, "not an object with role and content")
        if not isinstance(message.get("role"), str):
            raise _malformed(where, "it has no role")
        if not isinstance(message.get("content"), (str, list, tuple, type(None))):
            raise _malformed(where, "its content is neither text nor a list of parts")


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of plain JSON types only: objects with methods of their own have no business in a template."""
    if depth > DEEPEST_INPUT:
        raise _malformed(where, f"nested more than {DEEPEST_INPUT} deep")
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(item, f"{where}[{place}]", depth + 1) for place, item in enumerate(value)]
    raise _malformed(where, f"{type(value).__name__} is not a JSON value")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise _malformed(where, f"the key {key!r} is not text")
    return str(key)


def _malformed(where: str, reason: str) -> LlamacError:
    hint = 'give messages like [{"role": "user", "content": "Hello"}]'
    return LlamacError("LLC0914", where, reason, hint)


def _characters(value: Any) -> int:
    """Characters and items of plain data."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + 1 + _characters(item) for key, item in value.items())
    return sum(1 + _characters(item) for item in value) if isinstance(value, list) else 1


def _marked(value: Any, control: re.Pattern[str]) -> Any:
    """Plain data with every control token wrapped in marks; marks already there are dropped, so none can be forged."""
    if isinstance(value, str):
        value = value.replace(MARK_START, "").replace(MARK_END, "")
        return control.sub(lambda found: MARK_START + found.group() + MARK_END, value)
    if isinstance(value, dict):
        # Names of parameters and arguments come with the conversation, too; those that templates look up stay.
        keys = {key: key if key.isidentifier() else _marked(key, control) for key in value}
        return {keys[key]: _marked(item, control) for key, item in value.items()}
    return [_marked(item, control) for item in value] if isinstance(value, list) else value


def _encode_marked(tokenizer: Tokenizer, text: str, control: re.Pattern[str]) -> list[int]:
    """Ids of a rendered text: what is in marks as ordinary text, the rest with its control tokens.

    A template's own string functions can separate the two marks of a pair. A lone mark is dropped but still cuts the
    text, so that what stands on its two sides cannot join into a control token.
    """
    pieces = re.split(f"{_START}({control.pattern}){_END}|[{MARK_START}{MARK_END}]", text)
    ids: list[int] = []
    for place, piece in enumerate(pieces):
        if piece:
            ids += tokenizer.encode(piece, allow_special=place % 2 == 0, add_bos=False)
    return ids
