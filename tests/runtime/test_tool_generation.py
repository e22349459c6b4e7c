"""Tool calls from drawn ids to `Generation.tool_calls`, streamed events, and the history of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime.conversation import Conversation
from llamac.runtime.generation import Continuation, Generation, GenerationOptions
from llamac.runtime.loader import load
from llamac.runtime.model import TextStream
from llamac.runtime.scheduler import Progress
from llamac.runtime.text.tools.call import ToolCall
from llamac.runtime.text.tools.parser import Call, End, Event, Text

from .test_tokenizer import llama

WEATHER = {"name": "get_weather", "description": "d", "parameters": {}}
EOT, EOM = 128009, 128008


def running(stop: tuple[str, ...] = (), most: int | None = 100) -> Continuation:
    options = GenerationOptions(max_new_tokens=most, stop_ids=frozenset({EOT, EOM}), stop=stop, after_text=False)
    return Continuation([1], options, llama(3), 1000)


def steps(continuation: Continuation, text: str) -> Iterator[Progress]:
    """The progress of a generation that draws the ids of `text`, one a step."""
    logits = np.zeros(128_256, np.float32)
    for token_id in llama(3).encode(text, allow_special=True, add_bos=False):
        logits[token_id] = 1
        piece = continuation.accept(logits)
        logits[token_id] = 0
        outcome = None if continuation.stop_reason is None else continuation.result()
        if piece or outcome is not None:
            yield Progress(0, piece, outcome)
        if outcome is not None:
            return


def generated(text: str, **options: Any) -> Generation:
    continuation = running(**options)
    return TextStream(steps(continuation, text), continuation).outcome


def events(text: str, **options: Any) -> list[Event]:
    continuation = running(**options)
    found: list[Event] = []
    for event in TextStream(steps(continuation, text), continuation).events():
        if isinstance(event, Text) and found and isinstance(found[-1], Text):
            event = Text(found.pop().text + event.text)  # type: ignore[union-attr]
        found.append(event)
    return found


def test_the_outcome_knows_its_calls() -> None:
    done = generated('Let me see.<|python_tag|>brave_search.call(query="é 日本")<|eom_id|>')
    assert done.text == 'Let me see.brave_search.call(query="é 日本")'
    assert done.tool_calls == [ToolCall("brave_search", {"query": "é 日本"}, "builtin", tagged=True)]
    assert (done.message.text, done.message.end, done.stop_reason) == ("Let me see.", "message", "stop_id")
    row = done.to_message()
    assert (row["content"], row["tool_calls"][0]["function"]["name"]) == ("Let me see.", "brave_search")
    assert done.to_json()["tool_calls"] == [
        {"name": "brave_search", "arguments": {"query": "é 日本"}, "kind": "builtin"}
    ]
    plain = generated("Hello there.<|eot_id|>")
    assert (plain.tool_calls, plain.to_message()) == ([], {"role": "assistant", "content": "Hello there."})
    assert "tagged_text" not in plain.to_json() and plain.to_json()["tool_calls"] == []


def test_events_come_as_they_are_certain() -> None:
    call = ToolCall("get_weather", {"city": "Oslo"}, "python")
    assert events('[get_weather(city="Oslo")]<|eot_id|>') == [Call(call), End("turn")]
    assert events("Sunny 😀.<|eot_id|>") == [Text("Sunny 😀."), End("turn")]
    assert events("A<|python_tag|>print(1)<|eom_id|>")[1] == Call(
        ToolCall("code_interpreter", {"code": "print(1)"}, "code", True)
    )


def test_a_generation_that_was_cut_off_calls_nothing() -> None:
    assert generated("<|python_tag|>import os\nos.remove(", most=4).tool_calls == []
    assert events("<|python_tag|>import os\nos.remove(", most=4)[0] == Text("<|python_tag|>import os\n")


def test_stop_strings_end_before_a_call_and_at_a_tag() -> None:
    done = generated("no STOP[f(a=1)]<|eot_id|>", stop=("STOP",))
    assert (done.text, done.tool_calls, done.stop_reason) == ("no ", [], "stop_string")
    done = generated("ST<|python_tag|>print(1)<|eom_id|>", stop=("STOP",))
    assert (done.text, done.tool_calls[0].kind, done.message.text) == ("STprint(1)", "code", "ST")


def scripted(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """The toy's tokens are bytes: its next answers are these."""
    ids = [[*answer.encode(), 257] for answer in answers]

    def choose(self: Continuation, logits: object) -> int:
        row = ids[0]
        token_id = row.pop(0)
        if not row:
            ids.pop(0)
        return token_id

    monkeypatch.setattr(Continuation, "_choose", choose)


def test_conversations_with_tools(toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, '[get_weather(city="Oslo")]', "Sunny.", '{"name": "f", "parameters": {}}')
    with load(toy_artifact) as model:
        conversation = Conversation(model, tools=[WEATHER])
        found = list(conversation.send({"role": "user", "content": "Oslo?"}))
        assert [event for event in found if isinstance(event, Call)] == [
            Call(ToolCall("get_weather", {"city": "Oslo"}, "python"))
        ]
        assert conversation.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
        assert conversation.messages[-1]["content"] == ""
        assert (
            "".join(e.text for e in conversation.send({"role": "tool", "content": "25"}) if isinstance(e, Text))
            == "Sunny."
        )
        assert [row["role"] for row in conversation.messages] == ["user", "assistant", "tool", "assistant"]
        conversation.close()
        plain = Conversation(model)
        assert "".join(plain.say("hi")) == '{"name": "f", "parameters": {}}' == plain.messages[-1]["content"]
        assert "tool_calls" not in plain.messages[-1], "without tools an answer is what it says"


def test_encoding_with_tools_and_formats(toy: Any, toy_artifact: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with load(toy_artifact) as model:
        with_tools = model.encode_chat(messages, tools=[WEATHER])
        assert with_tools == [256, ord("T"), *model.encode_chat(messages)[1:]]
        with pytest.raises(
            LlamacError, match="LLC0916 tools: the model's chat template has no place for builtin-tools"
        ):
            model.encode_chat(messages, tools=["brave_search"])
        with pytest.raises(LlamacError, match="LLC0915 chat format: its tokenizer has no control token"):
            model.encode_chat(messages, chat_format="llama3.1")

    def without_template(manifest: dict[str, Any]) -> None:
        manifest["chat_template"] = None
        manifest["tokenizer"]["info"]["chat_format"] = "llama4"

    reason = r"no control token <\|begin_of_text\|>, which the chat format 'llama4'"
    with load(toy.make(without_template)) as model, pytest.raises(LlamacError, match=reason):
        model.chat(messages)
    bare = toy.make(lambda manifest: manifest.update(chat_template=None))
    with load(bare) as model, pytest.raises(LlamacError, match="LLC0814"):
        model.chat(messages)
