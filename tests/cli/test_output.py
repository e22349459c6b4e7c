"""What the command line prints where the output is no UTF-8 terminal: full disks, closed pipes, other encodings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from llamac.cli.main import main

COMMAND = [sys.executable, "-m", "llamac"]
BROKEN = "caf\udcc3"  # a word that ends within a character, as Python gives it


def _process(*words: object, stdout: int | IO[Any] = subprocess.PIPE, **environment: str) -> tuple[int, bytes, str]:
    command = [*COMMAND, *(os.fsencode(str(word)) for word in words)]
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}, check=False, timeout=120
    )
    return done.returncode, done.stdout or b"", done.stderr.decode("utf-8")


def test_a_disk_that_is_full_is_one_line(toy_artifact: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = _process("inspect", toy_artifact, stdout=full)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("LLC0702 stdout: the output cannot be written: No space left on device")


@pytest.mark.parametrize("words", [("inspect", "{artifact}", "--members"), ("inspect", "missing.llamac", "--json")])
def test_a_reader_that_has_gone(toy_artifact: Path, words: tuple[str, ...]) -> None:
    command = [*COMMAND, *(word.format(artifact=toy_artifact) for word in words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    expected = "LLC0704" if "--json" in words else ""
    assert err.startswith(expected) and err.count("\n") == bool(expected), err


def test_no_output_at_all(toy_artifact: Path) -> None:
    shell = ["bash", "-c", '"$@" >&-', "bash", *COMMAND, "inspect", str(toy_artifact)]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_other_encodings(toy_artifact: Path, encoding: str) -> None:
    words = ["run", toy_artifact, "--prompt", "€ é ab", "--echo", "--max-new-tokens", 2, "--quiet"]
    code, out, err = _process(*words, PYTHONIOENCODING=encoding)
    assert (code, err) == (0, "")
    assert out.endswith(b" abcd\n") and (encoding == "ascii" or "é".encode(encoding) in out)
    code, out, err = _process(*words, "--json", PYTHONIOENCODING=encoding)
    assert (code, err) == (0, "") and json.loads(out.decode(encoding))["text"] == "€ é abcd"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    code, out, err = _process("inspect", tmp_path / f"{BROKEN}.llamac", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "LLC0704")
    assert err.startswith("LLC0704 ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["--prompt", BROKEN], ["--prompt", "a", "--stop", BROKEN], ["--prompt", "a", "--chat", "--system", BROKEN]],
)
def test_texts_that_are_not_utf8(capsys: pytest.CaptureFixture[str], toy_artifact: Path, words: list[str]) -> None:
    assert main(["run", str(toy_artifact), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("LLC0101 llamac run: ") and "the text is not UTF-8" in err


def test_a_hostile_name_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str], toy: Any) -> None:
    path = toy.make(lambda manifest: manifest["model"].update(name="x\x1b[2J\x9b2J\rtoy"))
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert r"x\x1b[2J\x9b2J\rtoy" in out
    assert not any(c in out for c in "\x1b\x9b\r")


def test_no_verb_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: llamac") and "compile" in err
