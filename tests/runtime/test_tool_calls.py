"""The tool-call parser: every way of writing a call, streaming equal to feeding all at once, and nothing ever lost."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.text.stream import text_with_tags
from llamac.runtime.text.tools.call import ToolCall, read_calls
from llamac.runtime.text.tools.literals import NotACall, read_call_list, read_literal
from llamac.runtime.text.tools.parser import (
    LONGEST_CALL,
    Call,
    End,
    Event,
    ParsedMessage,
    Text,
    ToolCallParser,
    collect,
    parse,
    parse_ids,
)
from llamac.runtime.text.tools.write import call_text, call_texts

from .test_tokenizer import llama

WEATHER = {"city": "San Francisco", "metric": "celsius"}

SINGLE = [
    ('<|python_tag|>brave_search.call(query="gold")<|eom_id|>', "brave_search", {"query": "gold"}, "builtin"),
    ('brave_search.call(query="a \\"b\\"")', "brave_search", {"query": 'a "b"'}, "builtin"),
    ('<|python_tag|>wolfram_alpha.call(query="a "b" c")', "wolfram_alpha", {"query": 'a "b" c'}, "builtin"),
    ("<|python_tag|>print(7)  # prime\n<|eom_id|>", "code_interpreter", {"code": "print(7)  # prime\n"}, "code"),
    ("<|python_start|>x = [1]\nx<|python_end|><|eom|>", "code_interpreter", {"code": "x = [1]\nx"}, "code"),
    ('{"type": "function", "name": "f", "parameters": {"a": [1, {"b": null}]}}', "f", {"a": [1, {"b": None}]}, "json"),
    (' \n{"name": "f", "arguments": "{\\"a\\": 1}"}\n', "f", {"a": 1}, "json"),
    ('{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}<|eot_id|>', "f", {"a": 1}, "json"),
    ('{"type": "function", "function": "f", "parameters": {"a": 1}}', "f", {"a": 1}, "json"),
    ('{"type": "function", "name": "now"}', "now", {}, "json"),
    ('<|python_tag|>{\n  "name": "f",\n  "parameters": {"n": "10"}\n}<|eom_id|>', "f", {"n": "10"}, "json"),
    ('<|python_start|><|python_end|>{"name": "f", "parameters": {}}<|eot|>', "f", {}, "json"),
    ('<function=f>{"a": {"b": 1}}</function><|eot_id|>', "f", {"a": {"b": 1}}, "tag"),
    ('<function=getWeather>{"location":"New York"}', "getWeather", {"location": "New York"}, "tag"),
    ("<function=f> {'a': 'it is \"so\"', 'b': True}</function>", "f", {"a": 'it is "so"', "b": True}, "tag"),
    ('[get_weather(city="San Francisco", metric="celsius")]<|eot_id|>', "get_weather", WEATHER, "python"),
    ("[get_weather(city='San Francisco', metric='celsius')]", "get_weather", WEATHER, "python"),
    ('<|python_tag|>[f(a="x")]<|eot_id|>', "f", {"a": "x"}, "python"),
    ("[f(a=true, b=null, c=None, d=-1.5e3, e=(1, 2), g={'k': [1]}, h=(3))]", "f",
     {"a": True, "b": None, "c": None, "d": -1500.0, "e": [1, 2], "g": {"k": [1]}, "h": 3}, "python"),
    ('[run(code="""a = "x"\nprint(a)""", b=\'\'\'\'\'\')]', "run", {"code": 'a = "x"\nprint(a)', "b": ""}, "python"),
    (r'[f(a="tab\t\x41\u00e9\ud83d\ude00\q\101" "more")]', "f", {"a": "tab\tAé😀\\qAmore"}, "python"),
    ("[math.sqrt(x=2,)]", "math.sqrt", {"x": 2}, "python"),
]  # fmt: skip

PLAIN = [
    "",
    "Just an answer.",
    "  \n",
    '{"answer": 42}',
    '{"name": "Bob", "age": 3}',
    '{"name": "f", "parameters": {}} is how one would call it',
    '{"name": "f", "parameters": {"a": NaN}}',
    '{"name": "f", "parameters": {"a": 1',
    "[]",
    "[1] See the references.",
    "[link](http://example.org)",
    "[f(1)]",
    "[f(a=1), 42]",
    "[[f(a=1)]]",
    "[(f(a=1),)]",
    "[f(a=1), g()",
    "[f(a=1)] is a call",
    "[f(a=b)]",
    "[f(a=1, a=2)]",
    "[f(a=__import__('os'))]",
    "f(a=1)",
    "brave_search is a tool",
    "You may use brave_search.call(query=\"x\") for that",
    "a < b and <function> or <function=x",
    "<function=f>no json</function>",
    "<function=f>{broken]</function>",
    "<function=a b>{}</function>",
    "<|python_tag|>{\"name\": \"f\", \"param",
    "<|no_such_tag|> <|eot_i",
    "[f(a=" + "[" * 100 + "]" * 100 + ")]",
    "[f(a=1e999)]",
    "[f(a=" + "9" * 5000 + ")]",
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "arguments", "kind"), SINGLE)
def test_every_way_of_writing_one_call(text: str, name: str, arguments: dict[str, Any], kind: str) -> None:
    found = parse(text)
    assert [(call.name, call.arguments, call.kind) for call in found.calls] == [(name, arguments, kind)]
    assert found.text == ""
    assert json.loads(found.calls[0].arguments_json) == arguments
    assert found.calls[0].tagged == text.startswith(("<|python_tag|>", "<|python_start|>b", "<|python_start|>x"))
    assert found.end == ("message" if "eom" in text else "turn" if "eot" in text else None)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_call_is_text_to_the_last_character(text: str) -> None:
    assert parse(text) == ParsedMessage(text, [], None)


def test_several_calls_and_text_around_them() -> None:
    found = parse('[f(a=1), g(), h.i(b="x")]<|eot|>')
    assert [(call.name, call.arguments) for call in found.calls] == [("f", {"a": 1}), ("g", {}), ("h.i", {"b": "x"})]
    found = parse('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}\n{"name": "h", "parameters": {}}')
    assert [call.name for call in found.calls] == ["f", "g", "h"]
    assert [
        call.name for call in parse('[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}]').calls
    ] == ["f", "g"]
    found = parse('First <function=f>{"a": 1}</function> then <function=g>{}</function>.<|eot_id|>more<|eom_id|>')
    assert (found.text, [call.name for call in found.calls]) == ("First  then .more<|eom_id|>", ["f", "g"])
    assert found.end == "turn"
    found = parse('Let me look.<|python_tag|>brave_search.call(query="x")<|eom_id|>')
    assert (found.text, found.calls[0].name, found.end) == ("Let me look.", "brave_search", "message")


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring texts as one; empty ones never come."""
    joined: list[Event] = []
    for event in events:
        if isinstance(event, Text):
            assert event.text
            if joined and isinstance(joined[-1], Text):
                joined[-1] = Text(joined[-1].text + event.text)
                continue
        joined.append(event)
    return joined


def streamed(pieces: list[str]) -> list[Event]:
    parser = ToolCallParser()
    return merged([*(event for piece in pieces for event in parser.feed(piece)), *parser.finish()])


@pytest.mark.parametrize("text", [row[0] for row in SINGLE] + PLAIN)
def test_character_by_character_is_the_same(text: str) -> None:
    assert streamed(list(text)) == streamed([text])


FRAGMENTS = st.sampled_from(
    [row[0] for row in SINGLE]
    + [text for text in PLAIN if len(text) < 60]
    + ["<|python_tag|>", "<|python_start|>", "<|python_end|>", "<|eot_id|>", "<|eom|>", "<function=f>", "</function>"]
    + [
        "[f(",
        "a=1",
        ")]",
        "{",
        "}",
        '"',
        "'",
        "\\",
        "\n",
        " ",
        ";",
        ",",
        "<",
        "<|",
        "[",
        "]",
        "(",
        '"""',
        "brave_search.call(",
    ]
    + ['{"name": "f", "parameters": {', '"a": 1}}', "text ", "<funct", "ion=g>{}"]
)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), parts=st.lists(FRAGMENTS | st.text(max_size=4), max_size=8))
def test_any_cutting_gives_the_same_events(data: st.DataObject, parts: list[str]) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert streamed(pieces) == streamed([text]) == streamed(list(text))
    whole = parse(text)
    if not whole.calls and not any(mark in text for mark in ("<|python", "<|e")):
        assert whole.text == text


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SIMPLE = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | TEXTS
VALUES = st.recursive(
    SIMPLE | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    calls=st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3),
    kind=st.sampled_from(["json", "tag", "python"]),
    end=st.sampled_from(["", "<|eot_id|>", "<|eom|>"]),
)
def test_written_calls_are_read_back(calls: list[tuple[str, dict[str, Any]]], kind: Any, end: str) -> None:
    written = [ToolCall(name, arguments, kind) for name, arguments in calls if name not in ("brave_search",)]
    text = "; ".join(call_texts(written)) if kind == "json" else "".join(call_texts(written))
    if any(mark in text for mark in ("<|e", "<|p")):
        return
    found = parse(text + end)
    assert (found.calls, found.text) == (written, "")
    assert read_calls([call.to_message() for call in written], "x", "json") == written


def test_builtin_calls_and_code_are_read_back() -> None:
    for call in (
        ToolCall("brave_search", {"query": 'a "quoted" \\ thing\n'}, "builtin", tagged=True),
        ToolCall("code_interpreter", {"code": "for x in []:\n    pass"}, "code", tagged=True),
    ):
        assert parse("<|python_tag|>" + call_text(call) + "<|eom_id|>").calls == [call]
    with pytest.raises(LlamacError, match="LLC0914 call of brave_search"):
        call_text(ToolCall("brave_search", {}, "builtin"))


def test_text_is_shown_as_soon_as_it_cannot_be_a_call() -> None:
    parser = ToolCallParser()
    assert parser.feed("{") == []
    assert parser.feed('"an') == []
    assert parser.feed('swer": ') == [Text('{"answer": ')]
    assert parser.feed("42 <") == [Text("42 ")]
    assert parser.feed("b") == [Text("<b")]
    parser = ToolCallParser()
    assert parser.feed("[f(a=1)]") == [] and parser.feed(" x") == [Text("[f(a=1)] x")]
    parser = ToolCallParser()
    assert parser.feed("Hello") == [Text("Hello")]
    assert parser.feed('<function=f>{"a": 1}') == []
    assert parser.feed("!") == [Call(ToolCall("f", {"a": 1}, "tag")), Text("!")]
    assert parser.finish() == [End(None)]


def timed(text: str, piece: int) -> float:
    start = time.perf_counter()
    streamed([text[place : place + piece] for place in range(0, len(text), piece)])
    return time.perf_counter() - start


HOSTILE = ["<function=f>{", "<function=f>{}", "[f(a=", "[", '{"name": "f", "parameters": {}};', "<|python_tag|>"]
HOSTILE += ["<|python_end|>", "<", "\\", '"', "[f(a='", '"""', " "]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_takes_time_in_proportion(unit: str) -> None:
    for prefix in ("", "<|python_tag|>", "[f(a=", '[f(a="', '{"name": "', "<function=f>{"):
        text = prefix + unit * (150_000 // len(unit))
        assert timed(text, 100_000) < 4
    assert timed(unit * (30_000 // len(unit)), 7) < 3


@pytest.mark.parametrize(
    "before", [LONGEST_CALL - 30, LONGEST_CALL - 1, LONGEST_CALL, LONGEST_CALL + 5, LONGEST_CALL + 40]
)
@pytest.mark.parametrize(
    "form", ['[f(a="{}")]', '<function=f>{{"a": "{}"}}</function>', "<|python_tag|>{}<|eom_id|>", " {}[f()]"]
)
def test_the_longest_call_is_the_same_for_any_cutting(before: int, form: str) -> None:
    filler = " " if form.startswith(" ") else "x"
    text = form.format(filler * before) + "<|eot_id|> after"
    assert streamed([text]) == streamed([text[:before], *text[before : before + 120], text[before + 120 :]])


def test_ids_keep_the_tags_that_matter() -> None:
    tokenizer = llama(3)
    ids = tokenizer.encode('<|begin_of_text|><|python_tag|>brave_search.call(query="é")<|eom_id|>', allow_special=True)
    assert text_with_tags(tokenizer, ids) == '<|python_tag|>brave_search.call(query="é")<|eom_id|>'
    assert parse_ids(tokenizer, ids).calls == [ToolCall("brave_search", {"query": "é"}, "builtin", tagged=True)]


def test_literals_that_are_refused() -> None:
    for text in (
        "",
        "(",
        "f",
        "1 2",
        "{1}",
        "'a",
        "01",
        "1_",
        "0x10",
        "b'a'",
        "f'{x}'",
        "a.b",
        "-",
        "1+1",
        "{[]: 1}",
        r"'\Uffffffff'",
    ):
        with pytest.raises(NotACall):
            read_literal(text)
    assert read_literal(" { 'a' : [ 1 , 2.5 , ] , 2 : ( ) } ") == {"a": [1, 2.5], "2": []}
    assert read_call_list("[ f ( a = 1 ) ]") == [("f", {"a": 1})]


def test_calls_of_messages() -> None:
    openai = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert read_calls([openai], "m", "json") == [ToolCall("f", {"a": 1}, "json")]
    assert read_calls([{"name": "brave_search", "arguments": {"query": "x"}}], "m", "json")[0].kind == "builtin"
    assert read_calls([{"name": "code_interpreter", "arguments": {"code": "x"}}], "m", "json")[0].tagged
    assert read_calls(None, "m", "json") == []
    for bad in (
        "x",
        [{}],
        [1],
        [{"name": "f", "arguments": "{"}],
        [{"name": "f", "arguments": []}],
        [{"name": "f", "kind": "x"}],
    ):
        with pytest.raises(LlamacError, match="LLC0914 m"):
            read_calls(bad, "m", "json")


def test_code_that_was_cut_off_is_no_call() -> None:
    assert parse("<|python_tag|>print(1", cut_off=True) == ParsedMessage("<|python_tag|>print(1")
    assert parse("<|python_tag|>print(1)<|eom_id|>", cut_off=True).calls[0].arguments == {"code": "print(1)"}
    assert parse('<|python_tag|>{"name": "f", "parameters": {}}', cut_off=True).calls == [
        ToolCall("f", {}, "json", tagged=True)
    ]


def test_collect_sums_events() -> None:
    call = ToolCall("f", {})
    assert collect([Text("a"), Call(call), Text("b"), End("turn")]) == ParsedMessage("ab", [call], "turn")
