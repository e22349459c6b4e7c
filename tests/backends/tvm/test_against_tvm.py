"""`llamac verify --against tvm`: a CPU artifact's code and TVM on the artifact's own IR and weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamac.backends.tvm.rules import products
from llamac.cli.main import main
from llamac.errors import LlamacError
from llamac.second_run import run_against_tvm


@pytest.mark.parametrize("scheme", ["f32", "int4"])
def test_it_agrees(scheme: str, artifact_of: Any) -> None:
    (found,) = run_against_tvm(artifact_of("x86-64-v3", quantize=scheme))
    assert found.agrees and found.ops.forced and len(found.ops.rows) > 15
    assert (found.bound is None) == (scheme == "int4")
    assert max(row.relative for row in found.ops.rows) < 1e-4


def test_the_verb(artifact_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(artifact_of("x86-64-v3", quantize="f32"))
    assert main(["verify", path, "--against", "tvm"]) == 0
    assert "against TVM, prompt 0, 24 tokens: ok" in capsys.readouterr().out
    assert main(["verify", path, "--against", "tvm", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"] and answer["against_tvm"][0]["agrees"]


def test_the_first_place_of_a_disagreement(
    artifact_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Were the second implementation another, or the first one wrong: the op is named, and the exit code says it."""
    monkeypatch.setattr(products, "silu", lambda x, on_gpu: x)
    assert main(["verify", str(artifact_of("x86-64-v3", quantize="f32")), "--against", "tvm"]) == 1
    said = capsys.readouterr()
    assert "they part ways in layers.0.mlp, swiglu" in said.out and "LLC0817" in said.err


def test_an_artifact_without_code_for_cpus(artifact_of: Any) -> None:
    """Without code for CPUs there is nothing to compare."""
    with pytest.raises(LlamacError) as caught:
        run_against_tvm(artifact_of("tvm:llvm", quantize="f32"))
    assert caught.value.code == "LLC0801"
