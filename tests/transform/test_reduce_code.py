"""A bug of the code generator comes down to kernel-level IR that shows it, as a bug of a pass does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llamac
from llamac.backends.cpu import codegen
from llamac.cli.main import main
from llamac.errors import LlamacError
from llamac.generated_code import with_code
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization
from llamac.reproduction import SCREEN, recipe_of, reduce_failure, replay


def test_sound_code_is_no_failure() -> None:
    checkpoint = open_source("tiny", random_weights=1)
    with pytest.raises(LlamacError, match="LLC0510"):
        reduce_failure(with_code(recipe_of(checkpoint, parse_quantization("f32"), "f32")), 20)


def test_compile_leaves_a_repro(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The generator forgets how to attend."""
    whole = codegen.Generator.run

    def broken(self: codegen.Generator) -> str:
        if any("attention" in op.opcode or "attend" in op.opcode for g in self.module.graphs.values() for op in g.ops):
            raise KeyError("no template for attention")
        return whole(self)

    monkeypatch.setattr(codegen.Generator, "run", broken)
    output = tmp_path / "model.llamac"
    with pytest.raises(LlamacError, match=r"LLC0100 generate-code: KeyError.*no template") as caught:
        llamac.compile("tiny", random_weights=1, output=output, quantize="f32", validate=False)
    assert not output.exists()
    folder = tmp_path / "model.repro"
    assert str(folder) in caught.value.hint and "llamac opt" in caught.value.hint
    document = json.loads((folder / "repro.json").read_text())
    assert document["failing"] == "generate-code" and document["recipe"]["config"]["layers"] == 1
    assert len((folder / "repro.ir").read_text().splitlines()) <= SCREEN
    again = replay(folder / "repro.json")
    assert again is not None and (again.item, again.kind) == ("generate-code", "KeyError")
    words = caught.value.hint.split("llamac opt ", 1)[1].replace('"', "").split()
    capsys.readouterr()
    assert main(["opt", *words]) != 0
    assert "no template for attention" in capsys.readouterr().err
