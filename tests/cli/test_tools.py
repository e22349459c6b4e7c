"""`llamac run --chat --tools` and `llamac chat --tools`: calls as lines of JSON, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from llamac.cli.main import main
from llamac.runtime.generation import Continuation

ANSWER = 'Wait. <function=get_weather>{"city": "Oslo"}</function>'


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"name": "get_weather", "parameters": {}}]))
    return path


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy's tokens are bytes: it says `ANSWER`."""
    drawn: list[int] = []

    def choose(self: Continuation, logits: object) -> int:
        if not drawn:
            drawn.extend([*ANSWER.encode(), 257])
        return drawn.pop(0)

    monkeypatch.setattr(Continuation, "_choose", choose)


def test_run_prints_calls_as_lines(
    toy_artifact: Path, tools: Path, says: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", toy_artifact, "--chat", "--prompt", "x", "--tools", tools, "--quiet") == 0
    text, call = capsys.readouterr().out.splitlines()
    assert (text, json.loads(call)) == ("Wait. ", {"name": "get_weather", "arguments": {"city": "Oslo"}})
    assert run("run", toy_artifact, "--chat", "--prompt", "x", "--tools", tools, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["tool_calls"] == [{"name": "get_weather", "arguments": {"city": "Oslo"}, "kind": "tag"}]


def test_chat_prints_calls_and_takes_results(
    toy_artifact: Path, tools: Path, says: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n/tool 25\n"))
    assert run("chat", toy_artifact, "--tools", tools) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["name"] for line in lines[1::2]] == ["get_weather"] * 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--tools", "{tools}"], "--tools needs --chat"),
        (["--chat-format", "llama4"], "--chat-format needs --chat"),
        (["--chat", "--tools", "missing.json"], "cannot be read"),
        (["--chat", "--tools", "{artifact}"], "cannot be read"),
        (["--chat", "--tools", "{object}"], "holds no list"),
        (["--chat", "--chat-format", "llama5"], "LLC0915"),
    ],
)
def test_refusals(
    toy_artifact: Path, tools: Path, tmp_path: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "object.json").write_text("{}")
    places = {"tools": tools, "artifact": toy_artifact, "object": tmp_path / "object.json"}
    assert run("run", toy_artifact, "--prompt", "x", *(word.format(**places) for word in words)) == 2
    assert reason in capsys.readouterr().err
