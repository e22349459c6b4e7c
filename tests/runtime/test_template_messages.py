"""Conversations as clients of OpenAI's API send them, through chat templates that know only text and objects."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from llamac.errors import LlamacError
from llamac.runtime.text.chat import ChatTemplate
from llamac.runtime.text.conversation_ids import encode_messages
from llamac.runtime.text.template_messages import for_template
from llamac.runtime.text.tools.call import ToolCall

from .test_chat import LLAMA31
from .test_tokenizer import llama

VISION = """{%- for message in messages %}<|{{ message.role }}|>
{%- if message.content is string %}{{ message.content }}{%- else %}
{%- for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>
{%- else %}{{ part['text'] }}{% endif %}{% endfor %}
{%- endif %}{%- endfor %}"""


def ids(messages: list[dict[str, Any]], source: str = LLAMA31) -> list[int]:
    template = ChatTemplate(source, clock=lambda: datetime(2026, 1, 2))
    return encode_messages(llama(3), messages, None, template, None)


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "What is "}, "1 + 1?"]
    plain = ids([{"role": "system", "content": "Brief."}, {"role": "user", "content": "What is 1 + 1?"}])
    assert ids([{"role": "system", "content": ["Brief."]}, {"role": "user", "content": parts}]) == plain
    assert "type" not in llama(3).decode(plain)


def test_a_template_that_reads_parts_gets_them() -> None:
    parts = [{"type": "image", "tiles": None}, "What?"]
    (row,) = for_template([{"role": "user", "content": parts}], VISION)
    assert row["content"] == [parts[0], {"type": "text", "text": "What?"}]
    (row,) = for_template([{"role": "user", "content": parts}], LLAMA31)
    assert row["content"][0]["type"] == "image", "who has no place for a picture says so"
    assert ChatTemplate(VISION).render(for_template([{"role": "user", "content": parts}], VISION)) == (
        "<|user|><|image|>What?"
    )


@pytest.mark.parametrize("arguments", ['{"a": 1.5, "ß": null}', {"a": 1.5, "ß": None}])
def test_arguments_that_are_json_text(arguments: Any) -> None:
    """As openai-python gives an answer back: arguments as text, and null for what there is not."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "refusal": None, "function_call": None, "tool_calls": [call]},
        {"role": "tool", "content": "20", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "It is 20.", "refusal": None, "tool_calls": None},
    ]
    text = llama(3).decode(ids(messages), skip_special=False)
    assert '{"name": "f", "parameters": {"a": 1.5, "ß": null}}<|eot_id|>' in text
    assert "<|end_header_id|>\n\nIt is 20.<|eot_id|>" in text and "None" not in text


def test_calls_without_arguments_and_as_objects() -> None:
    rows = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}, ToolCall("g", {})]}]
    (row,) = for_template(rows, LLAMA31)
    assert [call["function"]["arguments"] for call in row["tool_calls"]] == [{}, {}]
    assert for_template([{"role": "assistant", "tool_calls": []}], LLAMA31) == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            r"messages\[0\]\.content\[0\]",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, r"messages\[0\]\.content\[0\]"),
        ({"role": "user", "content": [7]}, r"messages\[0\]\.content\[0\]"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "not JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}, "no object"),
        ({"role": "user", "content": 5}, r"messages\[0\]"),
        ("hello", r"messages\[0\]"),
    ],
)
def test_what_is_none_is_refused(message: Any, where: str) -> None:
    with pytest.raises(LlamacError, match=f"LLC0914 .*{where}"):
        ids([message])


def test_the_callers_messages_stay_as_they_are() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    before = repr(message)
    for_template([message], LLAMA31)
    assert repr(message) == before
