"""`--speculate` and `--draft` of run, chat and bench."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamac.cli.main import main

TEXT = "abcdefghijklmnop abcdef"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def ways(artifact: Path) -> list[list[object]]:
    return [["--speculate", "lookup"], ["--draft", artifact], ["--speculate", "lookup", "--draft", artifact]]


def test_run_says_what_was_guessed(capsys: pytest.CaptureFixture[str], toy_artifact: Path) -> None:
    words = ["run", toy_artifact, "--prompt", TEXT, "--max-new-tokens", 9, "--json"]
    plain = json.loads(run(capsys, *words)[1])
    assert plain["speculation"] is None
    for way in ways(toy_artifact):
        code, out, _ = run(capsys, *words, *way, "--draft-tokens", 4)
        found = json.loads(out)
        assert (code, found["text"], found["token_ids"]) == (0, plain["text"], plain["token_ids"])
        counts = found["speculation"]
        assert counts["accepted"] == counts["drafted"] > 3
        assert counts["tokens_per_step"] == pytest.approx(1 + counts["accepted"] / counts["steps"], abs=1e-4)
    off = json.loads(run(capsys, *words, "--draft", toy_artifact, "--speculate", "off")[1])
    assert off["speculation"] is None


def test_the_line_about_speed_tells_too(capsys: pytest.CaptureFixture[str], toy_artifact: Path) -> None:
    words = ["run", toy_artifact, "--prompt", TEXT, "--max-new-tokens", 9, "--speculate", "lookup", "--lookup-ngram", 2]
    code, out, err = run(capsys, *words)
    assert (code, out) == (0, "ghijklmno\n") and "guesses right" in err and "tokens a step" in err


def test_chat_guesses(toy_artifact: Path) -> None:
    answers = []
    for way in ([], *ways(toy_artifact)):
        words = [sys.executable, "-m", "llamac", "chat", toy_artifact, "--max-new-tokens", 12, *way]
        done = subprocess.run(list(map(str, words)), input="a\nabc abc\n", capture_output=True, text=True, check=True)
        answers.append(done.stdout)
    assert len(set(answers)) == 1


def test_bench_guesses(capsys: pytest.CaptureFixture[str], toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamac.runtime import read_bandwidth

    monkeypatch.setattr(read_bandwidth, "BUFFER_BYTES", 8 << 20)
    words = ["bench", toy_artifact, "--prompt-tokens", 20, "--new-tokens", 8, "--repeats", 1]
    assert json.loads(run(capsys, *words, "--json")[1])["speculation"] is None
    code, out, _ = run(capsys, *words, "--draft", toy_artifact, "--json")
    counts = json.loads(out)["speculation"]
    assert code == 0 and counts["accepted"] == counts["drafted"] > 0
    code, out, _ = run(capsys, *words, "--draft", toy_artifact)
    assert code == 0 and "tokens a step" in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--speculate", "draft"], "LLC0841"),
        (["--speculate", "lookup", "--draft-tokens", "0"], "LLC0841"),
        (["--speculate", "lookup", "--lookup-ngram", "99"], "LLC0841"),
        (["--draft", "nowhere.llamac"], "LLC0704"),
        (["--speculate", "guess"], "LLC0101"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], toy_artifact: Path, words: list[str], code: str) -> None:
    status, out, err = run(capsys, "run", toy_artifact, "--prompt", "a", *words)
    assert status == 2 and out == "" and err.startswith(code)


def test_a_draft_with_another_vocabulary(capsys: pytest.CaptureFixture[str], toy: Any, toy_artifact: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["model"]["vocab_size"] = 300

    status, _, err = run(capsys, "run", toy_artifact, "--prompt", "a", "--draft", toy.make(edit))
    assert status == 2 and err.startswith("LLC0840 toy: its vocabulary holds 300 tokens, that of toy 260")
