"""The Modelfile: golden texts, values read back as Ollama reads them, templates against the runtime's formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from go_template import Json, render

from llamac.errors import LlamacError
from llamac.export.entry import ExportResult, export
from llamac.export.gguf.chat import JINJA, chat_format
from llamac.export.gguf.modelfile import quoted
from llamac.export.gguf.ollama_templates import TEMPLATES
from llamac.models.checkpoint import Checkpoint, GenerationDefaults, TokenizerSource
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.runtime.text.chat import ChatTemplate
from llamac.runtime.text.formats.pieces import render as rendered
from llamac.runtime.text.formats.registry import FORMATS, find_format
from llamac.runtime.text.tools.offered import read_tools

Row = dict[str, Any]
CHATML = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"


def checkpoint(format_name: str | None = None, template: str | None = None, **changes: Any) -> Checkpoint:
    """A tiny model with a vocabulary of bytes, `</s>` at 2 and `<|eot_id|>` at 259."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|eot_id|>"]
    stored = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 260,
        "token_types": [2, 3, 3, *[6] * 256, 3],
        "add_space_prefix": True,
    }
    info: dict[str, object] = {"bos_id": 1, "eos_id": 2, "add_bos": True}
    info |= {} if format_name is None else {"chat_format": format_name}
    tokenizer = TokenizerSource("gguf-spm", {"vocabulary.json": json.dumps(stored).encode()}, info)
    made = random_checkpoint(replace(preset("tiny"), vocab_size=260), 0)
    settings = GenerationDefaults(1, True, (2, 259), {}, {"temperature": 0.6, "top_p": 0.9})
    return replace(
        made, tokenizer=tokenizer, chat_template=template, generation=settings, license="llama3.1", **changes
    )


def folder(source: Checkpoint, path: Path, **options: Any) -> tuple[str, ExportResult]:
    result = export(source, to="gguf", output=path, **options)
    assert sorted(p.name for p in path.iterdir()) == ["Modelfile", "llamac-export.json", "model.gguf"]
    return (path / "Modelfile").read_text(), result


def test_the_whole_text(tmp_path: Path) -> None:
    text, _ = folder(checkpoint("llama3"), tmp_path / "m", check=True)
    assert (
        text
        == '''\
FROM ./model.gguf
TEMPLATE """{{- if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>
{{- end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>

{{ .Content }}{{ if not $last }}<|eot_id|>{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end }}"""
PARAMETER stop "</s>"
PARAMETER stop "<|eot_id|>"
PARAMETER temperature 0.6
PARAMETER top_p 0.9
PARAMETER num_ctx 512
LICENSE "llama3.1"
'''
    )


def test_an_unknown_template_is_left_to_ollama(tmp_path: Path) -> None:
    text, result = folder(checkpoint(template=CHATML), tmp_path / "m")
    assert text.splitlines()[:2] == ["FROM ./model.gguf", 'PARAMETER stop "</s>"']
    assert any((entry.where, entry.what) == ("Modelfile TEMPLATE", "left out") for entry in result.ledger)


def test_num_ctx(tmp_path: Path) -> None:
    long = checkpoint()
    long = replace(long, config=replace(long.config, context_length=131_072))
    text, result = folder(long, tmp_path / "a")
    assert "PARAMETER num_ctx 8192\n" in text
    assert any(entry.where == "Modelfile num_ctx" for entry in result.ledger)
    assert "PARAMETER num_ctx 20000\n" in folder(long, tmp_path / "b", options={"num_ctx": "20000"})[0]
    for wrong in ("0", "x", "131073", "-1"):
        with pytest.raises(LlamacError, match="LLC0924 --option num_ctx"):
            folder(long, tmp_path / "c", options={"num_ctx": wrong})


def parsed(text: str) -> list[tuple[str, str]]:
    """Instructions and values, as the states of Ollama's parser find them (parser/parser.go)."""
    found, rest = [], text
    while rest:
        name, _, rest = rest.partition(" ")
        if name == "PARAMETER":
            second, _, rest = rest.partition(" ")
            name = f"{name} {second}"
        value, open_quotes = "", '"""' if rest.startswith('"""') else '"' if rest.startswith('"') else ""
        for place, character in enumerate(rest):
            length = len(open_quotes)
            closed = len(value) >= 2 * length and value.strip().endswith(open_quotes)
            if character in "\r\n" and (not open_quotes or closed):
                found.append((name, value.strip()[length : len(value.strip()) - length]))
                rest = rest[place + 1 :]
                break
            value += character
        else:
            raise AssertionError(f"{name} has no end")
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_value_comes_back(name: str, tmp_path: Path) -> None:
    text, _ = folder(checkpoint(name), tmp_path / "m")
    values = dict(parsed(text))
    assert values["TEMPLATE"] == TEMPLATES[name] and values["FROM"] == "./model.gguf"
    assert values["LICENSE"] == "llama3.1" and values["PARAMETER stop"] == "<|eot_id|>"


@pytest.mark.parametrize(
    "value", ["a", "", " a ", 'say "x"', '"quoted"', 'a\n"', "a\n\nb\n", "tab\tand\nline", 'x """ y', '"""x', 'x"\n"y']
)
def test_values_that_can_be_quoted(value: str) -> None:
    written = quoted(value)
    assert written is not None
    assert parsed(f"LICENSE {written}\nFROM x\n") == [("LICENSE", value), ("FROM", "x")]


@pytest.mark.parametrize("value", ['a """\nb', 'a"""  \nb', "zero\u200bwidth", "\x07"])
def test_values_that_no_modelfile_can_hold(value: str, tmp_path: Path) -> None:
    assert quoted(value) is None
    text, result = folder(replace(checkpoint("llama3"), license=value), tmp_path / "m")
    assert "LICENSE" not in text
    assert any(entry.where == "Modelfile LICENSE" and entry.kind == "ignored" for entry in result.ledger)


def said(role: str, content: str) -> Row:
    return {"role": role, "content": content}


TALKS = {
    "one": [said("user", "Who are you?")],
    "turns": [said("user", "a\nb"), said("assistant", "c"), said("user", 'd "e" {{ f }}')],
    "system": [said("system", "Be brief."), said("user", "a"), said("assistant", "b"), said("user", "c")],
}


def through_go(name: str, messages: list[Row], tools: list[Row] | None = None) -> str:
    """What Ollama would hand to the model."""
    system = "\n\n".join(row["content"] for row in messages if row["role"] == "system")
    rows = [{"Role": row["role"], "Content": row["content"], "ToolCalls": row.get("calls")} for row in messages]
    return render(TEMPLATES[name], {"System": system, "Messages": rows, "Tools": tools})


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_write_what_the_runtime_writes(name: str, talk: str) -> None:
    messages = TALKS[talk]
    if talk == "system" and "guard" in name:
        messages = messages[1:3]  # a Guard judges two voices, and here the second
    wanted = rendered(find_format(name).pieces(messages))
    assert through_go(name, messages) == wanted.removeprefix("<|begin_of_text|>").removeprefix("<s>")


def test_every_format_has_a_template() -> None:
    assert set(TEMPLATES) == set(FORMATS)


def test_tools_are_offered_as_llama_3_1_knows_them() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    tool = Json(type="function", function=function)
    runtime = rendered(find_format("llama3.1").pieces(TALKS["system"], read_tools([tool])))
    found = through_go("llama3.1", TALKS["system"], [tool])
    compact = runtime.replace(json.dumps(tool, indent=4), json.dumps(tool))
    assert found == compact.removeprefix("<|begin_of_text|>")


@pytest.mark.parametrize("name", ["llama3.1", "llama3.2", "llama4"])
def test_calls_and_results(name: str) -> None:
    call = {"Function": {"Name": "f", "Arguments": Json(a=1)}}
    messages = [said("user", "?"), said("assistant", "") | {"calls": [call]}, said("tool", "5")]
    found = through_go(name, messages, [Json(name="f")])
    head, end, turn = ("<|header_start|>", "<|header_end|>", "<|eot|>") if name == "llama4" else HEADERS
    assert (
        f'{head}assistant{end}\n\n{{"name": "f", "parameters": {{"a": 1}}}}{turn}{head}ipython{end}\n\n5{turn}' in found
    )
    assert found.endswith(f"{head}assistant{end}\n\n")


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", JINJA)
def test_the_jinja_templates_write_what_the_runtime_writes(name: str, talk: str) -> None:
    begin, end = ("<s>", "</s>") if name == "llama2" else ("<|begin_of_text|>", "")
    found = ChatTemplate(JINJA[name]).render(TALKS[talk], bos_token=begin, eos_token=end)
    assert found == rendered(find_format(name).pieces(TALKS[talk]))


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<|start_header_id|> {{ 'Environment: ipython' }}", "llama3.1"),
        ("<|start_header_id|>", "llama3"),
        ("<|header_start|>", "llama4"),
        ("[INST] <<SYS>>", "llama2"),
        ("[INST] <BEGIN UNSAFE CONTENT CATEGORIES>", "llama-guard-2"),
        ("<|start_header_id|> <BEGIN UNSAFE CONTENT CATEGORIES> S14: Code Interpreter Abuse.", "llama-guard-3"),
        ("<|start_header_id|> <BEGIN UNSAFE CONTENT CATEGORIES>", "llama-guard-3-1b"),
        ("<|header_start|> <BEGIN UNSAFE CONTENT CATEGORIES>", "llama-guard-4"),
        (CHATML, None),
    ],
)
def test_formats_are_told_from_templates(template: str, name: str | None) -> None:
    assert chat_format(checkpoint(template=template)) == name
