"""`llamac diverge`: the first value that differs is found in the layer and op that caused it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))

from compiled_pairs import SEED, compile_tampered, compile_tiny

Capture = pytest.CaptureFixture[str]
IDS = "1,200,3,7,7"


def _diverge(capsys: Capture, *words: object) -> tuple[int, dict[str, Any]]:
    code = main(["diverge", *(str(word) for word in words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_tiny(tmp_path_factory.mktemp("sound") / "sound.llamac")


@pytest.fixture(scope="module")
def tampered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_tampered(tmp_path_factory.mktemp("tampered") / "tampered.llamac")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_tiny(tmp_path_factory.mktemp("quantized") / "quantized.llamac", quantize="int4")


def test_equal_artifacts_do_not_diverge(capsys: Capture, sound: Path) -> None:
    code, found = _diverge(capsys, sound, sound, "--ids", IDS)
    assert (code, found["agrees"], found["first"], found["first_bit"]) == (0, True, None, None)
    assert len(found["rows"]) == 20 and all(row["absolute"] == 0 for row in found["rows"])
    assert found["unmatched"] == [] and found["faithful"] is True


def test_a_tampered_weight_is_located(capsys: Capture, sound: Path, tampered: Path) -> None:
    code, found = _diverge(capsys, sound, tampered, "--ids", IDS)
    assert (code, found["agrees"]) == (1, False)
    assert (found["first"]["where"], found["first"]["op"]) == ("layers.1.mlp", "linear+residual mlp.down")
    assert found["first"]["worst"]["column"] == 3  # row 3 of the weight is column 3 of its product
    assert found["first_bit"] == found["first"]["index"]
    assert found["cause"].startswith("its weight layers.1.mlp.down differs in ")


def test_an_artifact_and_the_interpreter_on_its_own_ir(capsys: Capture, sound: Path) -> None:
    code, found = _diverge(capsys, sound, "interpreter", "--ids", IDS, "--tolerance", "1e-4")
    assert (code, found["agrees"], found["forced"]) == (0, True, True)
    assert max(row["relative"] for row in found["rows"]) < 1e-5


def test_int8_activations_agree_op_by_op(capsys: Capture, quantized: Path) -> None:
    code, found = _diverge(capsys, quantized, "interpreter", "--ids", IDS, "--tolerance", "1e-4")
    assert (code, found["agrees"]) == (0, True)
    assert any(row["op"].startswith("quantize_rows") for row in found["rows"])


def test_a_tampered_artifact_and_its_source(capsys: Capture, sound: Path, tampered: Path) -> None:
    words = ["interpreter", "--source", "tiny", "--random-weights", SEED, "--ids", IDS]
    assert _diverge(capsys, sound, *words)[0] == 0
    code, found = _diverge(capsys, tampered, *words)
    assert code == 1
    # Each op runs on the compiled one's values, so this is the only one that differs.
    wrong = [(row["where"], row["op"]) for row in found["rows"] if row["relative"] > 1e-3]
    assert wrong == [("layers.1.mlp", "linear+residual mlp.down")]
    assert found["cause"].startswith("its weight layers.1.mlp.down differs in ")


def test_two_quantizations_compare_value_by_value(capsys: Capture, sound: Path, quantized: Path) -> None:
    found = _diverge(capsys, sound, quantized, "--ids", IDS)[1]
    assert found["tolerance"] == 2e-2
    assert {"rope_append attn.qkv q", "attend", "swiglu mlp.gate_up"} <= {row["op"] for row in found["rows"]}
    assert {text.split(":")[0] for text in found["unmatched"]} <= {
        "layers.0.attn quantize_rows",
        "layers.1.attn quantize_rows",
    }
    assert "stored otherwise" in found["cause"]


def test_in_words(capsys: Capture, sound: Path, tampered: Path) -> None:
    code = main(["diverge", str(sound), str(tampered), "--ids", IDS])
    out = capsys.readouterr().out
    assert code == 1
    assert "they part ways in layers.1.mlp, linear+residual mlp.down" in out
    assert "gives the same logits as the traced build, bit for bit" in out
    assert sum(line.startswith(">") for line in out.splitlines()) == 1


def test_code_that_does_not_do_what_its_ir_says(
    capsys: Capture, sound: Path, tampered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code member that computes something else than the IR beside it is told, though all traced values agree."""
    from llamac import traced_build

    step = traced_build._step

    def wrong(artifact: Any, library: Any, ids: Any) -> Any:
        logits = step(artifact, library, ids)
        return logits + np.float32(library.where != "the tracing build")

    monkeypatch.setattr(traced_build, "_step", wrong)
    code, found = _diverge(capsys, sound, sound, "--ids", IDS)
    assert (code, found["agrees"], found["first"], found["faithful"]) == (1, False, None, False)
    assert any("OTHER logits than its own IR: they differ by up to 1" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "LLC0102"),
        (["--ids", "1,x"], "LLC0101"),
        (["--ids", "256"], "LLC0812"),
        (["--ids", ",".join(["1"] * 513)], "LLC0809"),
        (["--prompt", "hello"], "LLC0813"),
        (["--ids", "1", "--source", "tiny"], "LLC0101"),
    ],
)
def test_what_cannot_be_compared(capsys: Capture, sound: Path, words: list[str], code: str) -> None:
    assert main(["diverge", str(sound), str(sound), *words]) == 2
    assert capsys.readouterr().err.startswith(code)


def test_an_artifact_without_ir(capsys: Capture, toy_artifact: Path) -> None:
    assert main(["diverge", str(toy_artifact), str(toy_artifact), "--ids", "1"]) == 2
    assert "carries no IR" in capsys.readouterr().err


def test_the_ir_in_the_file_is_checked_against_the_manifest(sound: Path, tmp_path: Path) -> None:
    """A weight that is smaller than the IR reads would be read beyond its end."""
    from llamac.artifact.read import Artifact
    from llamac.errors import LlamacError
    from llamac.traced_build import record_artifact

    with Artifact.open(sound) as opened:
        opened.manifest["weights"][0]["tensors"][3]["bytes"] -= 64
        with pytest.raises(LlamacError, match=r"LLC0711.*the IR reads"):
            record_artifact(opened, [1], tmp_path)
    with Artifact.open(sound) as opened:
        opened.manifest["memory"]["arena_bytes"] //= 2
        with pytest.raises(LlamacError, match=r"LLC0711.*outside the arena"):
            record_artifact(opened, [1], tmp_path)


@pytest.mark.slow
def test_devices_of_one_artifact_are_compared(capsys: Capture, tmp_path: Path) -> None:
    """llamac's own code against ONNX Runtime and TVM by their logits, and against TVM op by op."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[test]'")
    pytest.importorskip("tvm", reason="TVM is not installed: pip install 'llamac[tvm]'")
    path = compile_tiny(tmp_path / "three.llamac", target=["x86-64-v3", "tvm:llvm", "onnxruntime"])
    for words in (("onnxruntime",), ("tvm:llvm",), ("onnxruntime", "--device", "tvm:llvm")):
        code, found = _diverge(capsys, path, *words, "--ids", IDS)
        (row,) = found["rows"]
        assert (code, row["where"], found["tolerance"]) == (0, "logits", 1e-3)
        assert 0 < row["relative"] < 1e-3
    code, found = _diverge(capsys, path, "tvm", "--ids", IDS)
    assert (code, found["forced"]) == (0, True)
    assert len(found["rows"]) > 15


def test_a_device_without_code_is_refused(capsys: Capture, sound: Path) -> None:
    for words in (("onnxruntime",), (sound, "--device", "tvm:llvm")):
        assert main(["diverge", str(sound), *map(str, words), "--ids", IDS]) == 2
        assert "the file has no code for it. Next: it has " in capsys.readouterr().err
    assert main(["diverge", str(sound), "interpreter", "--device", "cpu", "--ids", IDS]) == 2
    assert "LLC0101 --device: goes with a target or a file as B" in capsys.readouterr().err
