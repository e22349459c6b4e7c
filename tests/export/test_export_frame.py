"""The frame around every export: what is refused before work starts, and that nothing half-written stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamac.cli.main import main
from llamac.errors import LlamacError
from llamac.export import formats
from llamac.export.entry import export
from llamac.export.formats import FORMATS, Format
from llamac.export.place import RECORD
from llamac.export.request import Check, ExportRequest

PRESET = "tiny"


@dataclass
class ToyExporter:
    """Writes one file; what it does then is up to the test."""

    on_write: Callable[[ExportRequest, Path], None] = lambda request, place: None
    checks: tuple[Check, ...] = (Check("weights", True, "12 equal"),)

    def write(self, request: ExportRequest, place: Path) -> None:
        target = place / "model.txt" if place.is_dir() else place
        target.write_text(" ".join(request.weights().names[:2]))
        self.on_write(request, place)

    def check(self, request: ExportRequest, place: Path) -> Iterator[Check]:
        yield from self.checks


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyExporter:
    """A format called `toy` is in the table."""
    exporter = ToyExporter()

    class ToyFormat(Format):
        def exporter(self) -> ToyExporter:
            return exporter

    row = ToyFormat("toy", "", "a toy", ("keep", "int4"), suffix=".toy", options={"colour": "of the file"})
    monkeypatch.setitem(formats.FORMATS, "toy", row)
    return exporter


def run(output: Path, **options: object) -> None:
    export(PRESET, to="toy", output=output, random_weights=1, **options)  # type: ignore[arg-type]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_tells_what_it_was_made_of(toy: ToyExporter, tmp_path: Path) -> None:
    toy.on_write = lambda request, place: request.note("default", "layers.0", "something", "for a reason")
    run(tmp_path / "out", check=True)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["format"], record["quantization"]) == ("toy", "keep")
    assert record["checks"] == [{"name": "weights", "passed": True, "measured": "12 equal", "bound": ""}]
    assert [entry["what"] for entry in record["ledger"]][-1] == "something"
    assert record["files"]["model.txt"]["bytes"] == (tmp_path / "out" / "model.txt").stat().st_size


def test_a_suffix_makes_one_file(toy: ToyExporter, tmp_path: Path) -> None:
    run(tmp_path / "out.toy")
    assert left_in(tmp_path) == ["out.toy"] and (tmp_path / "out.toy").read_text() == "embed layers.0.attn_norm"


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ((Check("logits", False, "apart by 0.3", "1e-4"), Check("more", False, "x")), "0.3, allowed 1e-4 (1 other"),
        ((), "nothing to check"),
    ],
)
def test_a_failed_check_leaves_nothing(
    toy: ToyExporter, tmp_path: Path, checks: tuple[Check, ...], message: str
) -> None:
    toy.checks = checks
    with pytest.raises(LlamacError) as caught:
        run(tmp_path / "out", check=True)
    assert caught.value.code == "LLC0921" and message in caught.value.message()
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("output", ["out", "out.toy"])
def test_an_error_leaves_what_was_there(toy: ToyExporter, tmp_path: Path, output: str) -> None:
    run(tmp_path / output)
    before = [path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()]

    def fail(request: ExportRequest, place: Path) -> None:
        raise KeyboardInterrupt

    toy.on_write = fail
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / output, overwrite=True)
    assert [path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()] == before
    assert left_in(tmp_path) == [output]


def test_replacing_is_asked_for(toy: ToyExporter, tmp_path: Path) -> None:
    for output in (tmp_path / "out", tmp_path / "out.toy"):
        run(output)
        with pytest.raises(LlamacError, match="LLC0922"):
            run(output)
        run(output, overwrite=True)
    assert left_in(tmp_path) == ["out", "out.toy"]


def test_a_strangers_folder_is_never_replaced(toy: ToyExporter, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").write_text("dear")
    with pytest.raises(LlamacError, match=f"LLC0922 home: .* has no {RECORD}"):
        run(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letters").read_text() == "dear"
    (tmp_path / "file").write_text("")
    with pytest.raises(LlamacError, match="LLC0922 file: a file is there"):
        run(tmp_path / "file", overwrite=True)


def test_strict_refuses_what_is_left_out(toy: ToyExporter, tmp_path: Path) -> None:
    toy.on_write = lambda request, place: request.note(
        "unquantized", "head", "kept as f32", "the form has no int4 head"
    )
    with pytest.raises(LlamacError, match="LLC0105 head"):
        run(tmp_path / "out", strict=True)
    assert left_in(tmp_path) == []


def test_a_full_disk_is_said_as_such(toy: ToyExporter, tmp_path: Path) -> None:
    def fail(request: ExportRequest, place: Path) -> None:
        raise OSError(28, "No space left on device")

    toy.on_write = fail
    with pytest.raises(LlamacError, match="LLC0702"):
        run(tmp_path / "out")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--to", "gguff"], "LLC0920", "did you mean 'gguf'"),
        (["--to", "toy", "--quantize", "int5"], "LLC0923", "did you mean 'int4'"),
        (["--to", "toy", "--option", "color=red"], "LLC0924", "did you mean 'colour'"),
        (["--to", "toy", "--option", "colour"], "LLC0924", "no NAME=VALUE"),
        (["--to", "toy", "-o", "nowhere/out"], "LLC0925", "folder does not exist"),
    ],
)
def test_bad_command_lines(
    toy: ToyExporter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", PRESET, "--random-weights", "1", "-o", "out", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(code) and message in said
    assert left_in(tmp_path) == []


def test_the_command_line_prints_the_checks(
    toy: ToyExporter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", PRESET, "--random-weights", "1", "--to", "toy", "-o", str(tmp_path / "out"), "--check"]
    assert main(words) == 0
    assert "weights: 12 equal" in capsys.readouterr().out
    assert main([*words, "--json", "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"][0]["passed"] is True


def test_every_form_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    said = capsys.readouterr().out
    assert [form.name for form in FORMATS.values() if f"{form.name}: {form.summary}" not in said] == []


@pytest.mark.parametrize("form", list(FORMATS))
def test_every_form_has_its_exporter(form: str) -> None:
    exporter = FORMATS[form].exporter()
    assert callable(exporter.write) and callable(exporter.check)
