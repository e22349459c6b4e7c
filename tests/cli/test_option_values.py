"""Values of options that are out of any range, and verbs that once took one thing for another."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import pytest

from llamac.cli.main import main
from llamac.cli.options import parse_processors
from llamac.cli.sizes import ByteSize
from llamac.errors import LlamacError
from llamac.passes.pipelines import Share, cpu_pipeline, gpu_pipeline, onnx_pipeline, parse_quantization, plain_layers
from llamac.target import INSTRUCTION_SETS
from llamac.transform.pipeline import pipeline_text

Capture = pytest.CaptureFixture[str]


def _run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1), ("512m", 512 << 20), ("2GiB", 2 << 30), ("3kB", 3 << 10), ("2T", 2 << 40), ("1I", None), ("0", None),
     ("²", None), ("-1", None), ("1.5G", None), ("", None), ("G", None), ("9" * 5000, None)],
)  # fmt: skip
def test_sizes(text: str, expected: int | None) -> None:
    if expected is not None:
        assert ByteSize().convert(text, None, None) == expected
        return
    with pytest.raises(click.BadParameter, match="is no size such as 512M or 2G"):
        ByteSize().convert(text, None, None)


@pytest.mark.parametrize("text", ["0-99999999999", "5-2", "9" * 5000, "1-", "-1", "a", "", "²"])
def test_processors_that_are_none(text: str) -> None:
    with pytest.raises(LlamacError, match="LLC0101 --pin"):
        parse_processors(text)


def test_processors() -> None:
    assert parse_processors("0,2-4") == [0, 2, 3, 4]


def test_the_pipeline_is_that_of_the_target(capsys: Capture) -> None:
    """Every kind of target has its own; a divided one has a rank's, and the cache is what `compile` would take."""
    layers, keep, f32 = plain_layers(1), parse_quantization("keep"), parse_quantization("f32")
    expected = {
        ("x86-64-v3", "keep"): cpu_pipeline(layers, keep, "f16", 512),
        ("tvm:llvm", "keep"): cpu_pipeline(layers, keep, "f16", 512),
        ("h100", "keep"): gpu_pipeline(layers, keep, "f16"),
        ("h100:8", "keep"): gpu_pipeline(layers, keep, "f16", share=Share(8)),
        ("onnxruntime", "keep"): onnx_pipeline(layers, keep, joined=True),
        ("x86-64-v3", "f32"): cpu_pipeline(layers, f32, "f32", 512),
    }
    for (target, scheme), steps in expected.items():
        code, out, _ = _run(capsys, "passes", "--pipeline", target, "--quantize", scheme)
        assert (code, out) == (0, f"{pipeline_text(steps)}\n"), target


def test_explore_shows_the_pipeline_of_its_target(capsys: Capture, tmp_path: Path) -> None:
    pages = {}
    for target, own in (("h100", "fuse-row-append"), ("x86-64-v3:2", "shard-tensors")):
        path = tmp_path / f"{own}.html"
        words = ["explore", "tiny", "--random-weights", 1, "--target", target, "-o", path]
        assert _run(capsys, *words)[0] == 0
        pages[own] = path.read_text("utf-8")
    assert all(f'"name":"{own}"' in text for own, text in pages.items())
    assert '"name":"roll-layers"' not in pages["fuse-row-append"]


def test_explore_leaves_no_half_page(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = _run(capsys, "explore", "tiny", "--random-weights", 1, "-o", tmp_path / "page.html")
    assert (code, list(tmp_path.iterdir())) == (2, []) and "No space left" in err


def test_targets_lists_the_instruction_sets(capsys: Capture) -> None:
    _, out, _ = _run(capsys, "targets")
    assert all(any(line.split()[:1] == [name] for line in out.splitlines()) for name in INSTRUCTION_SETS)
    found = json.loads(_run(capsys, "targets", "--json")[1])
    assert [row["name"] for row in found["instruction_sets"]] == list(INSTRUCTION_SETS)


def test_opt_refuses_bytes_that_are_no_text(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    code, _, err = _run(capsys, "opt", "-")
    assert code == 2 and err.startswith("LLC0101 -: cannot be read")


def test_opt_refuses_a_folder_that_is_a_file(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ["opt", "--from", "tiny", "--random-weights", 1, "--passes", "raise-linear"]
    code, _, err = _run(capsys, *words, "--print-ir-dir", tmp_path / "file")
    assert code == 2 and err.startswith("LLC0101 --print-ir-dir: cannot write")


def test_verify_runs_either_nothing_or_another_system(capsys: Capture, toy_artifact: Path) -> None:
    code, _, err = _run(capsys, "verify", toy_artifact, "--hashes-only", "--against", "tvm")
    assert code == 2 and err.startswith("LLC0101 --against")


def test_a_certificate_that_does_not_hold_is_no_wrong_input(
    capsys: Capture, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(recorded: object) -> None:
        raise LlamacError("LLC0507", "fuse-gqa", "logits differ")

    monkeypatch.setattr("llamac.certificate.replay", wrong)
    path = toy.make(lambda manifest: manifest.update(certificate={"seed": 1}))
    code, _, err = _run(capsys, "verify", path)
    assert code == 1 and err.startswith("LLC0507 fuse-gqa")


def test_diverge_asks_for_tvm_before_any_work(
    capsys: Capture, toy_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise LlamacError("LLC0940", "apache-tvm", "TVM is not installed")

    monkeypatch.setattr("llamac.divergence.require_tvm", missing)
    code, _, err = _run(capsys, "diverge", toy_artifact, "tvm", "--ids", "1")
    assert code == 2 and err.startswith("LLC0940")


@pytest.mark.parametrize("bound", ["nan", "-1", "inf"])
def test_diverge_refuses_a_tolerance_that_is_none(capsys: Capture, toy_artifact: Path, bound: str) -> None:
    code, _, err = _run(capsys, "diverge", toy_artifact, "interpreter", "--ids", "1", "--tolerance", bound)
    assert code == 2 and err.startswith("LLC0101 --tolerance")


@pytest.mark.parametrize(
    ("verb", "words", "where"),
    [
        ("run", ["--prompt", "a", "--logprobs", "1"], "--logprobs"),
        ("run", ["--prompt", "a", "--draft-tokens", "4"], "--draft-tokens"),
        ("chat", ["--lookup-ngram", "2"], "--lookup-ngram"),
        ("bench", ["--draft-tokens", "4"], "--draft-tokens"),
    ],
)
def test_options_that_would_do_nothing(
    capsys: Capture, toy_artifact: Path, verb: str, words: list[str], where: str
) -> None:
    code, _, err = _run(capsys, verb, toy_artifact, *words)
    assert code == 2 and err.startswith(f"LLC0101 {where}: ")


def test_a_narrow_terminal_gets_whole_numbers(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drawn table would cut 32,768 to 32,7… there."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    words = ["plan", "llama-3.1-8b", "--target", "h100", "--what-if", "--quantize", "fp8", "--tp", 1, "--batch", 1]
    for columns, is_drawn in (("80", False), ("200", True)):
        monkeypatch.setenv("COLUMNS", columns)
        code, out, _ = _run(capsys, *words, "--context", 32768)
        assert code == 0 and "32,768" in out and ("┃" in out) == is_drawn


def test_the_help_of_export_lists_every_form(capsys: Capture) -> None:
    from llamac.export.formats import FORMATS

    code, out, _ = _run(capsys, "export", "--help")
    assert code == 0
    assert all(f"\n  {form.name}: {form.summary}\n" in out for form in FORMATS.values())


def test_an_export_to_a_read_only_system_says_so(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even removing what is not there is refused."""

    def refused(path: Path, **_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    words = ["export", "tiny", "--random-weights", 1, "--to", "hf", "-o", tmp_path / "h"]
    code, _, err = _run(capsys, *words)
    monkeypatch.undo()
    assert code == 2 and err.startswith("LLC0925 h: it cannot be written: Read-only file system")
